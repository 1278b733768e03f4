"""On file systems whose blocks are smaller than what QEMU takes for the least that can be read directly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diskyard import KiB, MiB
from tests.api.helpers import Rig, fixes, graph, picture, qemu_io, run, settle
from tests.mounts import mounted

SIZE = MiB + 512  # what ends inside a block is written otherwise as well
PIECES = tuple((k + 1, k * 40 * KiB + 3 * KiB, KiB) for k in range(10))
SMALL = {
    "ext4": ["mkfs.ext4", "-q", "-b", "1024"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-b", "size=1024"],
}
USUAL = {"4k": ["mkfs.ext4", "-q", "-b", "4096"]}


@pytest.fixture(scope="module", params=[*SMALL, *USUAL])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system, whose borders of data and holes lie at 1 KiB or at 4."""
    make = {**SMALL, **USUAL}[request.param]
    with mounted(tmp_path_factory.mktemp(request.param), make) as found:
        yield found / request.param


@pytest.fixture
def small(place: Path, quick_folder: Path) -> Iterator[Rig]:
    """A host with its repositories there, and a state folder whose sockets have short names."""
    folder = place.parent / f"{place.name}-{quick_folder.name}"
    folder.mkdir()
    made = Rig(quick_folder, folder)
    yield made
    made.close()


def _direct(graph: dict[str, Any]) -> set[bool]:
    found = {graph["cache"]["direct"], graph["file"]["cache"]["direct"]}
    return found | (_direct(graph["backing"]) if graph.get("backing") else set())


def test_what_is_given_out_is_read_as_the_file_system_can(small: Rig, place: Path) -> None:
    """A guest's own QEMU maps it, as its block jobs do: past the page cache only where that holds."""
    disk = small.disk("a", *PIECES, size=SIZE)
    small.expect("a", disk, picture(SIZE, *PIECES))
    large = small.disk("a", *PIECES, size=2 * MiB)
    small.yard.create_snapshot("a", large)
    attached = small.yard.prepare_image("a", large)
    run("qemu-img", "map", graph(attached))
    usual = place.name in USUAL
    assert _direct(attached.blockdev) == {usual}
    assert f'cache="{"none" if usual else "writeback"}"' in (attached.libvirt_xml or "")
    qemu_io(attached, "write -P 77 5k 1k", "flush")
    small.yard.teardown_image("a", large)
    small.expect("a", large, picture(2 * MiB, *PIECES, (77, 5 * KiB, KiB)))


def test_served(small: Rig) -> None:
    """The storage daemon reads and writes it."""
    disk = small.disk("a", *PIECES, size=SIZE)
    attached = small.yard.prepare_image("a", disk, options={"serve": "nbd"})
    run("qemu-io", "-f", "raw", "-c", "write -P 77 5k 1k", "-c", "flush", attached.nbd_uri or "")
    run("qemu-img", "map", attached.nbd_uri or "")
    small.yard.teardown_image("a", disk)
    small.expect("a", disk, picture(SIZE, *PIECES, (77, 5 * KiB, KiB)))


def test_all_that_moves_bytes_ends(small: Rig) -> None:
    """Copies, differences, exports, merges, and a volume of its own: right, and nothing stays listed."""
    yard = small.yard
    disk = small.disk("a", *PIECES, size=SIZE)
    first = yard.copy_image("b", disk)
    small.wait()
    small.expect("b", first, picture(SIZE, *PIECES))
    snapshot = yard.create_snapshot("a", disk)
    more = (*PIECES, (99, 500 * KiB, KiB), (98, 520 * KiB + 512, KiB))
    small.write("a", disk, *more[-2:])
    second = yard.copy_image("b", disk, first)
    small.wait()
    small.expect("b", second, picture(SIZE, *more))
    for format in ("raw", "qcow2"):
        out = small.folder / f"out.{format}"
        yard.export_image("a", disk, str(out), format)
        small.wait()
        assert small.convert(str(out), format)[:SIZE] == picture(SIZE, *more)
    imported = yard.import_image("b", str(small.folder / "out.qcow2"), "qcow2")
    yard.remove_image("a", snapshot)
    small.wait()
    yard.set_strategy("a", disk, "performance")
    settle(yard, "a", "b")
    small.expect("a", disk, picture(SIZE, *more))
    small.expect("b", imported, picture(SIZE, *more))
    assert fixes(yard, "a") == fixes(yard, "b") == []
