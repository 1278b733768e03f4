"""On a file system that shares blocks: clones for disks from a base, freezes and copies."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from diskyard import KiB, MiB
from diskyard.host import Host
from diskyard.mover.copying.copy import copy_view
from diskyard.mover.interface import Chain
from tests.api.helpers import (
    COMMIT_ONLY,
    SIZE,
    Rig,
    code_of,
    fixes,
    intercept,
    kill,
    picture,
    run_fix,
    settle,
)
from tests.unit.mover.bench import Bench, RecordingMonitor

ONE = (1, 0, MiB)
TWO = (2, 2 * MiB, MiB)


def shared_bytes(path: Path) -> int:
    """How much of a file shares its blocks with another, by the file system."""
    out = subprocess.run(["filefrag", "-v", str(path)], capture_output=True, text=True, check=True).stdout
    total = 0
    for line in out.splitlines():
        fields = [field.strip() for field in line.split(":")]
        if fields[0].isdigit() and "shared" in fields[-1]:
            total += int(fields[3]) * 4096
    return total


def test_a_disk_from_a_base_is_a_clone(reflink: Rig) -> None:
    """It is raw, reads no parent, and shares what it did not write."""
    yard = reflink.yard
    source = reflink.disk("a", ONE)
    base = yard.create_snapshot("a", source)
    disk = yard.create_virtual_disk("a", 2 * SIZE, base)
    path = reflink.volume_path("a", disk)
    assert path.suffix == ".raw"
    assert shared_bytes(path) == MiB
    reflink.expect("a", disk, picture(2 * SIZE, ONE))
    reflink.write("a", disk, TWO, (3, 0, 64 * KiB))
    reflink.expect("a", disk, picture(2 * SIZE, ONE, TWO, (3, 0, 64 * KiB)))
    reflink.expect("a", base, picture(SIZE, ONE))
    yard.remove_image("a", base)
    reflink.wait()
    settle(yard, "a")
    reflink.expect("a", disk, picture(2 * SIZE, ONE, TWO, (3, 0, 64 * KiB)))
    reflink.expect("a", source, picture(SIZE, ONE))
    assert len(reflink.files("a")) == 2
    reflink.clean_slate("a")


def test_a_clone_that_was_killed_leaves_nothing(reflink: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its volume is cleaned, its base was kept for it until then."""
    yard = reflink.yard
    base = yard.create_snapshot("a", reflink.disk("a", ONE))
    with monkeypatch.context() as patch:
        intercept(patch, reflink.repository("a").storage, "clone_volume", after=kill)
        assert code_of(lambda: yard.create_virtual_disk("a", SIZE, base)) == "InternalError"
    assert len(reflink.files("a")) == 3
    settle(reflink.host("two"), "a")
    assert len(reflink.files("a")) == 2
    reflink.expect("a", base, picture(SIZE, ONE))
    reflink.clean_slate("a")


@pytest.mark.parametrize("target", ["a", "b"])
def test_a_copy_freezes_and_copies_by_clones(reflink: Rig, target: str) -> None:
    """The disk keeps its raw volume without an overlay, and the copy shares its blocks."""
    yard = reflink.yard
    disk = reflink.disk("a", ONE)
    before = reflink.volume_path("a", disk)
    copy = yard.copy_image(target, disk, options=COMMIT_ONLY)
    assert reflink.volume_path("a", disk) == before
    reflink.write("a", disk, TWO)
    settle(reflink.host("two"), target, "a")
    reflink.expect(target, copy, picture(SIZE, ONE))
    reflink.expect("a", disk, picture(SIZE, ONE, TWO))
    assert reflink.volume_path("a", disk) == before
    path = reflink.volume_path(target, copy)
    assert (path.suffix, shared_bytes(path)) == (".raw", MiB)
    reflink.clean_slate("a", "b")
    assert len(reflink.files("a")) + len(reflink.files("b")) == 2


def test_revert_by_a_clone(reflink: Rig) -> None:
    """A revert to a raw Snapshot shares its blocks and reads no parent."""
    yard = reflink.yard
    disk = reflink.disk("a", ONE)
    base = yard.create_snapshot("a", disk)
    reflink.write("a", disk, TWO)
    yard.revert_virtual_disk("a", disk, base)
    assert reflink.volume_path("a", disk).suffix == ".raw"
    reflink.expect("a", disk, picture(SIZE, ONE))
    reflink.write("a", disk, (9, 0, SIZE))
    reflink.expect("a", base, picture(SIZE, ONE))
    reflink.wait()
    settle(yard, "a")
    reflink.clean_slate("a")


