"""A repository that was restored from a backup, or copied: numbers and markers come again, bytes do not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from diskyard import Diskyard, MiB, errors
from diskyard.fixes import mend as mending
from diskyard.host.identity import new_uuid
from diskyard.model.fix import Fix
from diskyard.operations.freeze import release_hold
from tests.api.helpers import COMMIT_ONLY, SIZE, Rig, code_of, picture, settle

ALL = (0x11, 0, SIZE)


def place(rig: Rig, name: str) -> Path:
    return Path(rig.place(name)["path"])


def back_up(rig: Rig, name: str) -> Path:
    """A backup of a repository's folder, of the moment."""
    copy = rig.folder / f"backup-{new_uuid()}"
    shutil.copytree(place(rig, name), copy)
    return copy


def restore(rig: Rig, name: str, backup: Path) -> None:
    """Put a backup back in a repository's place, between a disconnection and a connection."""
    rig.yard.disconnect_storage_repository(name)
    shutil.rmtree(place(rig, name))
    backup.rename(place(rig, name))
    rig.yard.connect_storage_repository(name, rig.format, rig.place(name))


def restore_log(rig: Rig, name: str, backup: Path) -> None:
    """Put back only the log: the volumes that came since are still there."""
    for folder in ("log", "checkpoints"):
        shutil.rmtree(place(rig, name) / folder)
        shutil.copytree(backup / folder, place(rig, name) / folder)


def run(yard: Diskyard, repo: str, fix: Fix, **options: bool) -> str:
    """Run a fix to its end: the code of its error, or whether it changed anything."""
    try:
        task = yard.wait_for_task(yard.fix_storage_repository(repo, fix, options=options).task_id)
    except errors.DiskyardError as error:
        return error.code
    return "changed" if task.changed else "unchanged"


def garbage(yard: Diskyard, repo: str) -> dict[str, bool]:
    """The volumes that check calls garbage, and whether it would delete them."""
    fixes = yard.check_storage_repository(repo)
    return {
        fix.description.split()[2].rstrip(","): fix.runnable
        for fix in fixes
        if "no record names" in fix.description
    }


# -- what is equal ----------------------------------------------------------------------------------


def test_a_copy_of_another_history_is_no_base_that_is_equal(rig: Rig) -> None:
    disk = rig.disk("a", (0x11, 0, MiB))
    backup = back_up(rig, "a")
    rig.write("a", disk, (0x22, 0, 2 * MiB))
    monday = rig.yard.copy_image("b", disk)
    rig.wait()
    restore(rig, "a", backup)
    rig.write("a", disk, (0x33, MiB, MiB))
    tuesday = rig.yard.copy_image("b", disk, monday)
    rig.wait()
    rig.expect("b", monday, picture(SIZE, (0x22, 0, 2 * MiB)))
    rig.expect("b", tuesday, picture(SIZE, (0x11, 0, MiB), (0x33, MiB, MiB)))


def test_what_a_guest_wrote_after_a_backup_that_was_made_while_it_ran(rig: Rig) -> None:
    """Both histories have the generation that began when the guest was attached."""
    disk = rig.disk("a", (0x11, 0, MiB))
    rig.yard.prepare_image("a", disk)
    backup = back_up(rig, "a")
    rig.yard.teardown_image("a", disk)
    rig.write("a", disk, (0x22, 0, MiB))
    monday = rig.yard.copy_image("b", disk)
    rig.wait()
    restore(rig, "a", backup)
    rig.yard.teardown_image("a", disk)
    tuesday = rig.yard.copy_image("b", disk, monday)
    rig.wait()
    rig.expect("b", tuesday, picture(SIZE, (0x11, 0, MiB)))


def test_a_guest_that_wrote_while_the_backup_was_made(rig: Rig) -> None:
    disk = rig.raw_disk("a", (0x11, 0, MiB))
    attached = rig.yard.prepare_image("a", disk)
    backup = back_up(rig, "a")
    with Path(attached.path or "").open("r+b") as file:
        file.write(b"\x22" * MiB)
    rig.yard.teardown_image("a", disk)
    monday = rig.yard.copy_image("b", disk)
    rig.wait()
    restore(rig, "a", backup)
    rig.yard.teardown_image("a", disk)
    tuesday = rig.yard.copy_image("b", disk, monday)
    rig.wait()
    rig.expect("b", tuesday, picture(SIZE, (0x11, 0, MiB)))


