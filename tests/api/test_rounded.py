"""Storage as logical volumes are: containers longer than what they hold, in which there is garbage.

Most tests are about raw volumes of a length that is no multiple of the unit. One is taken over from another
module, and many in a thorough run. All of the API's suite runs on this format by
``DISKYARD_TEST_FORMAT=rounded-1.0``; what fails then is in :data:`NOT_HERE`.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from msgspec.structs import replace

from diskyard import KiB, MiB
from diskyard.fixes.runner import run_fix as run_directly
from diskyard.model.fix import Mend, Optimize
from diskyard.model.transaction import Draft
from diskyard.mover.qemu import grow as mover
from diskyard.operations import sizes
from diskyard.planner import optimize as optimize_planner
from diskyard.planner import sizes as planner
from diskyard.repository.repository import Repository
from diskyard.storage.interface import Lease
from diskyard.testing import rounded
from diskyard.testing.effort import Effort
from diskyard.testing.rounded.storage import UNIT_BYTES
from tests.api import (
    test_beyond_the_record,
    test_copy,
    test_disks,
    test_fixes,
    test_flow,
    test_merging,
    test_resume,
    test_sizes,
    test_strategy,
    test_transfer,
)
from tests.api.helpers import (
    Rig,
    Stretch,
    code_of,
    fix_module,
    fixes,
    graph,
    intercept,
    kill,
    picture,
    qemu_io,
    run,
    run_fix,
    same_bytes,
    settle,
)
from tests.api.test_histories import back_up, restore_log

ALWAYS = {"test_the_flow_of_eight_steps": test_flow.test_the_flow_of_eight_steps}
IF_THOROUGH: tuple[ModuleType, ...] = (
    test_beyond_the_record,
    test_copy,
    test_disks,
    test_fixes,
    test_flow,
    test_merging,
    test_resume,
    test_sizes,
    test_strategy,
    test_transfer,
)
_FULL = "it says how few bytes a volume occupies, and here all of its container is allocated"
_UP = "it counts on a merge that goes up, as the smaller side is moved, and here both have a unit"
_RAW = "it counts on a new disk that is raw and reserved, and here nothing would have written its zeros"
#: What cannot be on such storage, in these modules and (the last three) in others, and why.
NOT_HERE = {
    "test_a_disk_is_copied_whole": _FULL,
    "test_a_difference_to_a_snapshot": _FULL,
    "test_a_new_disk_reads_zeros": _FULL,
    "test_a_base_that_arrives_later": _FULL,
    "test_snapshots_on_two_sides_are_one": _FULL,
    "test_copies_in_a_row_wait_for_each_other": _FULL,
    "test_performance_keeps_a_copys_base_until_optimized": _FULL,
    "test_import": _FULL,
    "test_remove_merges_in_both_directions": _UP,
    "test_a_merge_run_twice_with_a_write_between": _UP,
    "test_a_guest_that_starts_during_a_merge": _UP,
    "test_two_hosts_merge_at_once": _UP,
    "test_verbs_during_a_merge": _UP,
    "test_performance_is_raw_and_reserved": _RAW,
    "test_a_performance_disk_that_was_extended": _RAW,
    "test_room_adds_up": _FULL,
    "test_exclusive_and_shared_bytes": _FULL,
    "test_a_merge_whose_parents_are_merged_meanwhile": _UP,
}
chain = test_beyond_the_record.chain
cut_extend, log_within_extend = test_sizes.cut_extend, test_sizes.log_within_extend


def _taken_over() -> Iterator[tuple[str, object]]:
    yield from ALWAYS.items()
    for module in IF_THOROUGH if Effort.of_environment().thorough else ():
        for name, test in vars(module).items():
            if name.startswith("test_") and callable(test) and name not in NOT_HERE:
                yield name, test


globals().update(_taken_over())

SIZE = 3 * MiB + 512  # it ends inside of a unit, and of a sector of 4 KiB
WITHIN, BEYOND = SIZE + 512 * KiB, 2 * UNIT_BYTES + MiB
ONE: Stretch = (1, MiB, 64 * KiB)
LAST: Stretch = (2, SIZE - 512, 512)
HELD = picture(SIZE, ONE, LAST)


@pytest.fixture
def rig(quick_folder: Path) -> Iterator[Rig]:
    """A host with two empty repositories of the format."""
    made = Rig(quick_folder, format=rounded.FORMAT)
    yield made
    made.close()


def raw_disk(rig: Rig, size: int, *stretches: Stretch) -> str:
    """A disk in ``b`` that is one raw volume: a copy, which writes zeros too."""
    disk = rig.yard.copy_image("b", rig.disk("a", *stretches, size=size))
    rig.wait()
    path = rig.volume_path("b", disk)
    assert path.suffix == ".raw"
    data = path.read_bytes()
    assert len(data) % UNIT_BYTES == 0
    assert 0 not in data[size:]
    return disk


@pytest.fixture
def raw(rig: Rig) -> str:
    """One of :data:`HELD`."""
    return raw_disk(rig, SIZE, ONE, LAST)


def longer(size: int, *stretches: Stretch) -> bytes:
    """:data:`HELD` of a disk that was extended, then written so."""
    return picture(size, ONE, LAST, *stretches)


# -- what is shown ---------------------------------------------------------------------------


def test_a_guest_sees_no_more_than_its_disk(rig: Rig, raw: str) -> None:
    """Whether it reads or writes, and however it is told: not even its last sector goes on."""
    assert rig.yard.check_storage_repository("b", options={"deep": True}) == []
    rig.expect("b", raw, HELD)
    attached = rig.yard.prepare_image("b", raw)
    assert (attached.path, attached.format) == (None, None)  # a file alone does not say where the disk ends
    same_bytes(rig.convert(graph(attached)), HELD)
    (piece,) = ET.fromstring(attached.libvirt_xml).iter("slice")  # noqa: S314 - our own
    assert piece.attrib == {"type": "storage", "offset": "0", "size": str(SIZE)}
    qemu_io(attached, f"write -P 7 {SIZE - 512} 512", "flush")
    assert "failed" in run("qemu-io", "-c", f"write {SIZE} 512", graph(attached), check=False)
    rig.yard.teardown_image("b", raw)
    rig.expect("b", raw, picture(SIZE, ONE, (7, SIZE - 512, 512)))


def test_nor_where_it_is_served() -> None:
    """The state is in a folder whose name leaves room for that of a socket."""
    with tempfile.TemporaryDirectory(prefix="dy-") as folder:
        rig = Rig(Path(folder), format=rounded.FORMAT)
        raw = raw_disk(rig, SIZE, ONE, LAST)
        attached = rig.yard.prepare_image("b", raw, options={"serve": "nbd"})
        same_bytes(rig.convert(str(attached.nbd_uri), "raw"), HELD)
        rig.yard.teardown_image("b", raw)
        rig.close()


@pytest.mark.parametrize("format", ["raw", "vmdk"])
def test_what_is_exported(rig: Rig, raw: str, format: str) -> None:
    file = rig.folder / f"file.{format}"
    rig.yard.wait_for_task(rig.yard.export_image("b", raw, str(file), format).task_id, 60)
    same_bytes(rig.convert(str(file), format), HELD)


def test_what_is_imported_and_copied_on(rig: Rig) -> None:
    """Whole, and as a difference."""
    file = rig.folder / "file.raw"
    file.write_bytes(HELD)
    disk = rig.yard.import_image("b", str(file), "raw")
    rig.wait()
    assert rig.volume_path("b", disk).stat().st_size == UNIT_BYTES
    monday = rig.yard.copy_image("a", disk)
    rig.wait()
    rig.yard.extend_virtual_disk("b", disk, WITHIN)
    rig.write("b", disk, (3, SIZE, 512))
    tuesday = rig.yard.copy_image("a", disk, monday)
    rig.wait()
    rig.expect("a", monday, HELD)
    rig.expect("a", tuesday, longer(WITHIN, (3, SIZE, 512)))
    rig.clean_slate("a", "b")


def test_a_new_disk_for_performance(rig: Rig) -> None:
    """Nothing would write its zeros in a raw volume: it is qcow2, until optimizing writes them."""
    disk = rig.yard.create_virtual_disk("a", SIZE, options={"strategy": "performance"})
    rig.expect("a", disk, bytes(SIZE))
    assert rig.volume_path("a", disk).suffix == ".qcow2"
    settle(rig.yard, "a")
    assert rig.volume_path("a", disk).suffix == ".raw"
    assert rig.yard.get_image_status("a", disk).status == "optimized"
    rig.expect("a", disk, bytes(SIZE))
    rig.clean_slate("a")


# -- what a disk gains -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [WITHIN, UNIT_BYTES, BEYOND])
def test_what_a_disk_gains_is_zeros(rig: Rig, raw: str, size: int) -> None:
    """Whether its container has that already or not."""
    rig.yard.extend_virtual_disk("b", raw, size)
    rig.expect("b", raw, longer(size))
    rig.clean_slate("b")


def die_before_zeros(patch: pytest.MonkeyPatch) -> None:
    intercept(patch, mover, "write_zeros", before=kill)


def die_before_growing(patch: pytest.MonkeyPatch) -> None:
    intercept(patch, sizes, "grow", before=kill)


def die_before_the_seal(patch: pytest.MonkeyPatch) -> None:
    intercept(patch, planner, "seal_extend", before=kill)


@pytest.mark.parametrize("size", [WITHIN, BEYOND])
@pytest.mark.parametrize("die", [die_before_growing, die_before_zeros, die_before_the_seal])
def test_an_extend_that_was_cut(
    rig: Rig, raw: str, monkeypatch: pytest.MonkeyPatch, die: Callable[[pytest.MonkeyPatch], None], size: int
) -> None:
    """It is taken back whatever it left there, and what is there is zeros when the disk is extended again."""
    with monkeypatch.context() as patch:
        die(patch)
        assert code_of(lambda: rig.yard.extend_virtual_disk("b", raw, size)) == "InternalError"
    two = rig.host("two")
    (fix,) = fixes(two, "b")
    assert (fix.type, fix.image_id, fix.runnable) == ("clean", raw, True)
    run_fix(two, "b", fix)
    rig.expect("b", raw, HELD, two)
    assert rig.volume_path("b", raw).stat().st_size == UNIT_BYTES
    two.extend_virtual_disk("b", raw, size)
    rig.expect("b", raw, longer(size), two)
    rig.clean_slate("b")


@pytest.mark.parametrize("size", [WITHIN, BEYOND])
@pytest.mark.parametrize("happens", ["a fix that fails", "a crash in taking it back"])
def test_what_happens_before_an_extend_is_taken_back(
    rig: Rig, raw: str, monkeypatch: pytest.MonkeyPatch, happens: str, size: int
) -> None:
    """It is still known that what is there is nobody's."""
    rig.yard.set_strategy("b", raw, "performance")
    (optimize,) = fixes(rig.yard, "b", "optimize")
    with monkeypatch.context() as patch:
        die_before_zeros(patch)
        assert code_of(lambda: rig.yard.extend_virtual_disk("b", raw, size)) == "InternalError"
    if happens == "a fix that fails":
        with monkeypatch.context() as patch:
            intercept(patch, sizes, "settle_size", before=kill)
            assert code_of(lambda: run_fix(rig.yard, "b", optimize)) == "InternalError"
    else:
        with monkeypatch.context() as patch:
            intercept(patch, planner, "take_back", before=kill)
            assert code_of(lambda: rig.read("b", raw)) == "InternalError"
    rig.expect("b", raw, HELD)
    rig.yard.extend_virtual_disk("b", raw, size)
    rig.expect("b", raw, longer(size))


