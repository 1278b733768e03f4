"""Where a raw layer ends for who opens it, and whether what writes there goes past the page cache."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diskyard.host import Files, Host
from diskyard.mover.qemu.graphs import blockdev_graph, opens_past_cache
from tests.unit.mover.bench import MIB, Bench


class LargeSectors(Files):
    """A file system on a disk of sectors of 4 KiB."""

    def reads_past_cache(self, where: int | str, length_bytes: int) -> bool:
        return True


@pytest.fixture
def host(bench: Bench) -> Host:
    return replace(bench.host, files=LargeSectors(bench.host.identity))


@pytest.mark.parametrize(
    ("read_only", "bounds_writers", "size"),
    [(True, False, 3 * MIB), (True, True, 3 * MIB), (False, True, 3 * MIB), (False, False, None)],
)
def test_a_bound_is_for_readers_and_may_be_for_writers(
    bench: Bench, host: Host, read_only: bool, bounds_writers: bool, size: int | None
) -> None:
    layer = replace(
        bench.layer("v", "raw", 4 * MIB),
        size_bytes=3 * MIB,
        bound_bytes=3 * MIB,
        bounds_writers=bounds_writers,
    )
    assert blockdev_graph(host, (layer,), read_only=read_only).get("size") == size


@pytest.mark.parametrize(("bound", "past"), [(3 * MIB, True), (3 * MIB + 512, False), (None, True)])
def test_who_writes_to_what_ends_inside_a_sector_goes_through_the_page_cache(
    bench: Bench, host: Host, bound: int | None, past: bool
) -> None:
    """It would have to write beyond its end, and to a container that is longer than that it could."""
    layer = replace(bench.layer("v", "raw", 4 * MIB), bound_bytes=bound, bounds_writers=True)
    assert opens_past_cache(host, layer, writable=True) is past
    assert opens_past_cache(host, layer, writable=False)
