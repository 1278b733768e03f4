"""A repository that is put back to a moment in the middle of an operation, or under one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from diskyard import Diskyard, MiB, errors
from diskyard.fixes.runner import run_fix
from diskyard.log.store import LogKind
from diskyard.model.fix import CleanStray, CleanVolume, Fix
from diskyard.model.records import Volume
from diskyard.model.transaction import Draft
from diskyard.repository.repository import Repository
from diskyard.storage.localfs import layout
from diskyard.storage.localfs.storage import LocalStorage
from tests.api.between import before_look, outcome
from tests.api.helpers import COMMIT_ONLY, SIZE, Rig, code_of, picture, settle

ONE, NINE = (1, 0, SIZE), (9, 0, SIZE)
Middle = Callable[[Callable[[], str]], tuple[str, Path]]
FOLDERS = (*layout.FOLDERS, layout.RESERVE)


def place(rig: Rig, name: str) -> Path:
    return Path(rig.place(name)["path"])


def put_back(rig: Rig, name: str, backup: Path, folders: tuple[str, ...] = FOLDERS) -> None:
    """Make folders of a repository what they were, in the same place, as rsync --delete does."""
    for folder in folders:
        target = place(rig, name) / folder
        for path in target.iterdir():
            path.unlink()
        for path in (backup / folder).iterdir():
            shutil.copy2(path, target / path.name)


def restart(rig: Rig) -> None:
    """The host's process ends, and another one begins."""
    for repo in ("a", "b"):
        rig.yard.disconnect_storage_repository(repo)
        rig.yard.connect_storage_repository(repo, rig.format, rig.place(repo))