@pytest.mark.parametrize("size", [WITHIN, BEYOND])
def test_the_note_of_an_extend_that_a_power_cut_brings_back(
    rig: Rig, raw: str, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Its removal is not durable. It says nothing of what a guest has written there since."""
    note = Path(rig.place("b")["path"]) / "progress" / raw
    backups: list[Path] = []
    removed: list[bytes] = []
    with monkeypatch.context() as patch:
        intercept(patch, sizes, "grow", before=lambda: backups.append(back_up(rig, "b")))
        removing = rig.repository("b").storage
        intercept(patch, removing, "remove_progress", before=lambda: removed.append(note.read_bytes()))
        rig.yard.extend_virtual_disk("b", raw, size)
    assert not note.exists()
    note.write_bytes(removed[0])
    rig.write("b", raw, (9, size - 512, 512))
    rig.yard.disconnect_storage_repository("b")
    restore_log(rig, "b", backups[0])
    rig.yard.connect_storage_repository("b", rig.format, rig.place("b"))
    rig.expect("b", raw, longer(size, (9, size - 512, 512)))


@pytest.mark.parametrize("size", [WITHIN, BEYOND])
@pytest.mark.parametrize("happens", ["it cannot be read", "its end is not taken", "a mend that fails"])
def test_the_note_of_an_extend_that_was_cut(
    rig: Rig, raw: str, monkeypatch: pytest.MonkeyPatch, happens: str, size: int
) -> None:
    """Nothing but the end of the extend takes it away, and what cannot be read is not absent."""
    with monkeypatch.context() as patch:
        die_before_zeros(patch)
        assert code_of(lambda: rig.yard.extend_virtual_disk("b", raw, size)) == "InternalError"
    with monkeypatch.context() as patch:
        if happens == "it cannot be read":
            unreadable_notes(patch, rig)
            assert code_of(lambda: rig.read("b", raw)) == "StorageError"
        elif happens == "its end is not taken":
            change = partial(change_volume, rig, raw)
            calls = intercept(patch, sizes, "_cut_back", after=change)
            rig.expect("b", raw, HELD)
            assert len(calls) == 2
        else:
            intercept(patch, fix_module("mend"), "look_at", before=kill)
            repo = rig.repository("b")
            mend = partial(run_directly, rig.yard.service.engine, repo, Mend(image_id=raw))
            assert code_of(mend) == "InternalError"
    rig.expect("b", raw, HELD)
    rig.yard.extend_virtual_disk("b", raw, size)
    rig.expect("b", raw, longer(size))
    rig.clean_slate("b")


@pytest.mark.parametrize("size", [WITHIN, BEYOND])
@pytest.mark.parametrize("work", ["a copy", "an optimize that fails"])
def test_an_extend_just_after_other_work(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, work: str, size: int
) -> None:
    """It is cut while whoever had the disk's lease before has not told its end yet: its note stays."""
    engine, repo = rig.yard.service.engine, rig.repository("b")
    cut: list[str] = []

    def extend(disk: str) -> None:
        with monkeypatch.context() as patch:
            die_before_zeros(patch)
            cut.append(code_of(lambda: rig.yard.extend_virtual_disk("b", disk, size)))

    if work == "a copy":
        source = rig.disk("a", ONE, LAST, size=SIZE)
        with monkeypatch.context() as patch:
            once_released(patch, extend)
            disk = rig.yard.copy_image("b", source)
            rig.wait()
    else:
        disk = raw_disk(rig, SIZE, ONE, LAST)
        rig.yard.set_strategy("b", disk, "performance")
        with monkeypatch.context() as patch:
            intercept(patch, optimize_planner, "seal_reserve", before=kill)
            once_released(patch, extend)
            optimize = partial(run_directly, engine, repo, Optimize(image_id=disk))
            assert code_of(optimize) == "InternalError"
    assert cut == ["InternalError"]
    rig.expect("b", disk, HELD)
    settle(rig.yard, "b")
    rig.clean_slate("b")


def once_released(patch: pytest.MonkeyPatch, act: Callable[[str], None]) -> None:
    """Do something as soon as a mend, or an optimize, has let go of its image in ``b``."""
    original, acted = Repository.work_on, list[str]()

    @contextmanager
    def work_on(repo: Repository, image_ids: Iterable[str], *, wait_s: float = 0.0) -> Iterator[list[Lease]]:
        (*ids,) = image_ids
        try:
            with original(repo, ids, wait_s=wait_s) as leases:
                begun = [image_id for image_id in ids if is_begun(repo, image_id)]
                yield leases
        finally:
            if len(ids) == 1 and begun and not acted:
                acted.extend(ids)
                act(ids[0])

    patch.setattr(Repository, "work_on", work_on)


def is_begun(repo: Repository, image_id: str) -> bool:
    """Whether there is something to do with an image: its bytes are not there, or not reserved."""
    image = repo.state().images.get(image_id)
    return image is not None and (image.pending is not None or image.strategy == "performance")


def unreadable_notes(patch: pytest.MonkeyPatch, rig: Rig) -> None:
    """The next read of what is noted beside the log fails."""
    files = rig.yard.service.host.files
    original, failed = files.read, list[str]()

    def read(path: str, *arguments: Any, **words: Any) -> bytes | None:
        if "/progress/" in path and not failed:
            failed.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return original(path, *arguments, **words)

    patch.setattr(files, "read", read)


def change_volume(rig: Rig, disk: str) -> None:
    """Another host changes something in the record of a disk's volume."""

    def plan(draft: Draft) -> None:
        volume = draft.state.volumes[str(draft.state.images[disk].volume_id)]
        draft.put_volume(replace(volume, preallocated=not volume.preallocated))

    engine = rig.yard.service.engine
    rig.repository("b").commit(plan, engine.author("setStrategy"))


def test_an_extend_that_has_nothing_to_do_leaves_no_note(rig: Rig, raw: str) -> None:
    before = rig.yard.get_image_status("b", raw)
    rig.yard.extend_virtual_disk("b", raw, SIZE)
    assert rig.yard.get_image_status("b", raw) == before


@pytest.mark.parametrize("size", [WITHIN, BEYOND])
def test_what_was_written_since_an_extend_is_kept(
    rig: Rig, raw: str, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The log alone was put back, to the moment of the intent: it looks as if the extend had been cut."""
    copies: list[Path] = []
    with monkeypatch.context() as patch:
        intercept(patch, sizes, "grow", before=lambda: copies.append(back_up(rig, "b")))
        rig.yard.extend_virtual_disk("b", raw, size)
    rig.write("b", raw, (9, size - 512, 512))
    rig.yard.disconnect_storage_repository("b")
    restore_log(rig, "b", copies[0])
    rig.yard.connect_storage_repository("b", rig.format, rig.place("b"))
    rig.expect("b", raw, longer(size, (9, size - 512, 512)))
    rig.clean_slate("b")


@pytest.mark.parametrize("size", [WITHIN, BEYOND])
def test_a_merge_into_it(rig: Rig, raw: str, size: int) -> None:
    """Of what was written to a disk since it was frozen, and extended."""
    snapshot = rig.yard.create_snapshot("b", raw)
    rig.yard.extend_virtual_disk("b", raw, size)
    written: Stretch = (3, size - 128 * KiB, 64 * KiB)
    rig.write("b", raw, written)
    rig.expect("b", snapshot, HELD)
    rig.expect("b", raw, longer(size, written))
    rig.yard.remove_image("b", snapshot)
    settle(rig.yard, "b")
    assert rig.volume_path("b", raw).suffix == ".raw"
    rig.expect("b", raw, longer(size, written))
    rig.clean_slate("b")


def test_a_merge_upwards(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the volume that holds more than a unit: what QEMU leaves out is nobody's garbage."""
    disk = rig.disk("a", ONE, size=BEYOND)
    rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, (2, MiB, 512))
    removed = rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, (3, 2 * MiB + 512, 5 * MiB))
    calls = intercept(monkeypatch, fix_module("merge"), "stream_up")
    rig.yard.remove_image("a", removed)
    settle(rig.yard, "a")
    assert calls
    rig.expect("a", disk, picture(BEYOND, ONE, (2, MiB, 512), (3, 2 * MiB + 512, 5 * MiB)))
    rig.clean_slate("a")


