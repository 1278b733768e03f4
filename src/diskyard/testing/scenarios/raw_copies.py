"""Operations on a copy, which is one raw volume in every format: what such a volume gains, or takes in."""

from __future__ import annotations

from diskyard.service import Service
from diskyard.testing.scenarios import shapes
from diskyard.testing.scenarios.base import (
    LATER,
    Act,
    After,
    Scenario,
    bytes_of,
    fix_first,
    removed,
    same,
    verb,
    with_bytes,
)
from diskyard.testing.world import KIB, MIB, SIZE_BYTES, World


def _extend(size_bytes: int) -> Act:
    return verb("extendVirtualDisk", repositoryId="b", imageId="@base", size=size_bytes, options=LATER)


def _extended(size_bytes: int) -> After:
    return with_bytes("base", lambda world: bytes_of("base", "b")(world).ljust(size_bytes, b"\0"), "b")


def copy_below(world: World, service: Service) -> None:
    """A copy that was frozen, extended and written since, with the Snapshot removed."""
    shapes.copied(world, service)
    world.snapshot(service, "b", "base", "s")
    _extend(2 * SIZE_BYTES)(world, service)
    world.images = _extended(2 * SIZE_BYTES)(world)
    world.write(service, "b", "base", 7, SIZE_BYTES + 64 * KIB, 64 * KIB)
    removed("s", "b")(world, service)


RAW_COPIES = [
    Scenario(
        "extend a copy a little", shapes.copied, _extend(SIZE_BYTES + 64 * KIB),
        _extended(SIZE_BYTES + 64 * KIB),
    ),
    Scenario("extend a copy", shapes.copied, _extend(5 * MIB), _extended(5 * MIB)),
    Scenario("merge down into a copy", copy_below, fix_first("b", "merge"), same),
]  # fmt: skip
