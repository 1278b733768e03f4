"""Disks and files that a running QEMU writes to, though the log does not say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from diskyard import MiB, errors
from diskyard.operations import attach, sizes
from tests.api.helpers import (
    COMMIT_ONLY,
    SIZE,
    Rig,
    fix_module,
    fixes,
    graph,
    intercept,
    picture,
    run,
    run_fix,
    settle,
)
from tests.live_qemu import LiveQemu

ONE = (1, 0, MiB)
TWO = (2, MiB, MiB)
WRITE_TWO = f"write -P 2 {MiB} {MiB}"


def foreign(rig: Rig, format: str) -> Path:
    """A file to import."""
    raw, path = rig.folder / "source.raw", rig.folder / f"live.{format}"
    raw.write_bytes(picture(SIZE, ONE))
    run("qemu-img", "convert", "-f", "raw", "-O", format, str(raw), str(path))
    return path


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_file_that_a_guest_writes_is_not_imported(rig: Rig, format: str) -> None:
    """It is refused with words before anything is made; a reader is in nobody's way."""
    path = foreign(rig, format)
    with LiveQemu(path, format) as guest:
        guest.ask(WRITE_TWO)
        with pytest.raises(errors.ImageInUse, match="running QEMU has it open for writing"):
            rig.yard.import_image("a", str(path), format)
    assert rig.yard.list_images("a").images == ()
    with LiveQemu(path, format, read_only=True):
        image = rig.yard.import_image("a", str(path), format)
        rig.wait()
    rig.expect("a", image, picture(SIZE, ONE, TWO))


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_guest_opens_a_file_before_it_is_read(rig: Rig, format: str) -> None:
    """The mend waits, and says for what; when the guest has ended it goes on."""
    path = foreign(rig, format)
    image = rig.yard.import_image("a", str(path), format, options=COMMIT_ONLY)
    with LiveQemu(path, format):
        (fix,) = fixes(rig.yard, "a")
        assert not fix.runnable
        assert "running QEMU" in (fix.waits_for or "")
        with pytest.raises(errors.ImageInUse, match="running QEMU"):
            run_fix(rig.yard, "a", fix)
    settle(rig.yard, "a")
    rig.expect("a", image, picture(SIZE, ONE))
    rig.clean_slate("a")


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_guest_opens_a_file_while_it_is_read(
    rig: Rig, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of it by then is not called an image."""
    path = foreign(rig, format)
    image = rig.yard.import_image("a", str(path), format, options=COMMIT_ONLY)
    (fix,) = fixes(rig.yard, "a")
    guest = LiveQemu(path, format)
    name = "copy_view" if format == "raw" else "private_copy"
    intercept(monkeypatch, fix_module("importing"), name, after=guest.__enter__)
    with pytest.raises(errors.ImageInUse, match="running QEMU"):
        run_fix(rig.yard, "a", fix)
    assert rig.yard.get_image_status("a", image).status == "broken"
    guest.end()
    settle(rig.yard, "a")
    rig.expect("a", image, picture(SIZE, ONE))


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_an_import_by_force(rig: Rig, format: str) -> None:
    """Who knows that the guest's writes are all in the file may import it, in whatever process."""
    path = foreign(rig, format)
    with LiveQemu(path, format):
        image = rig.yard.import_image("a", str(path), format, options={**COMMIT_ONLY, "force": True})
        settle(rig.host("two"), "a")
    rig.expect("a", image, picture(SIZE, ONE))
    rig.clean_slate("a")


def test_force_is_no_other_request(rig: Rig) -> None:
    """The same call with it, after its answer was lost, is the same request."""
    path, image_id = foreign(rig, "raw"), "11111111-2222-4333-8444-555555555555"
    for force in (False, True):
        options = {**COMMIT_ONLY, "new_image_id": image_id, "force": force}
        assert rig.yard.import_image("a", str(path), "raw", options=options) == image_id


def test_every_verb_sees_a_guest_that_nobody_prepared(rig: Rig) -> None:
    """What would freeze, move, lengthen or give out a disk is refused; the log stays as it is."""
    yard = rig.yard
    disk = rig.disk("a", ONE)
    base = yard.create_snapshot("a", disk)
    rig.write("a", disk, TWO)
    other = rig.disk("a", ONE)
    verbs: tuple[Callable[[], object], ...] = (
        lambda: yard.create_snapshot("a", disk),
        lambda: yard.copy_image("b", disk),
        lambda: yard.copy_image("a", other, disk),
        lambda: yard.extend_virtual_disk("a", disk, 2 * SIZE),
        lambda: yard.revert_virtual_disk("a", disk, base),
        lambda: yard.remove_image("a", disk),
        lambda: yard.prepare_image("a", disk),
        lambda: yard.prepare_image("a", disk, options={"read_only": True}),
    )
    attached = yard.prepare_image("a", disk)
    source = graph(attached)
    yard.teardown_image("a", disk)
    with LiveQemu(source) as guest:
        guest.ask("write -P 5 0 65536")
        before = rig.repository("a").state()
        for verb in verbs:
            with pytest.raises(errors.ImageInUse, match="running QEMU has"):
                verb()
        path = rig.folder / "out.raw"
        task = yard.export_image("a", disk, str(path), "raw")
        with pytest.raises(errors.ImageInUse, match="running QEMU has"):
            yard.wait_for_task(task.task_id, 60)
        assert not path.exists()
        after = rig.repository("a").state()
        assert {key: after.images[key] for key in before.images} == dict(before.images)
        assert rig.yard.list_images("b").images == ()
    settle(yard, "a")
    rig.expect("a", disk, picture(SIZE, ONE, TWO, (5, 0, 65536)))
    rig.clean_slate("a")


@pytest.mark.parametrize("moment", ["createSnapshot", "copyImage"])
def test_a_guest_that_starts_while_a_disk_is_frozen(
    rig: Rig, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look before the seal sees it: its writes do not go into what cannot change."""
    yard = rig.yard
    disk = rig.raw_disk("a", ONE)
    guest = LiveQemu(rig.volume_path("a", disk), "raw")
    intercept(monkeypatch, type(rig.repository("a")), "make_empty", after=guest.__enter__)
    intercept(monkeypatch, type(rig.repository("a").storage), "clone_volume", after=guest.__enter__)
    verb = yard.create_snapshot if moment == "createSnapshot" else lambda _, disk: yard.copy_image("b", disk)
    with pytest.raises(errors.ImageInUse, match="running QEMU has"):
        verb("a", disk)
    guest.ask(WRITE_TWO)
    guest.end()
    settle(yard, "a")
    rig.expect("a", disk, picture(SIZE, ONE, TWO))
    rig.clean_slate("a")


def test_fixes_wait_for_a_guest_that_nobody_prepared(rig: Rig) -> None:
    """Merge and optimize are listed as waiting and refuse to run; nothing of it is lost."""
    yard = rig.yard
    disk = rig.disk("a", ONE)
    middle = yard.create_snapshot("a", disk)
    source = graph(yard.prepare_image("a", disk))
    yard.teardown_image("a", disk)
    yard.remove_image("a", middle, options=COMMIT_ONLY)
    yard.set_strategy("a", disk, "performance")
    with LiveQemu(source) as guest:
        guest.ask(WRITE_TWO)  # in its memory: to all others the overlay looks as if it were empty
        for kind in ("merge", "optimize"):
            (fix,) = fixes(yard, "a", kind)
            assert not fix.runnable
            assert "running QEMU" in (fix.waits_for or "")
            with pytest.raises(errors.ImageInUse, match="running QEMU"):
                run_fix(yard, "a", fix)
    settle(yard, "a")
    rig.expect("a", disk, picture(SIZE, ONE, TWO))
    rig.clean_slate("a")


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_teardown_under_a_live_writer(rig: Rig, kind: str) -> None:
    """A guest that runs has the disk until it has ended, or until somebody answers for it."""
    yard = rig.yard
    disk = rig.disk("a", ONE)
    if kind == "qcow2":
        yard.create_snapshot("a", disk)
    attached = yard.prepare_image("a", disk)
    with LiveQemu(graph(attached)) as guest:
        guest.ask(WRITE_TWO)
        with pytest.raises(errors.ImageInUse, match="running QEMU has") as caught:
            yard.teardown_image("a", disk)
        assert "force" in caught.value.advice
        rig.expect_in_use("a", disk)
    yard.teardown_image("a", disk)
    rig.expect("a", disk, picture(SIZE, ONE, TWO))
    attached = yard.prepare_image("a", disk)
    with LiveQemu(graph(attached)):
        yard.teardown_image("a", disk, options={"force": True})
        assert yard.get_image_info("a", disk).attachments == ()


def test_a_reader_is_torn_down_while_it_reads(rig: Rig) -> None:
    """Only a writer has to be gone."""
    disk = rig.disk("a", ONE)
    attached = rig.yard.prepare_image("a", disk, options={"read_only": True})
    with LiveQemu(graph(attached), read_only=True):
        rig.yard.teardown_image("a", disk)


def test_a_guest_that_was_started_again_after_its_host(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attachment is of an earlier boot, and yet somebody writes: clean waits."""
    yard = rig.yard
    disk = rig.disk("a", ONE)
    attached = yard.prepare_image("a", disk, options={"owner": "vm"})
    rebooted = replace(yard.service.host.identity, boot_id="0" * 32)
    monkeypatch.setattr("diskyard.host.this_host", lambda: rebooted)
    after = rig.host("one", connect=())
    with LiveQemu(graph(attached)):
        (fix,) = fixes(after, "a")
        assert (fix.type, fix.runnable) == ("clean", False)
        assert "running QEMU" in (fix.waits_for or "")
        with pytest.raises(errors.ImageInUse, match="running QEMU"):
            run_fix(after, "a", fix)
        with pytest.raises(errors.ImageInUse, match="running QEMU"):
            after.teardown_image("a", disk, options={"owner": "vm"})
        assert len(after.get_image_info("a", disk).attachments) == 1
    settle(after, "a")
    assert after.get_image_info("a", disk).attachments == ()


def _doomed(rig: Rig, path: Path, disk: str) -> None:
    rig.yard.remove_image("a", disk, options=COMMIT_ONLY)


def _unnamed(rig: Rig, path: Path, disk: str) -> None:
    data = path.read_bytes()
    rig.yard.remove_image("a", disk)
    rig.wait()
    path.write_bytes(data)


@pytest.mark.parametrize("make", [_doomed, _unnamed])
def test_a_volume_that_a_guest_writes_is_not_deleted(
    rig: Rig, make: Callable[[Rig, Path, str], None]
) -> None:
    """Clean waits until the guest has ended, and says so."""
    yard = rig.yard
    disk = rig.disk("a", ONE)
    path = rig.volume_path("a", disk)
    make(rig, path, disk)
    with LiveQemu(path, "raw"):
        (fix,) = fixes(yard, "a")
        assert (fix.type, fix.runnable) == ("clean", False)
        assert "running QEMU" in (fix.waits_for or "")
        with pytest.raises(errors.ImageInUse, match="running QEMU"):
            run_fix(yard, "a", fix)
        assert path.exists()
    settle(yard, "a")
    assert not path.exists()
    rig.clean_slate("a")


def test_a_snapshot_into_which_somebody_writes_is_not_copied(rig: Rig) -> None:
    """Nobody may write there; whoever reads it then would read a mixture of moments."""
    yard = rig.yard
    disk = rig.disk("a", ONE)
    path = rig.volume_path("a", disk)
    snapshot = yard.create_snapshot("a", disk)
    image = yard.copy_image("b", snapshot, options=COMMIT_ONLY)
    with LiveQemu(path, "raw"):
        (fix,) = fixes(yard, "b")
        with pytest.raises(errors.ImageInUse, match="running QEMU has"):
            run_fix(yard, "b", fix)
    settle(yard, "a", "b")
    rig.expect("b", image, picture(SIZE, ONE))


def _outcome(verb: Callable[[], object]) -> str:
    """What a verb that is called in the middle of another comes to."""
    try:
        verb()
    except errors.DiskyardError as error:
        return error.code
    return "done"


@pytest.mark.parametrize("beside", ["prepareImage", "extendVirtualDisk", "merge"])
def test_work_that_a_guest_refuses_does_not_explain_it(
    rig: Rig, beside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its leases are taken before the guest is found: whoever looks meanwhile must not take that for ours."""
    yard, other = rig.yard, rig.host("two")
    disk = rig.disk("a", ONE)
    base = yard.create_snapshot("a", disk)
    source = graph(yard.prepare_image("a", disk))
    yard.teardown_image("a", disk)
    yard.remove_image("a", base, options=COMMIT_ONLY)
    (fix,) = fixes(yard, "a", "merge")
    work: dict[str, tuple[object, Callable[[], object]]] = {
        "prepareImage": (attach, lambda: yard.prepare_image("a", disk)),
        "extendVirtualDisk": (sizes, lambda: yard.extend_virtual_disk("a", disk, 2 * SIZE)),
        "merge": (fix_module("merge"), lambda: run_fix(yard, "a", fix)),
    }
    module, doing = work[beside]
    codes: list[str] = []

    def ask() -> None:
        codes.append(_outcome(lambda: other.create_snapshot("a", disk)))
        codes.append(_outcome(lambda: other.copy_image("b", disk)))

    name = "require_no_stranger_in" if beside == "merge" else "require_no_stranger"
    intercept(monkeypatch, module, name, before=ask)
    with LiveQemu(source) as guest:
        guest.ask(WRITE_TWO)
        with pytest.raises(errors.ImageInUse, match="running QEMU has"):
            doing()
    assert codes == ["ImageInUse", "ImageInUse"]
    settle(yard, "a", "b")
    rig.expect("a", disk, picture(SIZE, ONE, TWO))
    rig.clean_slate("a")


def test_a_reader_that_comes_and_goes_does_not_explain_a_writer(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Snapshot is prepared just as its bytes are looked at to be exported."""
    yard, other = rig.yard, rig.host("two")
    disk = rig.disk("a", ONE)
    path = rig.volume_path("a", disk)
    snapshot = yard.create_snapshot("a", disk)
    codes: list[str] = []

    def export() -> None:
        task = other.export_image("a", snapshot, str(rig.folder / "out.raw"), "raw")
        codes.append(_outcome(lambda: other.wait_for_task(task.task_id, 60)))

    intercept(monkeypatch, attach, "require_no_stranger", before=export)
    with LiveQemu(path, "raw"), pytest.raises(errors.ImageInUse, match="running QEMU has"):
        yard.prepare_image("a", snapshot)
    assert codes == ["ImageInUse"]
    assert not (rig.folder / "out.raw").exists()


def test_a_merge_explains_what_its_own_program_writes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads through the volumes of a merge goes on while that is at work, however long it takes."""
    yard, other = rig.yard, rig.host("two")
    disk = rig.raw_disk("a", (1, 0, 2 * MiB))
    base = yard.create_snapshot("a", disk)
    rig.write("a", disk, (5, 0, MiB))
    yard.create_snapshot("a", disk)
    yard.remove_image("a", base, options=COMMIT_ONLY)
    (fix,) = fixes(yard, "a", "merge")
    files = rig.files("a")
    written: list[bool] = []
    copies: list[str] = []

    def read() -> None:
        written.append(any(yard.service.host.files.name_is_written_by_qemu(str(path)) for path in files))
        copies.append(other.copy_image("b", disk))
        assert other.wait_for_tasks(60)

    intercept(monkeypatch, fix_module("work").Work, "advance", before=read)
    task = yard.fix_storage_repository("a", fix, options={"rate_limit": MiB // 4})
    assert yard.wait_for_task(task.task_id, 60).state == "done"
    assert written == [True]
    assert [task.error for task in other.list_tasks()] == [None]
    rig.expect("b", copies[0], picture(SIZE, (1, 0, 2 * MiB), (5, 0, MiB)))
