"""Operations that share blocks if the file system can, and so take other steps there."""

from __future__ import annotations

from random import Random

from diskyard.service import Service, call
from diskyard.testing.scenarios import shapes
from diskyard.testing.scenarios.base import (
    LATER,
    Scenario,
    bytes_of,
    fix_first,
    new,
    same,
    with_new,
)
from diskyard.testing.scenarios.fixing import FIXES
from diskyard.testing.scenarios.operations import OPERATIONS
from diskyard.testing.world import SIZE_BYTES, Images, World

CLONE = "clone"
"""The step that each of them has on such a file system."""
_SHARED_BY = (
    "create disk from snapshot",
    "copy lone disk",
    "copy tracked disk",
    "revert",
    "revert in branches",
    "mend an import of qcow2",
)


def prepare_raw_copied(world: World, service: Service) -> None:
    """A copy of a raw Snapshot committed in b, its data not moved yet."""
    shapes.lone(world, service)
    world.snapshot(service, "a", "d", "s")
    call(service, "copyImage", {"targetRepoId": "b", "imageId": world.names["s"], "options": LATER})


def with_snapshot_in_b(world: World) -> Images:
    """The Snapshot is also in b."""
    return {**world.images, ("b", world.names["s"]): world.images["a", world.names["s"]]}


def lost_raw(world: World, service: Service) -> None:
    """A Snapshot that is one raw volume in b, and whose volume in a is gone."""
    prepare_raw_copied(world, service)
    world.fix_all([service], Random(0))
    world.images = with_snapshot_in_b(world)
    state = service.connections.get("a").state()
    volume_id = state.images[world.names["s"]].volume_id
    next((world.folder / "a" / "volumes").glob(f"*{volume_id}*")).unlink()


MORE_SHARING = [
    Scenario(
        "create longer disk by a clone", shapes.chain,
        new("createVirtualDisk", targetRepoId="a", size=2 * SIZE_BYTES, baseSnapshotId="@s1"),
        with_new("a", lambda world: bytes_of("s1")(world) + bytes(SIZE_BYTES)),
    ),
    Scenario("mend a copy by a clone", prepare_raw_copied, fix_first("b", "mend"), with_snapshot_in_b),
    Scenario("restore by a clone", lost_raw, fix_first("a", "mend"), same),
]  # fmt: skip
SHARING = [
    *(scenario for scenario in (*OPERATIONS, *FIXES) if scenario.name in _SHARED_BY),
    *MORE_SHARING,
]