@pytest.fixture
def in_the_middle(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Middle:
    """Does something and answers a backup of repository a, of the moment before it made its first overlay."""

    def run(act: Callable[[], str]) -> tuple[str, Path]:
        backup = rig.folder / "backup"
        make_empty = Repository.make_empty

        def back_up_first(self: Repository, volume: Volume) -> None:
            if self.repo_id == "a" and not backup.exists():
                shutil.copytree(place(rig, "a"), backup)
            make_empty(self, volume)

        with monkeypatch.context() as patch:
            patch.setattr(Repository, "make_empty", back_up_first)
            image_id = act()
        assert backup.exists()
        return image_id, backup

    return run


def test_a_freeze_that_is_not_complete_is_no_source(rig: Rig, in_the_middle: Middle) -> None:
    """The frozen image is there, held by this very copy, and on the volume of a disk that goes on."""
    disk = rig.disk("a", ONE)
    made, backup = in_the_middle(lambda: rig.yard.copy_image("b", disk, options=COMMIT_ONLY))
    put_back(rig, "a", backup)
    restart(rig)
    rig.write("a", disk, NINE)
    [fix] = [fix for fix in rig.yard.check_storage_repository("b") if fix.image_id == made]
    assert not fix.runnable
    assert "captured other bytes" in (fix.waits_for or "")
    settle(rig.yard, "a", "b")
    assert rig.yard.get_image_status("b", made).status == "broken"
    rig.expect("a", disk, picture(SIZE, NINE))


def test_a_snapshot_that_is_not_complete_is_not_taken_for_its_copy(rig: Rig, in_the_middle: Middle) -> None:
    disk = rig.disk("a", ONE)
    made, backup = in_the_middle(lambda: rig.yard.create_snapshot("a", disk))
    rig.yard.copy_image("b", made)
    rig.wait()
    put_back(rig, "a", backup)
    restart(rig)
    assert code_of(lambda: rig.yard.copy_image("a", made)) == "ImageIdInUse"
    rig.write("a", disk, NINE)
    settle(rig.yard, "a")
    rig.yard.copy_image("a", made)
    rig.wait()
    rig.expect("a", made, picture(SIZE, ONE))
    rig.expect("a", disk, picture(SIZE, NINE))


def test_generations_of_format_1_0_are_of_no_known_history(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What that version wrote, with numbers alone, tells of no two images that they are equal."""
    with monkeypatch.context() as patch:
        patch.setattr(Draft, "entry", property(lambda self: f"{self.before.version + 1}."))
        disk = rig.disk("a", ONE)
        backup = rig.folder / "backup"
        shutil.copytree(place(rig, "a"), backup)
        rig.write("a", disk, (2, 0, MiB))
        monday = rig.yard.copy_image("b", disk, options={"as_": "snapshot"})
        rig.wait()
        put_back(rig, "a", backup)
        restart(rig)
        rig.write("a", disk, (9, 0, MiB))
    tuesday = rig.yard.copy_image("b", disk, monday)
    rig.wait()
    rig.expect("b", monday, picture(SIZE, ONE, (2, 0, MiB)))
    rig.expect("b", tuesday, picture(SIZE, ONE, (9, 0, MiB)))


def test_a_log_that_is_put_back_while_an_entry_is_published(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry follows nothing, and would be in everybody's way."""
    disk = rig.disk("a", ONE)
    backup = rig.folder / "backup"
    shutil.copytree(place(rig, "a"), backup)
    for number in range(5):
        rig.yard.set_user_data("a", disk, number)
    put = LocalStorage.put
    restored = list[int]()

    def restore_first(self: LocalStorage, kind: LogKind, number: int, data: bytes, **more: Any) -> bool:
        if kind == "entry" and self.place == str(place(rig, "a")) and not restored:
            restored.append(number)
            put_back(rig, "a", backup, (layout.LOG, layout.CHECKPOINTS))
        return put(self, kind, number, data, **more)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "put", restore_first)
        with pytest.raises(errors.CorruptRecord, match="replaced while this change was published"):
            rig.yard.set_user_data("a", disk, "lost")
    with pytest.raises(errors.CorruptRecord, match=r"history .* was replaced"):
        rig.yard.set_user_data("a", disk, "lost")
    other = rig.host("two")
    other.set_user_data("a", disk, "restored")
    assert other.get_image_info("a", disk).user_data == "restored"
    assert other.check_storage_repository("a", options={"deep": True}) == []


def run_by(yard: Diskyard, fix: Fix, **options: Any) -> None:
    task = yard.fix_storage_repository("a", fix, options=options)
    assert yard.wait_for_tasks(60)
    assert yard.get_task(task.task_id).state == "done"


def test_a_writer_that_dies_before_it_takes_its_entry_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check names the entry, nothing removes it unasked, and force makes the repository usable again."""
    disk = rig.disk("a", ONE)
    backup = rig.folder / "backup"
    shutil.copytree(place(rig, "a"), backup)
    for number in range(5):
        rig.yard.set_user_data("a", disk, number)
    log = place(rig, "a") / layout.LOG
    newest = max(path.stem for path in log.iterdir())
    stray = {path: path.read_bytes() for path in log.glob(f"{newest}.*")}
    put_back(rig, "a", backup, (layout.LOG, layout.CHECKPOINTS))
    for path, data in stray.items():
        path.write_bytes(data)
    other = rig.host("two")
    assert code_of(lambda: other.set_user_data("a", disk, 9)) == "CorruptRecord"
    found = other.check_storage_repository("a")
    [fix] = [fix for fix in found if isinstance(fix.data.action, CleanStray)]
    assert not fix.runnable
    assert "with force" in (fix.waits_for or "")
    run_by(other, fix)
    assert code_of(lambda: other.set_user_data("a", disk, 9)) == "CorruptRecord"
    run_by(other, fix, force=True)
    other.set_user_data("a", disk, "goes on")
    assert other.check_storage_repository("a", options={"deep": True}) == []
    restart(rig)
    rig.expect("a", disk, picture(SIZE, ONE))
    run_by(other, fix, force=True)
    assert other.get_image_info("a", disk).user_data == "goes on"


@pytest.mark.parametrize("what", ["several after a gap", "the next is damaged"])
def test_what_may_be_more_than_a_stray_entry_is_not_removed(rig: Rig, what: str) -> None:
    disk = rig.disk("a", ONE)
    for number in range(5):
        rig.yard.set_user_data("a", disk, number)
    log = place(rig, "a") / layout.LOG
    is_gap = what == "several after a gap"
    for path in sorted(log.glob(f"{sorted({path.stem for path in log.iterdir()})[-3 if is_gap else -1]}.*")):
        path.unlink() if is_gap else path.write_bytes(b"damaged")
    other = rig.host("two")
    assert code_of(lambda: other.set_user_data("a", disk, 9)) == "CorruptRecord"
    found = other.check_storage_repository("a")
    assert [fix for fix in found if isinstance(fix.data.action, CleanStray)] == []


def test_all_aliases_go_on_once_one_is_connected_anew(rig: Rig) -> None:
    disk = rig.disk("a", ONE)
    snapshot = rig.yard.create_snapshot("a", disk)
    backup = rig.folder / "backup"
    shutil.copytree(place(rig, "a"), backup)
    rig.yard.connect_storage_repository("alias", rig.format, rig.place("a"))
    for number in range(5):
        rig.yard.set_user_data("a", disk, number)
    put_back(rig, "a", backup, (layout.LOG, layout.CHECKPOINTS))
    for name in ("a", "alias"):
        assert code_of(partial(rig.yard.set_user_data, name, disk, 0)) == "CorruptRecord"
    rig.yard.connect_storage_repository("alias", rig.format, rig.place("a"))
    for name in ("a", "alias"):
        rig.yard.set_user_data(name, disk, name)
    copied = rig.yard.copy_image("b", snapshot)
    rig.wait()
    rig.expect("b", copied, picture(SIZE, ONE))


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_clean_under_which_the_history_is_replaced_deletes_nothing(rig: Rig, at: int) -> None:
    """Before each of its looks a log comes in which its volume, an acknowledged disk's here, is doomed."""
    other, disk = rig.host("two"), rig.disk("a", ONE)
    before, removed = rig.folder / "before", rig.folder / "removed"
    shutil.copytree(place(rig, "a"), before)
    other.remove_image("a", disk, options=COMMIT_ONLY)
    shutil.copytree(place(rig, "a"), removed)
    put_back(rig, "a", before)
    restart(rig)
    for number in range(2):
        rig.yard.set_user_data("a", disk, {"acknowledged": number})
    repository = rig.repository("a")
    volume_id = repository.state().images[disk].volume_id
    assert volume_id is not None
    with before_look(rig.yard, at, partial(put_back, rig, "a", removed, (layout.LOG,))):
        _, error = outcome(
            lambda: run_fix(rig.yard.service.engine, repository, CleanVolume(volume_id=volume_id))
        )
    assert error is None or isinstance(error, errors.CorruptRecord)
    put_back(rig, "a", before, (layout.LOG,))
    restart(rig)
    rig.expect("a", disk, picture(SIZE, ONE))
