"""Growing adds zeros, whatever lies below or was left over."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from conftest import MIB, Bench, check
from diskyard.mover.grow import grow


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