# -- what others do to it ------------------------------------------------------------------------


def test_a_rest_of_a_sector_is_zeros(rig: Rig) -> None:
    """Another program made a volume longer, by no whole sector: what it wrote is taken over."""
    disk = raw_disk(rig, UNIT_BYTES)
    with rig.volume_path("b", disk).open("ab") as file:
        file.write(b"x" * 700)
    rig.expect("b", disk, bytes(UNIT_BYTES) + b"x" * 700 + bytes(1024 - 700))
    rig.clean_slate("b")


def test_what_is_added_meanwhile_is_kept(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program goes on while the size is taken over."""
    disk = raw_disk(rig, UNIT_BYTES)
    path = rig.volume_path("b", disk)

    def goes_on() -> None:
        with path.open("ab") as file:
            file.write(b"y" * BEYOND)

    with path.open("ab") as file:
        file.write(b"x" * 700)
    with monkeypatch.context() as patch:
        intercept(patch, planner, "disk_of", before=goes_on)
        rig.yard.prepare_image("b", disk)
        rig.yard.teardown_image("b", disk)
    found = rig.read("b", disk)
    same_bytes(found[UNIT_BYTES : UNIT_BYTES + 700], b"x" * 700)
    same_bytes(found[UNIT_BYTES + 1024 : UNIT_BYTES + 700 + BEYOND], b"y" * (BEYOND - 324))
    rig.clean_slate("b")


def test_a_container_that_was_cut_short_is_damage(rig: Rig, raw: str) -> None:
    """Only where the record has bytes: the rest of the last unit is nobody's."""
    path = rig.volume_path("b", raw)
    with path.open("r+b") as file:
        file.truncate(SIZE)
    rig.expect("b", raw, HELD)
    with path.open("r+b") as file:
        file.truncate(SIZE - 512)
    assert rig.yard.get_image_status("b", raw).status == "broken"


def test_a_snapshot_that_another_program_made_longer(rig: Rig, raw: str) -> None:
    """By more than its unit: that is told, and cut off by force."""
    snapshot = rig.yard.create_snapshot("b", raw)
    path = rig.volume_path("b", snapshot)
    with path.open("ab") as file:
        file.write(b"x" * 512)
    (fix,) = fixes(rig.yard, "b")
    assert (fix.type, fix.image_id, fix.runnable) == ("clean", snapshot, False)
    rig.expect("b", snapshot, HELD)
    task = rig.yard.fix_storage_repository("b", fix, options={"force": True})
    assert rig.yard.wait_for_task(task.task_id, 60).error is None
    assert path.stat().st_size == UNIT_BYTES
    rig.expect("b", snapshot, HELD)
    rig.clean_slate("b")
