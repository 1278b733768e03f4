"""What a VHDX file says of where its data is: QEMU reads all of a disk, however little there is."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.host import Host
from diskyard.mover.formats.foreign_headers import BlockMap
from diskyard.mover.untrusted import blocks_held, inspect_import
from diskyard.testing.hostile_images.cases import Case
from diskyard.testing.hostile_images.corpus import all_cases
from diskyard.testing.hostile_images.site import Site
from diskyard.testing.world import MIB


@cache
def cases() -> dict[str, Case]:
    """The corpus by name; not made before a test needs it, for every worker imports this file."""
    return {case.name: case for case in all_cases("vhdx")}


def made(folder: Path, name: str) -> str:
    """A file of the corpus."""
    site = Site(folder / "site")
    cases()[name].make(site, folder / "image")
    site.close()
    return str(folder / "image")


def held(blocks: BlockMap | None, size_bytes: int) -> list[tuple[int, int]]:
    """Where the stretches are that are not zeros, and how long."""
    assert blocks is not None
    found, offset = [], 0
    for length_bytes, is_zero in blocks.runs(0, size_bytes):
        if not is_zero:
            found.append((offset, length_bytes))
        offset += length_bytes
    assert offset == size_bytes
    return found


def inspected(path: str) -> int:
    with open(path, "rb") as file:
        return inspect_import(Host.real(), file.fileno(), "vhdx")


def blocks_of(path: str) -> BlockMap | None:
    with open(path, "rb") as file:
        return blocks_held(Host.real(), file.fileno(), "vhdx")


@pytest.mark.parametrize("block", [4095, 4096, 8193])
def test_where_a_block_is(tmp_path: Path, block: int) -> None:
    """In the table there is more than blocks, after every 4 GiB."""
    path = made(tmp_path, f"vhdx: block {block}")
    size_bytes = inspected(path)
    assert size_bytes == (block + 1) * MIB
    blocks = blocks_of(path)
    assert held(blocks, size_bytes) == [(2 * MIB, 2 * MIB), (block * MIB, MIB)]
    assert blocks is not None
    assert list(blocks.runs(3 * MIB - 512, MIB)) == [(MIB, False)]
    assert list(blocks.runs(4 * MIB - 512, 1024)) == [(512, False), (512, True)]


def test_blocks_of_what_qemu_makes(tmp_path: Path) -> None:
    path = str(tmp_path / "image")
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "9G"], check=True)
    writes = [word for at in (0, 4095, 4097, 9 * 1024 - 1) for word in ("-c", f"write -P 1 {at}M 64k")]
    subprocess.run(["qemu-io", "-f", "vhdx", *writes, path], check=True, capture_output=True)
    blocks = blocks_of(path)
    assert held(blocks, 9 << 30) == [(at * MIB, MIB) for at in (0, 4095, 4097, 9 * 1024 - 1)]


def test_a_block_that_is_named_too_often(tmp_path: Path) -> None:
    """A small file could take as long as a huge one."""
    path = made(tmp_path, "vhdx: a block a thousand times")
    with pytest.raises(errors.UnsafeImage, match="more than is inside"):
        inspected(path)
    os.truncate(path, 2 << 30)  # so much may take as long
    assert inspected(path) == 1 << 30


def test_qemu_tells_of_the_others() -> None:
    assert blocks_held(Host.real(), -1, "qcow2") is None