def test_a_revision_of_another_history_is_another_revision(rig: Rig) -> None:
    disk = rig.disk("a")
    backup = back_up(rig, "a")
    rig.yard.set_user_data("a", disk, "lost")
    read = rig.yard.get_image_info("a", disk).revision
    restore(rig, "a", backup)
    rig.yard.set_user_data("a", disk, "restored")
    late = {"if_revision": read}
    assert code_of(lambda: rig.yard.set_user_data("a", disk, "late", options=late)) == "RevisionMismatch"
    assert rig.yard.get_image_info("a", disk).user_data == "restored"


# -- what is garbage ---------------------------------------------------------------------------------


def test_volumes_of_another_history_are_kept(rig: Rig) -> None:
    backup = back_up(rig, "a")
    lost = rig.disk("a", ALL)
    path = rig.volume_path("a", lost)
    data = path.read_bytes()
    rig.yard.disconnect_storage_repository("a")
    restore_log(rig, "a", backup)
    rig.yard.connect_storage_repository("a", rig.format, rig.place("a"))
    assert garbage(rig.yard, "a") == {path.name: False}  # above the end of the log
    for _ in range(4):
        rig.yard.create_virtual_disk("a", SIZE)
    assert garbage(rig.yard, "a") == {path.name: False}  # and also once the log has grown past it
    for fix in rig.yard.check_storage_repository("a"):
        run(rig.yard, "a", fix)
    assert path.read_bytes() == data
    [fix] = [fix for fix in rig.yard.check_storage_repository("a") if path.name in fix.description]
    assert run(rig.yard, "a", fix, force=True) == "changed"
    assert not path.exists()


def test_what_this_history_made_and_forgot_is_cleaned(rig: Rig) -> None:
    disk = rig.disk("a", ALL)
    path = rig.volume_path("a", disk)
    data = path.read_bytes()
    rig.yard.remove_image("a", disk)
    rig.wait()
    assert not path.exists()
    path.write_bytes(data)  # as a writer does that was suspended for long
    assert garbage(rig.yard, "a") == {path.name: True}
    settle(rig.yard, "a")
    rig.clean_slate("a")
    assert not path.exists()


def test_a_history_that_is_replaced_under_a_running_process(rig: Rig) -> None:
    """It goes on reading, says so, and changes nothing until the repository is connected anew."""
    backup = back_up(rig, "a")
    lost = rig.disk("a", ALL)
    path = rig.volume_path("a", lost)
    data = path.read_bytes()
    restore_log(rig, "a", backup)
    other = rig.host("two")
    theirs = other.create_virtual_disk("a", SIZE)
    images = [info.image_id for info in rig.yard.list_images("a").images]
    assert images == [theirs]
    [health] = [info.health for info in rig.yard.list_storage_repositories() if info.repo_id == "a"]
    assert "history was replaced" in health
    with pytest.raises(errors.CorruptRecord, match=r"history .* was replaced"):
        rig.yard.create_virtual_disk("a", SIZE)
    assert not any(fix.runnable for fix in rig.yard.check_storage_repository("a"))
    assert path.read_bytes() == data
    rig.yard.connect_storage_repository("a", rig.format, rig.place("a"))
    rig.yard.create_virtual_disk("a", SIZE)
    assert garbage(rig.yard, "a") == {path.name: False}


# -- ids that were given to other bytes ------------------------------------------------------------------


def without_the_other(rig: Rig, repo: str) -> Diskyard:
    """A host that knows of one repository only."""
    return rig.host(new_uuid(), connect=(repo,))


def snapshot_of(yard: Diskyard, repo: str, disk: str, image_id: str) -> str:
    return yard.create_snapshot(repo, disk, options={"new_image_id": image_id})


def test_an_id_that_another_repository_has_is_refused(rig: Rig) -> None:
    disk, other = rig.disk("a", ALL), rig.disk("b")
    given = {"new_image_id": disk}
    file = rig.folder / "disk.raw"
    file.write_bytes(bytes(SIZE))
    for attempt in (
        lambda: rig.yard.create_virtual_disk("b", SIZE, options=given),
        lambda: rig.yard.create_snapshot("b", other, options=given),
        lambda: rig.yard.copy_image("b", other, options=given),
        lambda: rig.yard.import_image("b", str(file), "raw", options=given),
    ):
        assert code_of(attempt) == "ImageIdInUse"
    assert [info.image_id for info in rig.yard.list_images("b").images] == [other]


