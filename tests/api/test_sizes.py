"""A volume that is longer than its record: by an extend that was cut, or because a guest grew it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from diskyard import MiB
from diskyard.operations import sizes
from diskyard.planner import sizes as planner
from tests.api.helpers import (
    SIZE,
    Rig,
    Stretch,
    code_of,
    fixes,
    intercept,
    kill,
    picture,
    qemu_io,
    run,
    run_fix,
    settle,
)
from tests.api.test_histories import back_up, restore_log

ONE: Stretch = (1, 0, MiB)
GUEST: Stretch = (7, SIZE, MiB)
GROWN = picture(2 * SIZE, ONE, GUEST)
FORMATS = ("raw", "qcow2")


def made(rig: Rig, format: str, repo: str = "a") -> str:
    """A disk of this format, with :data:`ONE`."""
    disk = rig.raw_disk(repo, ONE)
    if format == "qcow2":
        rig.yard.create_snapshot(repo, disk)
    return disk


def grow_and_write(path: Path, format: str) -> None:
    """What a guest's own QEMU does: block_resize, then the guest uses what is new."""
    at, length = GUEST[1:]
    commands = ("-c", f"truncate {2 * SIZE}", "-c", f"write -P {GUEST[0]} {at} {length}", "-c", "flush")
    node = {"driver": format, "file": {"driver": "file", "filename": str(path)}}
    if format == "qcow2":
        node["backing"] = None  # type: ignore[assignment]
    run("qemu-io", *commands, "json:" + json.dumps(node))


def grown_beside(rig: Rig, format: str) -> str:
    """A disk whose volume is longer than its record while nobody has it attached."""
    disk = made(rig, format)
    grow_and_write(rig.volume_path("a", disk), format)
    return disk


# -- a guest's QEMU grew it --------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_a_disk_grown_by_its_guest_keeps_what_the_guest_wrote(rig: Rig, format: str) -> None:
    disk = made(rig, format)
    before = rig.repository("a").state().images[disk]
    attached = rig.yard.prepare_image("a", disk)
    qemu_io(attached, f"truncate {2 * SIZE}", f"write -P 7 {SIZE} {MiB}", "flush")
    rig.yard.teardown_image("a", disk)
    info = rig.repository("a").state().images[disk]
    assert info.size_bytes == 2 * SIZE
    assert info.data_generation != before.data_generation
    assert info.revision != before.revision
    rig.expect("a", disk, GROWN)
    rig.write("a", disk, (9, 0, 512))
    rig.expect("a", disk, picture(2 * SIZE, ONE, GUEST, (9, 0, 512)))
    rig.clean_slate("a")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("by", ["prepare", "extend", "snapshot", "copy", "export", "optimize", "fix"])
def test_whoever_looks_at_a_longer_volume_takes_its_size_over(
    rig: Rig, format: str, by: str, tmp_path: Path
) -> None:
    disk = grown_beside(rig, format)
    wanted = GROWN
    if by == "prepare":
        rig.yard.prepare_image("a", disk)
        rig.yard.teardown_image("a", disk)
    elif by == "extend":
        assert code_of(lambda: rig.yard.extend_virtual_disk("a", disk, SIZE + MiB)) == "InvalidParameter"
        rig.yard.extend_virtual_disk("a", disk, 3 * SIZE)
        wanted = wanted.ljust(3 * SIZE, b"\0")
    elif by == "snapshot":
        rig.expect("a", rig.yard.create_snapshot("a", disk), GROWN)
    elif by == "copy":
        copy = rig.yard.copy_image("b", disk)
        rig.wait()
        rig.expect("b", copy, GROWN)
    elif by == "export":
        path = tmp_path / "out.raw"
        rig.yard.wait_for_task(rig.yard.export_image("a", disk, str(path), "raw").task_id, 60)
        assert path.read_bytes() == GROWN
    elif by == "optimize":
        rig.yard.set_strategy("a", disk, "performance")
        fix = next(fix for fix in fixes(rig.yard, "a", "optimize"))
        run_fix(rig.yard, "a", fix)
    else:
        (fix,) = fixes(rig.yard, "a", "clean")
        assert fix.runnable
        assert fix.image_id == disk
        run_fix(rig.host("two"), "a", fix)
    assert rig.repository("a").state().images[disk].size_bytes == len(wanted)
    rig.expect("a", disk, wanted)
    rig.wait()
    settle(rig.yard, "a", "b")
    rig.expect("a", disk, wanted)