def test_the_flow_on_clones(reflink: Rig) -> None:
    """The second copy is the difference to the first; both right, and the first can be written."""
    yard = reflink.yard
    disk = reflink.disk("a", (1, 0, 3 * MiB))
    first = yard.copy_image("b", disk)
    reflink.wait()
    reflink.write("a", disk, (2, MiB, 64 * KiB))
    second = yard.copy_image("b", disk, first)
    reflink.wait()
    assert reflink.allocated("b", second) <= 64 * KiB * 1.1 + MiB
    reflink.write("b", first, (7, 0, SIZE))
    reflink.expect("b", second, picture(SIZE, (1, 0, 3 * MiB), (2, MiB, 64 * KiB)))
    reflink.expect("b", first, picture(SIZE, (7, 0, SIZE)))
    assert [image.image_id for image in yard.list_images("a").images] == [disk]
    settle(yard, "a", "b")
    reflink.clean_slate("a", "b")


def test_a_difference_between_clones_is_found_without_reading(reflink: Rig) -> None:
    """Blocks that base and source share are equal: what moves is what changed."""
    yard = reflink.yard
    source = reflink.disk("a", (1, 0, 3 * MiB))
    base = yard.create_snapshot("a", source)
    disk = yard.create_virtual_disk("a", SIZE, base)
    reflink.write("a", disk, (2, MiB, 64 * KiB))
    copy = yard.copy_image("a", disk, base)
    reflink.wait()
    reflink.expect("a", copy, picture(SIZE, (1, 0, 3 * MiB), (2, MiB, 64 * KiB)))
    assert reflink.allocated("a", copy) <= MiB


def test_a_performance_clone_is_reserved(reflink: Rig) -> None:
    """Its holes are filled by the optimize, and nothing shows but its bytes."""
    yard = reflink.yard
    base = yard.create_snapshot("a", reflink.disk("a", ONE))
    disk = yard.create_virtual_disk("a", SIZE, base, options={"strategy": "performance"})
    assert yard.get_image_status("a", disk).status == "degraded"
    (fix,) = fixes(yard, "a")
    run_fix(yard, "a", fix)
    assert yard.get_image_status("a", disk).status == "optimized"
    assert reflink.allocated("a", disk) >= SIZE
    reflink.expect("a", disk, picture(SIZE, ONE))
    assert fixes(yard, "a") == []


def test_an_export_leaves_no_clone(reflink: Rig) -> None:
    """What was cloned for it is deleted when it ends, and nothing is left for check."""
    disk = reflink.disk("a", ONE)
    path = reflink.folder / "out.raw"
    task = reflink.yard.export_image("a", disk, str(path), "raw")
    assert reflink.yard.wait_for_task(task.task_id, 60).state == "done"
    assert path.read_bytes() == picture(SIZE, ONE)
    assert fixes(reflink.yard, "a") == []
    assert len(reflink.files("a")) == 1


@pytest.mark.parametrize("has_overlays", [False, True])
def test_what_two_files_share_is_not_read(xfs: Path, has_overlays: bool) -> None:
    """Nothing in the chains says that both are equal; the file system knows."""
    folder = xfs / f"shares-{has_overlays}"
    folder.mkdir()
    bench = Bench(folder, Host.real())
    source = bench.layer("source", "raw", 64 * MiB)
    bench.fill((source,), [(MiB, 48 * MiB, 5)])
    base = bench.layer("base", "raw", 64 * MiB)
    subprocess.run(["cp", "--reflink=always", str(source.path), str(base.path)], check=True)
    bench.fill((source,), [(20 * MiB, 64 * KiB, 6), (40 * MiB + 4096, 4096, 7)])
    bench.fill((base,), [(30 * MiB, 4096, 8), (2 * MiB, 64 * KiB, 0)])
    one: Chain = (source,)
    other: Chain = (base,)
    if has_overlays:
        one = (bench.layer("over-source", "qcow2", 64 * MiB, one), source)
        other = (bench.layer("over-base", "qcow2", 64 * MiB, other), base)
        bench.fill(one, [(10 * MiB, 64 * KiB, 9)])
    chain = (bench.layer("target", "qcow2", 64 * MiB, other), *other)
    monitor = RecordingMonitor()
    copy_view(bench.host, one, chain, 64 * MiB, start_bytes=0, monitor=monitor, target_zeroed=True)
    assert bench.view(chain) == bench.view(one)
    assert monitor.total_bytes == (5 if has_overlays else 4) * 64 * KiB