def test_a_snapshot_of_the_same_id_and_other_bytes_restores_nothing(rig: Rig) -> None:
    disk = rig.disk("a", ALL)
    snapshot = rig.yard.create_snapshot("a", disk)
    other = without_the_other(rig, "b")
    poison = rig.disk("b", (0x66, 0, SIZE))
    snapshot_of(other, "b", poison, snapshot)
    [named] = [fix for fix in rig.yard.check_storage_repository("a") if fix.image_id == snapshot]
    assert (named.type, named.runnable) == ("mend", False)
    assert "repository b has another image under this id" in (named.waits_for or "")
    rig.volume_path("a", snapshot).unlink()
    for fix in rig.yard.check_storage_repository("a"):
        assert not (fix.image_id == snapshot and fix.runnable)
        run(rig.yard, "a", fix)
    assert rig.yard.get_image_status("a", snapshot).status == "broken"


@pytest.mark.parametrize("size", [SIZE, 2 * SIZE])
def test_a_disk_of_the_same_id_restores_nothing(rig: Rig, size: int) -> None:
    disk = rig.disk("a", ALL)
    snapshot = rig.yard.create_snapshot("a", disk)
    other = without_the_other(rig, "b")
    other.create_virtual_disk("b", size, options={"new_image_id": snapshot})
    rig.volume_path("a", snapshot).unlink()
    [fix] = [fix for fix in rig.yard.check_storage_repository("a") if fix.image_id == snapshot]
    assert not fix.runnable
    run(rig.yard, "a", fix)
    assert rig.yard.get_image_status("a", snapshot).status == "broken"


def test_the_same_snapshot_elsewhere_restores_it(rig: Rig) -> None:
    disk = rig.disk("a", ALL)
    snapshot = rig.yard.create_snapshot("a", disk)
    rig.yard.copy_image("b", snapshot)
    rig.wait()
    rig.volume_path("a", snapshot).unlink()
    settle(rig.yard, "a")
    rig.clean_slate("a")
    rig.expect("a", snapshot, picture(SIZE, ALL))
    rig.volume_path("b", snapshot).unlink()  # what was restored is that image as well
    settle(rig.yard, "b")
    rig.clean_slate("b")
    rig.expect("b", snapshot, picture(SIZE, ALL))


def test_an_id_that_was_given_to_other_bytes_is_not_taken_for_the_copy(rig: Rig) -> None:
    disk = rig.disk("a", ALL)
    snapshot = rig.yard.create_snapshot("a", disk)
    rig.yard.copy_image("b", snapshot)
    rig.wait()
    rig.yard.remove_image("a", snapshot)
    rig.wait()
    settle(rig.yard, "a")
    rig.clean_slate("a")
    rig.write("a", disk, (0x22, 0, SIZE))
    lonely = without_the_other(rig, "a")
    snapshot_of(lonely, "a", disk, snapshot)
    assert code_of(lambda: rig.yard.copy_image("b", snapshot)) == "ImageIdInUse"
    rig.expect("b", snapshot, picture(SIZE, ALL))
    rig.yard.remove_image("b", snapshot)
    rig.wait()
    rig.yard.copy_image("b", snapshot)
    rig.wait()
    rig.expect("b", snapshot, picture(SIZE, (0x22, 0, SIZE)))


def test_a_copy_waits_for_the_very_image_that_it_was_made_of(rig: Rig) -> None:
    disk = rig.disk("a", ALL)
    snapshot = rig.yard.create_snapshot("a", disk)
    rig.yard.copy_image("b", snapshot, options=COMMIT_ONLY)
    rig.yard.disconnect_storage_repository("a")
    rig.yard.create_storage_repository(rig.format, rig.place("c"))
    lonely = rig.host("lonely", connect=("c",))
    poison = lonely.create_virtual_disk("c", SIZE)
    snapshot_of(lonely, "c", poison, snapshot)
    rig.yard.connect_storage_repository("c", rig.format, rig.place("c"))
    fixes = [fix for fix in rig.yard.check_storage_repository("b") if "complete" in fix.description]
    assert [fix.runnable for fix in fixes] == [False]
    assert run(rig.yard, "b", fixes[0]) == "ImageBroken"
    rig.yard.connect_storage_repository("a", rig.format, rig.place("a"))
    assert run(rig.yard, "b", fixes[0]) == "changed"
    rig.expect("b", snapshot, picture(SIZE, ALL))


# -- copies of a repository ---------------------------------------------------------------------------------


@contextmanager
def beside(rig: Rig, name: str, copy: Path) -> Iterator[Diskyard]:
    """Another host to which a copy of a repository's folder is that repository."""
    yard = rig.host(new_uuid(), connect=tuple({"a", "b"} - {name}))
    yard.connect_storage_repository(name, "localfs-1.0", {"path": str(copy)})
    yield yard