def test_a_copy_of_what_a_disk_was_before_it_grew_is_no_base_of_equal_bytes(rig: Rig) -> None:
    """The origin goes with the size: a difference to an older copy has all that is new."""
    disk = made(rig, "raw")
    monday = rig.yard.copy_image("b", disk)
    rig.wait()
    grow_and_write(rig.volume_path("a", disk), "raw")
    tuesday = rig.yard.copy_image("b", disk, monday)
    rig.wait()
    rig.expect("b", tuesday, GROWN)
    copied = rig.yard.copy_image("a", tuesday)
    rig.wait()
    assert rig.repository("a").state().images[copied].origin is not None
    path = rig.volume_path("a", copied)
    with path.open("ab") as file:
        file.truncate(3 * SIZE)
    rig.expect("a", copied, GROWN.ljust(3 * SIZE, b"\0"))
    assert rig.repository("a").state().images[copied].origin is None


def test_a_size_that_is_no_whole_sector_is_rounded_up(rig: Rig) -> None:
    disk = made(rig, "raw")
    with rig.volume_path("a", disk).open("ab") as file:
        file.write(b"x" * 700)
    wanted = picture(SIZE, ONE) + b"x" * 700 + bytes(1024 - 700)
    rig.expect("a", disk, wanted)
    rig.clean_slate("a")


# -- an extend that was cut ------------------------------------------------------------------


