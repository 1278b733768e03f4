"""What a volume holds beyond its record is shown by nothing that reads it, however much longer that is.

A Snapshot's volume was made longer by another program, with other bytes there; disks and Snapshots that
are longer than its record read it. Whatever is done with them, they are zeros where it ends.
"""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from diskyard import MiB
from tests.api.helpers import (
    COMMIT_ONLY,
    SIZE,
    Rig,
    Stretch,
    code_of,
    fixes,
    picture,
    run,
    run_fix,
    settle,
)
from tests.api.test_attachments import check_xml

ONE: Stretch = (1, 0, MiB)
MINE: Stretch = (2, SIZE + MiB, 64 << 10)
WANTED = picture(2 * SIZE, ONE, MINE)
FORMATS = ("raw", "qcow2")


def make_longer(path: Path, format: str, size_bytes: int = 2 * SIZE, at: int = SIZE) -> None:
    """What another program does to a volume that it does not know to be frozen."""
    node: dict[str, object] = {"driver": format, "file": {"driver": "file", "filename": str(path)}}
    if format == "qcow2":
        node["backing"] = None
    commands = (f"truncate {size_bytes}", f"write -P 0xee {at} {size_bytes - at}", "flush")
    run("qemu-io", *(word for command in commands for word in ("-c", command)), "json:" + json.dumps(node))


class Chain:
    """Disk ``child`` of 8 MiB over Snapshot ``parent`` of 4, whose volume has 8, not zeros."""

    def __init__(self, rig: Rig, format: str) -> None:
        self.rig, self.format = rig, format
        disk = rig.raw_disk("a", ONE)
        if format == "qcow2":
            rig.yard.create_snapshot("a", disk)
        self.parent = rig.yard.create_snapshot("a", disk)
        self.child = disk
        rig.yard.extend_virtual_disk("a", disk, 2 * SIZE)
        rig.write("a", disk, MINE)
        path = rig.volume_path("a", self.parent)
        assert path.suffix == f".{format}"
        make_longer(path, format)

    def cut(self) -> None:
        """The way out where QEMU cannot be kept from showing it: by force, what is there goes."""
        if self.format == "qcow2":
            (fix,) = (fix for fix in fixes(self.rig.yard, "a", "clean") if fix.image_id == self.parent)
            self.rig.yard.wait_for_task(
                self.rig.yard.fix_storage_repository("a", fix, options={"force": True}).task_id, 60
            )


@pytest.fixture(params=FORMATS)
def chain(request: pytest.FixtureRequest, rig: Rig) -> Chain:
    return Chain(rig, request.param)


def refused(chain: Chain) -> None:
    """Of a qcow2 volume QEMU can show all or nothing: nothing then, until that is cut off by force."""
    rig = chain.rig
    if chain.format == "raw":
        return
    assert code_of(lambda: rig.yard.prepare_image("a", chain.child)) == "ImageBroken"
    assert rig.repository("a").state().attachments_of(chain.child) == []
    chain.cut()


def test_what_prepare_gives_out(chain: Chain) -> None:
    refused(chain)
    rig = chain.rig
    rig.expect("a", chain.child, WANTED)
    attached = rig.yard.prepare_image("a", chain.child)
    xml = ET.fromstring(attached.libvirt_xml)  # noqa: S314 — our own
    check_xml(attached.libvirt_xml, 2 if chain.format == "raw" else 3, False, chain.rig.folder)
    if chain.format == "raw":
        (piece,) = xml.iter("slice")
        assert piece.attrib == {"type": "storage", "offset": "0", "size": str(SIZE)}
    else:
        assert not list(xml.iter("slice"))
    rig.yard.teardown_image("a", chain.child)
    rig.expect("a", chain.parent, picture(SIZE, ONE))
    whole = rig.yard.prepare_image("a", chain.parent)
    assert (whole.path is None) or chain.format == "qcow2"
    rig.yard.teardown_image("a", chain.parent)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_served(short_rig: Rig, format: str) -> None:
    rig, chain = short_rig, Chain(short_rig, format)
    refused(chain)
    served = rig.yard.prepare_image("a", chain.child, options={"read_only": True, "serve": "nbd"})
    try:
        assert rig.convert(str(served.nbd_uri), "raw") == WANTED
    finally:
        rig.yard.teardown_image("a", chain.child)