def run_all(yard: Diskyard, *repos: str) -> None:
    for repo in repos:
        for fix in yard.check_storage_repository(repo):
            if fix.runnable:
                run(yard, repo, fix)


def test_a_copy_of_the_target_ends_no_hold(rig: Rig) -> None:
    disk = rig.disk("a", ALL)
    copy = back_up(rig, "b")
    made = rig.yard.copy_image("b", disk, options=COMMIT_ONLY)
    with beside(rig, "b", copy) as other:
        holds = [fix for fix in other.check_storage_repository("a") if "kept for a copy" in fix.description]
        assert [fix.runnable for fix in holds] == [False]
        assert "a byte copy of the copy's repository" in (holds[0].waits_for or "")
        run_all(other, "a", "b")
    rig.write("a", disk, (0x22, 0, SIZE))
    run_all(rig.yard, "b")
    rig.expect("b", made, picture(SIZE, ALL))
    settle(rig.yard, "a", "b")
    rig.clean_slate("a", "b")


def test_a_copy_of_the_target_that_has_the_copy_as_well(rig: Rig) -> None:
    """It may complete its own, and lets the hold of the original's be."""
    disk = rig.disk("a", ALL)
    made = rig.yard.copy_image("b", disk, options=COMMIT_ONLY)
    copy = back_up(rig, "b")
    with beside(rig, "b", copy) as other:
        run_all(other, "a", "b")
        rig.expect("b", made, picture(SIZE, ALL), other)
    rig.write("a", disk, (0x22, 0, SIZE))
    run_all(rig.yard, "b")
    rig.expect("b", made, picture(SIZE, ALL))
    settle(rig.yard, "a", "b")
    rig.clean_slate("a", "b")


def test_a_restored_target_ends_no_hold_of_what_it_has_lost(rig: Rig) -> None:
    disk = rig.disk("a", ALL)
    backup = back_up(rig, "b")
    rig.yard.create_virtual_disk("b", SIZE)
    rig.yard.copy_image("b", disk, options=COMMIT_ONLY)
    rig.yard.disconnect_storage_repository("b")
    restore_log(rig, "b", backup)  # in the same place
    rig.yard.connect_storage_repository("b", rig.format, rig.place("b"))
    [hold] = [fix for fix in rig.yard.check_storage_repository("a") if "kept for a copy" in fix.description]
    assert not hold.runnable
    assert "restored to an older state" in (hold.waits_for or "")
    assert run(rig.yard, "a", hold, force=True) == "changed"
    rig.wait()


def test_a_mend_whose_hold_is_released_while_it_reads_is_not_sealed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = rig.disk("a", ALL)
    made = rig.yard.copy_image("b", disk, options=COMMIT_ONLY)
    copy = mending._copy

    def release_and_copy(*arguments: Any) -> None:
        copy(*arguments)
        home = rig.repository("a")
        [held] = [home.state().images[key] for key in home.state().held]
        release_hold(home, held.id, held.held_for[0], rig.yard.service.engine.author("another"))

    monkeypatch.setattr(mending, "_copy", release_and_copy)
    [fix] = rig.yard.check_storage_repository("b")
    assert run(rig.yard, "b", fix) == "LeaseHeld"
    assert rig.yard.get_image_status("b", made).status == "broken"
    progress = rig.repository("b").progress(made)
    assert progress is not None
    assert (progress.durable_bytes, progress.fingerprint) == (0, "")


def test_of_two_images_of_one_id_neither_is_chosen(rig: Rig) -> None:
    """The caller says which one is meant."""
    disk = rig.disk("a", ALL)
    snapshot = rig.yard.create_snapshot("a", disk)
    lonely = without_the_other(rig, "b")
    poison = rig.disk("b", (0x66, 0, SIZE))
    snapshot_of(lonely, "b", poison, snapshot)
    rig.yard.create_storage_repository(rig.format, rig.place("c"))
    rig.yard.connect_storage_repository("c", rig.format, rig.place("c"))
    assert code_of(lambda: rig.yard.copy_image("c", snapshot)) == "ImageIdInUse"
    assert code_of(lambda: rig.yard.create_virtual_disk("c", SIZE, snapshot)) == "ImageIdInUse"
    assert not rig.yard.list_images("c").images
    hint = {"image_hints": {snapshot: "a"}}
    made = rig.yard.create_virtual_disk("c", SIZE, snapshot, options=hint)
    rig.wait()
    rig.expect("c", made, picture(SIZE, ALL))
    rig.expect("a", rig.yard.create_virtual_disk("a", SIZE, snapshot), picture(SIZE, ALL))
