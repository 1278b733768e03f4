"""Looks that only matter when another host is quick: each has a moment here in which it is all there is."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from diskyard import Diskyard, KiB, MiB
from diskyard.fixes.runner import run_fix as run_action
from diskyard.model.fix import CleanGarbage
from diskyard.operations import copy as copying
from diskyard.planner import switch
from tests.api.helpers import (
    COMMIT_ONLY,
    SIZE,
    Rig,
    code_of,
    fix_module,
    fixes,
    intercept,
    picture,
    run_fix,
    settle,
)

ONE = (1, 0, MiB)
TWO = (2, 512 * KiB, MiB)


def test_a_source_merged_while_a_snapshot_is_restored_from_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore has no commit that held its source: it holds it itself for as long as it reads."""
    yard, other = rig.yard, rig.host("two")
    disk = rig.disk("b", ONE)
    snapshot = yard.create_snapshot("b", disk)
    rig.write("b", disk, TWO)
    yard.copy_image("a", snapshot)
    rig.wait()
    rig.volume_path("a", snapshot).unlink()
    (fix,) = fixes(yard, "a", "mend")

    def remove_and_merge() -> None:
        other.remove_image("b", snapshot)
        assert other.wait_for_tasks(30)
        settle(other, "b")

    calls = intercept(monkeypatch, fix_module("mend"), "copy_view", before=remove_and_merge)
    assert run_fix(yard, "a", fix).changed
    assert calls
    rig.expect("a", snapshot, picture(SIZE, ONE))
    rig.expect("b", disk, picture(SIZE, ONE, TWO))
    settle(yard, "a", "b")
    rig.clean_slate("a", "b")


def release_first(rig: Rig, yard: Diskyard) -> None:
    """Release the first hold in ``a``, as a host does that has found the copy's lease to be free."""
    source, author = rig.repository("a", yard), yard.service.engine.author("test")
    image = next(found for found in source.state().images.values() if found.held_for)
    source.commit(lambda draft: switch.release(draft, image.id, image.held_for[0]), author)


def test_a_hold_released_before_the_copy_is_answered(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller is not told of a copy whose source may change: it is taken back."""
    yard, other = rig.yard, rig.host("two")
    disk = rig.disk("a", ONE)
    intercept(monkeypatch, copying, "require_hold", before=partial(release_first, rig, other))
    assert code_of(lambda: yard.copy_image("b", disk, options=COMMIT_ONLY)) == "LeaseHeld"
    assert not yard.list_images("b").images
    settle(yard, "a", "b")
    rig.expect("a", disk, picture(SIZE, ONE))
    rig.clean_slate("a", "b")


def test_a_copy_that_is_taken_back_while_another_waits_for_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one goes on to wait, until the first is copied again."""
    yard, other = rig.yard, rig.host("two")
    base, disk = yard.create_snapshot("a", rig.disk("a", ONE)), rig.disk("a", TWO)
    copies = []

    def release() -> None:
        release_first(rig, other)
        copies.append(other.copy_image("b", disk, base, options=COMMIT_ONLY))

    intercept(monkeypatch, copying, "require_hold", before=release)
    assert code_of(lambda: yard.copy_image("b", base, options=COMMIT_ONLY)) == "LeaseHeld"
    assert [image.image_id for image in yard.list_images("b").images] == copies
    assert yard.copy_image("b", base, options=COMMIT_ONLY) == base
    settle(yard, "b", "a")
    rig.expect("b", copies[0], picture(SIZE, TWO))


def test_a_hold_for_a_broken_snapshot_released_before_the_answer(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Snapshot was there before, and stays."""
    yard, other = rig.yard, rig.host("two")
    snapshot = yard.create_snapshot("a", rig.disk("a", ONE))
    yard.copy_image("b", snapshot)
    rig.wait()
    rig.volume_path("b", snapshot).unlink()
    intercept(monkeypatch, copying, "require_hold", before=partial(release_first, rig, other))
    assert code_of(lambda: yard.copy_image("b", snapshot, options=COMMIT_ONLY)) == "LeaseHeld"
    assert yard.get_image_status("b", snapshot).status == "broken"
    settle(yard, "b", "a")
    rig.expect("b", snapshot, picture(SIZE, ONE))


def test_a_disk_made_between_the_look_at_the_log_and_at_the_storage(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its volume was not in the log when check began, and is not garbage."""
    other = rig.host("two")
    made: list[str] = []

    def make() -> None:
        made.append(other.create_virtual_disk("a", SIZE))

    calls = intercept(monkeypatch, rig.repository("a").storage, "list_volumes", before=make)
    assert fixes(rig.yard, "a") == []
    assert calls
    rig.expect("a", made[0], bytes(SIZE))


@pytest.mark.parametrize("number", [1, 1 << 40])
def test_a_clean_of_garbage_that_is_none(rig: Rig, number: int) -> None:
    """A volume that the log names, or that carries a number above it, is left, whatever a fix says."""
    disk = rig.disk("a", ONE)
    repository = rig.repository("a")
    path = rig.volume_path("a", disk)
    if number > 1:
        path = path.with_name(f"{number:016x}-{'0' * 8}-0000-4000-8000-{'0' * 12}.raw")
        Path(path).write_bytes(b"from a log that was put back from a backup")
    action = CleanGarbage(name=path.name)
    assert run_action(rig.yard.service.engine, repository, action) is False
    assert path.exists()
    rig.expect("a", disk, picture(SIZE, ONE))
