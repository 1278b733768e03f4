"""What a copy may have as its base, and what becomes of the copy if the base goes before it is read."""

from __future__ import annotations

import uuid
from functools import partial

import pytest

from diskyard import KiB, errors
from diskyard.operations import freeze
from diskyard.repository.repository import Repository
from tests.api.helpers import (
    COMMIT_ONLY,
    SIZE,
    Killed,
    Rig,
    code_of,
    fixes,
    intercept,
    kill,
    picture,
    run_fix,
    settle,
)

FULL = (7, 0, SIZE)
LIVE = (3, 0, SIZE)
ONE = (1, 0, 4 * KiB)


def full_snapshot(rig: Rig, repo: str = "a") -> str:
    """A Snapshot whose disk is removed again."""
    disk = rig.disk(repo, FULL)
    snapshot = rig.yard.create_snapshot(repo, disk)
    rig.yard.remove_image(repo, disk)
    rig.wait()
    return snapshot


def pending_snapshot(rig: Rig) -> str:
    """A Snapshot of ``b`` that is still to be imported."""
    file = rig.folder / "file.raw"
    file.write_bytes(bytes([7]) * SIZE)
    imported: str = rig.yard.import_image("b", str(file), "raw", options={**COMMIT_ONLY, "as_": "snapshot"})
    return imported


# -- what is no base -------------------------------------------------------------------------