@pytest.fixture(params=["before it grows", "after it grew", "before the seal"])
def cut_extend(
    request: pytest.FixtureRequest, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Extend a disk and die at one of the moments between the intent and the commit."""

    def extend(disk: str) -> None:
        with monkeypatch.context() as patch:
            if request.param == "before it grows":
                intercept(patch, sizes, "grow", before=kill)
            elif request.param == "after it grew":
                intercept(patch, sizes, "grow", after=kill)
            else:
                intercept(patch, planner, "seal_extend", before=kill)
            assert code_of(lambda: rig.yard.extend_virtual_disk("a", disk, 2 * SIZE)) == "InternalError"

    return extend


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("by", ["prepare", "extend", "snapshot", "copy", "optimize", "fix", "revert"])
def test_who_comes_after_an_extend_that_was_cut_settles_it(
    rig: Rig, cut_extend: Callable[[str], None], format: str, by: str
) -> None:
    disk = made(rig, format)
    cut_extend(disk)
    volume = rig.repository("a").state().volumes[rig.repository("a").state().images[disk].volume_id or ""]
    assert volume.extending is not None
    assert volume.extending.size_bytes == 2 * SIZE
    wanted = picture(SIZE, ONE)
    two = rig.host("two")
    if by == "prepare":
        rig.expect("a", disk, wanted, two)
    elif by == "extend":
        two.extend_virtual_disk("a", disk, 3 * SIZE)
        wanted = wanted.ljust(3 * SIZE, b"\0")
    elif by == "snapshot":
        rig.expect("a", two.create_snapshot("a", disk), wanted)
    elif by == "copy":
        copy = two.copy_image("b", disk)
        two.wait_for_tasks(60)
        rig.expect("b", copy, wanted)
    elif by == "optimize":
        two.set_strategy("a", disk, "performance")
        run_fix(two, "a", fixes(two, "a", "optimize")[0])
    elif by == "fix":
        (fix,) = fixes(two, "a")
        assert (fix.type, fix.image_id, fix.runnable) == ("clean", disk, True)
        run_fix(two, "a", fix)
        run_fix(two, "a", fix)
    elif format == "raw":
        return  # there is no Snapshot to go back to
    else:
        base = next(i.id for i in rig.repository("a").state().images.values() if i.kind == "snapshot")
        two.revert_virtual_disk("a", disk, base)
    rig.expect("a", disk, wanted)
    two.wait_for_tasks(60)
    settle(two, "a", "b")
    rig.expect("a", disk, wanted)
    assert all(v.extending is None for v in rig.repository("a").state().volumes.values())
    rig.clean_slate("a", "b")


def test_an_extend_that_fails_takes_itself_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = made(rig, "raw")

    def fail() -> None:
        raise OSError(28, "no room")

    with monkeypatch.context() as patch:
        intercept(patch, sizes, "grow", after=fail)
        assert code_of(lambda: rig.yard.extend_virtual_disk("a", disk, 2 * SIZE)) == "NoSpace"
    assert fixes(rig.yard, "a") == []
    assert rig.volume_path("a", disk).stat().st_size == SIZE
    rig.expect("a", disk, picture(SIZE, ONE))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("moment", ["grow", "others_may_win"])
def test_a_snapshot_beside_an_extend(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, format: str, moment: str
) -> None:
    """While it is open the Snapshot is refused, and may be asked for again; nothing is in doubt."""
    disk = made(rig, format)
    two = rig.host("two")
    options = {"new_image_id": str(uuid.uuid4())}
    first = two.create_snapshot("a", disk, options=options)
    seen: list[str] = []

    def snapshot() -> None:
        assert two.create_snapshot("a", disk, options=options) == first
        seen.append(code_of(lambda: two.create_snapshot("a", disk)))

    with monkeypatch.context() as patch:
        intercept(patch, sizes, moment, before=snapshot)
        rig.yard.extend_virtual_disk("a", disk, 2 * SIZE)
    assert seen == ["LeaseHeld"]
    base = two.create_snapshot("a", disk)
    rig.write("a", disk, GUEST)
    settle(two, "a")
    rig.expect("a", first, picture(SIZE, ONE))
    rig.expect("a", base, picture(2 * SIZE, ONE))
    rig.expect("a", disk, GROWN)
    rig.clean_slate("a")


@pytest.mark.parametrize("format", FORMATS)
def test_an_extend_within_a_snapshot(rig: Rig, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    """Both are done: the Snapshot has the size that the disk has at its commit."""
    disk = made(rig, format)
    two = rig.host("two")
    with monkeypatch.context() as patch:
        extend = lambda: two.extend_virtual_disk("a", disk, 2 * SIZE)  # noqa: E731 - one word of a test
        intercept(patch, rig.repository("a").storage, "create_volume", after=extend)
        base = rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, GUEST)
    rig.expect("a", base, picture(2 * SIZE, ONE))
    rig.expect("a", disk, GROWN)
    settle(two, "a")
    rig.expect("a", base, picture(2 * SIZE, ONE))
    rig.expect("a", disk, GROWN)


@pytest.mark.parametrize("format", FORMATS)
def test_an_extend_and_a_snapshot_cut_together(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """Whatever a guest is given afterwards it keeps."""
    disk = made(rig, format)
    two = rig.host("two")

    def cut_inside() -> None:
        with monkeypatch.context() as inner:
            intercept(inner, planner, "seal_extend", before=kill)
            assert code_of(lambda: two.extend_virtual_disk("a", disk, 2 * SIZE)) == "InternalError"
        raise OSError(5, "the power is gone")

    with monkeypatch.context() as patch:
        intercept(patch, rig.repository("a").storage, "create_volume", after=cut_inside)
        assert code_of(lambda: rig.yard.create_snapshot("a", disk)) == "StorageError"
    attached = rig.yard.prepare_image("a", disk)
    size = int(run("qemu-io", "-c", "length", "json:" + json.dumps(attached.blockdev)).split()[0] == "4")
    assert size == 1, "the guest sees what the record says"
    qemu_io(attached, f"write -P 5 {SIZE - MiB} {MiB}")
    rig.yard.teardown_image("a", disk)
    settle(two, "a")
    rig.expect("a", disk, picture(SIZE, ONE, (5, SIZE - MiB, MiB)))
    rig.clean_slate("a")


# -- an intent that is not the newest ------------------------------------------------------


@pytest.fixture
def log_within_extend(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Extend a disk; a backup of the log of the moment at which the intent stood and nothing more."""

    def extend(disk: str) -> Path:
        copies: list[Path] = []
        with monkeypatch.context() as patch:
            intercept(patch, sizes, "grow", before=lambda: copies.append(back_up(rig, "a")))
            rig.yard.extend_virtual_disk("a", disk, 2 * SIZE)
        return copies[0]

    return extend


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("by", ["prepare", "fix", "extend"])
def test_what_was_written_since_an_extend_is_not_cut(
    rig: Rig, log_within_extend: Callable[[str], Path], format: str, by: str
) -> None:
    """The log alone was put back: the intent looks as if it had been cut, and a guest has used the room."""
    disk = made(rig, format)
    backup = log_within_extend(disk)
    rig.write("a", disk, GUEST)
    rig.yard.disconnect_storage_repository("a")
    restore_log(rig, "a", backup)
    rig.yard.connect_storage_repository("a", rig.format, rig.place("a"))
    wanted = GROWN
    if by == "fix":
        for fix in fixes(rig.yard, "a"):
            run_fix(rig.yard, "a", fix)
    elif by == "extend":
        rig.yard.extend_virtual_disk("a", disk, 3 * SIZE)
        wanted = wanted.ljust(3 * SIZE, b"\0")
    rig.expect("a", disk, wanted)
    settle(rig.yard, "a")
    rig.expect("a", disk, wanted)
    assert rig.repository("a").state().images[disk].size_bytes == len(wanted)


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_cut_where_it_cannot_be_committed(
    rig: Rig, cut_extend: Callable[[str], None], format: str
) -> None:
    """The log of a newer version can be read, and must be left alone: so must the file be."""
    disk = made(rig, format)
    cut_extend(disk)
    before = rig.volume_path("a", disk).read_bytes()
    rig.repository("a").log.newer_minor = True
    assert code_of(lambda: rig.yard.prepare_image("a", disk)) == "Unsupported"
    assert rig.volume_path("a", disk).read_bytes() == before


# -- what cannot be taken over --------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_a_snapshot_that_somebody_made_longer(rig: Rig, format: str) -> None:
    """It is named, what is beyond its record is shown by nothing, and cut off only by force."""
    disk = made(rig, format)
    base = rig.yard.create_snapshot("a", disk)
    grow_and_write(rig.volume_path("a", base), format)
    rig.write("a", disk, (3, MiB, MiB))
    rig.expect("a", disk, picture(SIZE, ONE, (3, MiB, MiB)))
    (fix,) = fixes(rig.yard, "a")
    assert (fix.type, fix.image_id, fix.runnable) == ("clean", base, False)
    assert "longer" in (fix.waits_for or "")
    if format == "raw":
        rig.expect("a", base, picture(SIZE, ONE))
    else:
        assert code_of(lambda: rig.read("a", base)) == "ImageBroken"
    run_fix(rig.yard, "a", fix)
    assert fixes(rig.yard, "a") != []
    task = rig.yard.fix_storage_repository("a", fix, options={"force": True})
    assert rig.yard.wait_for_task(task.task_id, 60).error is None
    assert fixes(rig.yard, "a") == []
    rig.expect("a", base, picture(SIZE, ONE))
    rig.expect("a", disk, picture(SIZE, ONE, (3, MiB, MiB)))
    rig.clean_slate("a")


def test_what_is_added_while_a_size_is_taken_over_is_kept(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program lengthens a volume step by step, first by no whole sector: none of it is cut off."""
    disk = made(rig, "raw")
    path = rig.volume_path("a", disk)

    def append(data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data)

    append(b"x" * 700)
    with monkeypatch.context() as patch:
        intercept(patch, planner, "disk_of", before=lambda: append(b"y" * MiB))
        rig.yard.prepare_image("a", disk)
        rig.yard.teardown_image("a", disk)
    wanted = picture(SIZE, ONE) + b"x" * 700 + b"y" * MiB
    rig.expect("a", disk, wanted.ljust(-(-len(wanted) // 512) * 512, b"\0"))
    rig.clean_slate("a")