@pytest.mark.parametrize("how", ["whole", "difference", "to a longer base"])
def test_copies(chain: Chain, how: str) -> None:
    rig = chain.rig
    base = None
    if how == "difference":
        rig.yard.copy_image("b", chain.parent)
        rig.wait()
        base = chain.parent
        rig.expect("b", chain.parent, picture(SIZE, ONE))
    elif how == "to a longer base":
        base = rig.yard.create_snapshot("b", rig.disk("b", (9, 0, 3 * SIZE), size=3 * SIZE))
    copy = rig.yard.copy_image("b", chain.child, base, options=COMMIT_ONLY)
    refused(chain)
    settle(rig.yard, "b")
    rig.expect("b", copy, WANTED)


def test_a_difference_in_its_own_repository(chain: Chain) -> None:
    refused(chain)
    rig = chain.rig
    copy = rig.yard.copy_image("a", chain.child, chain.parent)
    rig.wait()
    rig.expect("a", copy, WANTED)


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk"])
def test_exports(chain: Chain, format: str, tmp_path: Path) -> None:
    refused(chain)
    rig, path = chain.rig, tmp_path / "out"
    task = rig.yard.export_image("a", chain.child, str(path), format)
    assert rig.yard.wait_for_task(task.task_id, 60).error is None
    assert rig.convert(str(path), format) == WANTED


def test_optimize(chain: Chain) -> None:
    refused(chain)
    rig = chain.rig
    rig.yard.set_strategy("a", chain.child, "performance")
    settle(rig.yard, "a")
    rig.expect("a", chain.child, WANTED)


@pytest.mark.parametrize("heavy", ["parent", "child"])
def test_merges(rig: Rig, heavy: str) -> None:
    """Up or down, by what moves less; both ends of the merge are only as long as they should be."""
    for format in FORMATS:
        chain = Chain(rig, format)
        if heavy == "child":
            chain.cut()
            rig.write("a", chain.child, (3, 0, SIZE))
            make_longer(rig.volume_path("a", chain.parent), format)
        wanted = WANTED if heavy == "parent" else picture(2 * SIZE, (3, 0, SIZE), MINE)
        rig.yard.remove_image("a", chain.parent, options=COMMIT_ONLY)
        merges = fixes(rig.yard, "a", "merge")
        if format == "qcow2":
            direction = "down" if heavy == "parent" else "up"
            assert any(direction in fix.description for fix in merges)
        for fix in merges:
            run_fix(rig.yard, "a", fix)
        settle(rig.yard, "a")
        rig.expect("a", chain.child, wanted)
        assert rig.repository("a").state().images[chain.child].size_bytes == 2 * SIZE
        rig.clean_slate("a")


def test_a_merge_of_two_frozen_volumes(rig: Rig) -> None:
    """The volume that goes down is longer than its record: that does not come along."""
    disk = rig.raw_disk("a", ONE)
    gone = rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, (4, MiB, MiB))
    kept = rig.yard.create_snapshot("a", disk)
    make_longer(rig.volume_path("a", kept), "qcow2")
    rig.yard.remove_image("a", gone)
    rig.wait()
    for fix in fixes(rig.yard, "a", "merge"):
        run_fix(rig.yard, "a", fix)
    assert rig.volume_path("a", kept).stat().st_size == SIZE
    rig.expect("a", kept, picture(SIZE, ONE, (4, MiB, MiB)))
    rig.expect("a", disk, picture(SIZE, ONE, (4, MiB, MiB)))
    settle(rig.yard, "a")
    rig.clean_slate("a")


def test_a_disk_that_takes_over_a_frozen_volume(rig: Rig) -> None:
    """Its overlay is empty and goes: the disk must not become as long as somebody made the Snapshot."""
    disk = rig.raw_disk("a", ONE)
    snapshot = rig.yard.create_snapshot("a", disk)
    make_longer(rig.volume_path("a", snapshot), "raw")
    rig.yard.remove_image("a", snapshot)
    rig.wait()
    settle(rig.yard, "a")
    rig.expect("a", disk, picture(SIZE, ONE))
    rig.clean_slate("a")


def test_disks_made_from_it(chain: Chain) -> None:
    rig = chain.rig
    disk = rig.yard.create_virtual_disk("a", 2 * SIZE, chain.parent)
    other = rig.yard.create_virtual_disk("b", 2 * SIZE, chain.parent, options=COMMIT_ONLY)
    chain.cut()
    settle(rig.yard, "b")
    rig.expect("a", disk, picture(2 * SIZE, ONE))
    rig.expect("b", other, picture(2 * SIZE, ONE))


def test_a_disk_reverted_to_it_and_extended(chain: Chain) -> None:
    rig = chain.rig
    rig.yard.revert_virtual_disk("a", chain.child, chain.parent)
    chain.cut()
    rig.expect("a", chain.child, picture(SIZE, ONE))
    rig.yard.extend_virtual_disk("a", chain.child, 2 * SIZE)
    rig.expect("a", chain.child, picture(2 * SIZE, ONE))