@pytest.mark.parametrize("meanwhile", ["its process dies", "a guest comes"])
def test_a_snapshot_that_was_begun_and_never_made(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Guests still write to its bytes. A copy waits until the Snapshot that is meant has come."""
    base = full_snapshot(rig)
    disk, live = rig.disk("a", LIVE, ONE), rig.disk("b", LIVE)
    apart = rig.host("two", connect=("b",))  # it cannot know that the id is used in the other repository
    copies = []

    def copy() -> None:
        copies.append(rig.yard.copy_image("b", disk, base, options=COMMIT_ONLY))
        if meanwhile == "its process dies":
            kill()
        rig.yard.prepare_image("b", live)

    with monkeypatch.context() as patch:
        intercept(patch, Repository, "make_empty", before=copy)
        with pytest.raises((errors.DiskyardError, Killed)):
            apart.create_snapshot("b", live, options={"new_image_id": base})
    if meanwhile == "a guest comes":
        rig.yard.teardown_image("b", live)
    settle(rig.yard, "a", "b")
    assert rig.yard.copy_image("b", base) == base
    rig.wait()
    settle(rig.yard, "a", "b")
    rig.write("b", live, (9, 0, SIZE))
    rig.expect("b", copies[0], picture(SIZE, LIVE, ONE))


def test_a_snapshot_that_was_never_made_of_a_disk_that_is_gone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says of the origin of its bytes was true when it was begun: a guest has written since."""
    base, disk = full_snapshot(rig), rig.disk("a", LIVE)
    live = rig.yard.copy_image("b", disk)
    rig.wait()
    apart = rig.host("two", connect=("b",))
    with monkeypatch.context() as patch:
        intercept(patch, Repository, "make_empty", before=kill)
        with pytest.raises((errors.DiskyardError, Killed)):
            apart.create_snapshot("b", live, options={"new_image_id": base})
    rig.write("b", live, (9, 0, SIZE))
    rig.yard.remove_image("b", live, options=COMMIT_ONLY)
    copy = rig.yard.copy_image("b", disk, base, options=COMMIT_ONLY)
    settle(rig.yard, "a", "b")
    rig.yard.copy_image("b", base)
    rig.wait()
    settle(rig.yard, "a", "b")
    rig.expect("b", copy, picture(SIZE, LIVE))


def test_a_disk_under_the_id_of_a_base_that_is_to_come(rig: Rig) -> None:
    """It is no base, so nothing waits for it: it can be removed, and makes room for the base."""
    base, disk = full_snapshot(rig), rig.disk("a", ONE)
    copy = rig.yard.copy_image("b", disk, base, options=COMMIT_ONLY)
    apart = rig.host("two", connect=("b",))
    apart.create_virtual_disk("b", SIZE, options={"new_image_id": base})
    settle(rig.yard, "a", "b")
    apart.remove_image("b", base)
    assert rig.yard.copy_image("b", base) == base
    rig.wait()
    settle(rig.yard, "a", "b")
    rig.expect("b", copy, picture(SIZE, ONE))


def test_a_snapshot_that_is_asked_for_again_after_it_was_removed(rig: Rig) -> None:
    """The work of a copy that it was the base of is not taken for an attempt to make it."""
    live, disk, new_id = rig.disk("b", FULL), rig.disk("a", ONE), str(uuid.uuid4())
    ask = partial(rig.yard.create_snapshot, "b", live, options={"new_image_id": new_id})
    base = ask()
    rig.yard.revert_virtual_disk("b", live, full_snapshot(rig, "b"))
    copy = rig.yard.copy_image("b", disk, base, options=COMMIT_ONLY)
    rig.yard.remove_image("b", base, options=COMMIT_ONLY)
    assert code_of(ask) == "ImageIdInUse"
    settle(rig.yard, "a", "b")
    rig.expect("b", copy, picture(SIZE, ONE))


# -- bases that go -----------------------------------------------------------------------


@pytest.mark.parametrize("base_is", ["pending", "complete", "not there yet"])
def test_a_base_that_arrived_after_its_copy_was_asked_for(rig: Rig, base_is: str) -> None:
    """It is not removed before the copy has a volume that reads it: nothing else would keep it."""
    disk = rig.disk("a", (1, 0, 4 * KiB))
    if base_is == "not there yet":
        source = rig.disk("a", (7, 0, SIZE))
        base = rig.yard.create_snapshot("a", source)
        copy = rig.yard.copy_image("b", disk, base, options=COMMIT_ONLY)
        assert rig.yard.copy_image("b", base) == base
    else:
        base = pending_snapshot(rig)
        copy = rig.yard.copy_image("b", disk, base, options=COMMIT_ONLY)
        if base_is == "complete":
            (mend,) = [fix for fix in fixes(rig.yard, "b", "mend") if fix.image_id == base]
            run_fix(rig.yard, "b", mend)
    assert code_of(lambda: rig.yard.remove_image("b", base)) == "ImageInUse"
    rig.yard.remove_image("a", disk)
    settle(rig.yard, "a", "b")
    rig.yard.remove_image("b", base)
    settle(rig.yard, "a", "b")
    rig.expect("b", copy, picture(SIZE, (1, 0, 4 * KiB)))


def test_a_base_whose_waiting_copy_is_removed(rig: Rig) -> None:
    """It can be removed then."""
    base = pending_snapshot(rig)
    copy = rig.yard.copy_image("b", rig.disk("a", (1, 0, 4 * KiB)), base, options=COMMIT_ONLY)
    rig.yard.remove_image("b", copy)
    rig.yard.remove_image("b", base)
    rig.clean_slate("b")


@pytest.mark.parametrize("base_is", ["pending", "complete"])
def test_a_base_that_is_removed_while_its_copy_is_begun(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, base_is: str
) -> None:
    """The copy is refused: it would wait for what nobody has any more. Nothing is left of it."""
    other, disk = rig.host("two"), rig.disk("a", ONE)
    base = pending_snapshot(rig)
    if base_is == "complete":
        settle(rig.yard, "b")
    intercept(monkeypatch, freeze, "freeze_disk", before=partial(other.remove_image, "b", base))
    monkeypatch.setattr("diskyard.operations.copy.freeze_disk", freeze.freeze_disk)
    assert code_of(lambda: rig.yard.copy_image("b", disk, base)) == "ImageNotFound"
    settle(rig.yard, "a", "b")
    rig.clean_slate("a", "b")
    assert rig.yard.list_images("b").images == ()


@pytest.mark.parametrize("meanwhile", ["what reads it is removed", "it is restored"])
def test_a_broken_base_that_nobody_sees_any_more(rig: Rig, meanwhile: str) -> None:
    """It is kept for the copy that waits for it: neither removed with its last reader, nor merged into it."""
    base, disk = full_snapshot(rig), rig.disk("a", ONE)
    rig.yard.copy_image("b", base)
    rig.wait()
    reader = rig.yard.create_virtual_disk("b", SIZE, base)
    rig.write("b", reader, LIVE)
    rig.yard.remove_image("b", base, options=COMMIT_ONLY)
    rig.damage("b", base)
    copy = rig.yard.copy_image("b", disk, base, options=COMMIT_ONLY)
    if meanwhile == "what reads it is removed":
        rig.yard.remove_image("b", reader)
        rig.wait()
    (restore,) = [fix for fix in fixes(rig.yard, "b", "mend") if fix.image_id is None]
    run_fix(rig.yard, "b", restore)
    for image in (base, disk):
        rig.yard.remove_image("a", image)
    rig.wait()
    for merge in fixes(rig.yard, "b", "merge"):
        run_fix(rig.yard, "b", merge)
    settle(rig.yard, "a", "b")
    rig.expect("b", copy, picture(SIZE, ONE))
    rig.clean_slate("a", "b")


@pytest.mark.parametrize("base_is", ["nowhere", "lost after the copy was begun"])
def test_a_copy_whose_base_never_comes(rig: Rig, base_is: str) -> None:
    """Its source is kept, so force completes it: whole, and without a base."""
    base, disk = full_snapshot(rig), rig.disk("a", ONE)
    if base_is == "lost after the copy was begun":
        rig.yard.copy_image("b", base)
        rig.wait()
    copy = rig.yard.copy_image("b", disk, base, options=COMMIT_ONLY)
    if base_is == "lost after the copy was begun":
        rig.volume_path("b", base).unlink()
    for image in (disk, base):
        rig.yard.remove_image("a", image)
    rig.wait()
    settle(rig.yard, "a", "b")
    (mend,) = [fix for fix in fixes(rig.yard, "b", "mend") if fix.image_id == copy]
    assert "with force" in (mend.waits_for or "")
    with pytest.raises(errors.ImageBroken, match="its base"):
        run_fix(rig.yard, "b", mend)
    task = rig.yard.fix_storage_repository("b", mend, options={"force": True})
    assert rig.yard.wait_for_task(task.task_id).changed
    settle(rig.yard, "a", "b")
    rig.expect("b", copy, picture(SIZE, ONE))
    if base_is == "lost after the copy was begun":
        rig.yard.remove_image("b", base)
        settle(rig.yard, "b")
    rig.clean_slate("a", "b")
