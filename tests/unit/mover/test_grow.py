"""Growing adds zeros, whatever lies below or was left over."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from diskyard.mover.qemu.grow import grow
from tests.unit.mover.bench import MIB, Bench, check


@pytest.mark.parametrize("preallocate", [True, False])
def test_raw(bench: Bench, preallocate: bool) -> None:
    layer = bench.layer("root", "raw", MIB)
    bench.fill((layer,), [(0, MIB, 3)])
    grow(bench.host, (layer,), 4 * MIB, preallocate)
    assert bench.view((layer,)) == b"\3" * MIB + bytes(3 * MIB)
    allocated = os.stat(str(layer.path)).st_blocks * 512
    assert (allocated >= 4 * MIB) == preallocate


def test_raw_drops_what_an_interrupted_run_left(bench: Bench) -> None:
    layer = bench.layer("root", "raw", 2 * MIB)
    bench.fill((layer,), [(0, 2 * MIB, 3)])
    grow(bench.host, (replace(layer, size_bytes=MIB),), 4 * MIB, False)
    assert bench.view((layer,)) == b"\3" * MIB + bytes(3 * MIB)


@pytest.mark.parametrize("size_bytes", [MIB, MIB + 512])
@pytest.mark.parametrize("root_bytes", [MIB // 2, 3 * MIB, 8 * MIB])
def test_qcow2_over_a_root(bench: Bench, size_bytes: int, root_bytes: int) -> None:
    root = bench.layer("root", "raw", root_bytes)
    bench.fill((root,), [(0, root_bytes, 5)])
    top = bench.layer("top", "qcow2", size_bytes, (root,))
    before = bench.view((top, root))
    for _ in range(2):
        grow(bench.host, (top, root), 6 * MIB, False)
        assert bench.view((top, root)) == before.ljust(6 * MIB, b"\0")
    check(top)


@pytest.mark.parametrize("root_bytes", [MIB // 2, 8 * MIB])
@pytest.mark.parametrize("to_bytes", [MIB, 2 * MIB, 6 * MIB])
def test_qcow2_drops_what_is_beyond_its_record(bench: Bench, root_bytes: int, to_bytes: int) -> None:
    """Also where it has the length already that it is to have."""
    root = bench.layer("root", "raw", root_bytes)
    bench.fill((root,), [(0, root_bytes, 5)])
    longer = bench.layer("top", "qcow2", 2 * MIB, (root,))
    bench.fill((longer, root), [(MIB - 512, MIB + 512, 7)])
    wanted = bench.view((longer, root))[:MIB].ljust(to_bytes, b"\0")
    top = replace(longer, size_bytes=MIB)
    grow(bench.host, (top, root), to_bytes, False)
    assert bench.view((top, root)) == wanted
    check(top)
