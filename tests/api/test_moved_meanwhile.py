"""What was found is elsewhere when it is used: the whole copy is taken, and what was merged is found."""

from __future__ import annotations

from functools import partial

import pytest

from diskyard import KiB, MiB, errors
from diskyard.attachments.serve import Servers
from diskyard.model.fix import Merge
from diskyard.repository import settled
from tests.api.between import before_look
from tests.api.helpers import (
    COMMIT_ONLY,
    SIZE,
    Rig,
    clean_up,
    code_of,
    fix_module,
    fixes,
    intercept,
    picture,
    run_fix,
    settle,
)

ONE = (1, 0, MiB)
TWO = (2, MiB, 64 * KiB)
THREE = (3, 2 * MiB, MiB)


# -- a whole copy is preferred to one that cannot be read ------------------------------------


def _lost_here(rig: Rig) -> str:
    """A Snapshot that is whole in ``b``, and whose volume in ``a`` is gone."""
    source = rig.disk("b", ONE)
    snapshot = rig.yard.create_snapshot("b", source)
    rig.yard.copy_image("a", snapshot)
    rig.wait()
    rig.volume_path("a", snapshot).unlink()
    return snapshot


def test_a_disk_from_a_base_that_is_lost_here_and_whole_elsewhere(rig: Rig) -> None:
    snapshot = _lost_here(rig)
    disk = rig.yard.create_virtual_disk("a", SIZE, snapshot)
    rig.wait()
    rig.expect("a", disk, picture(SIZE, ONE))


@pytest.mark.parametrize("places", [None, ("a", "b")])
def test_a_copy_of_what_is_lost_in_the_first_repository(rig: Rig, places: tuple[str, ...] | None) -> None:
    """Whether it is found first by the order of connection, or by that in which they were named."""
    snapshot = _lost_here(rig)
    rig.yard.create_storage_repository(rig.format, rig.place("c"))
    rig.yard.connect_storage_repository("c", rig.format, rig.place("c"))
    options = {} if places is None else {"participating_repositories": places}
    assert rig.yard.copy_image("c", snapshot, options=options) == snapshot
    rig.wait()
    rig.expect("c", snapshot, picture(SIZE, ONE))


def test_a_copy_that_is_lost_everywhere(rig: Rig) -> None:
    """It is said to be broken, not to be nowhere."""
    snapshot = _lost_here(rig)
    rig.volume_path("b", snapshot).unlink()
    assert code_of(lambda: rig.yard.create_virtual_disk("a", SIZE, snapshot)) == "ImageBroken"


# -- merges below -----------------------------------------------------------------------------


def _deep(rig: Rig) -> tuple[str, list[str]]:
    """A disk on three Snapshots, of which the last has little and the disk much."""
    disk = rig.disk("a", ONE)
    found = [rig.yard.create_snapshot("a", disk)]
    for stretch in (TWO, (9, MiB, 64 * KiB)):
        rig.write("a", disk, stretch)
        found.append(rig.yard.create_snapshot("a", disk))
    rig.write("a", disk, THREE)
    return disk, found


NOW = picture(SIZE, ONE, (9, MiB, 64 * KiB), THREE)
MIDDLE = picture(SIZE, ONE, TWO)


@pytest.mark.parametrize("moves", ["stream_up", "commit_down"])
def test_a_merge_whose_parents_are_merged_meanwhile(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, moves: str
) -> None:
    """They are gone when it opens them: it opens what they were merged into."""
    yard, other = rig.yard, rig.host("two")
    disk, (first, middle, last) = _deep(rig)
    if moves == "commit_down":
        yard.revert_virtual_disk("a", disk, last)
        rig.write("a", disk, (7, 3 * MiB, KiB))
    yard.remove_image("a", last, options=COMMIT_ONLY)
    yard.remove_image("a", first, options=COMMIT_ONLY)
    merges = [fix for fix in fixes(yard, "a", "merge") if fix.data.action == Merge(image_id=last)]
    calls = intercept(monkeypatch, fix_module("merge"), moves, before=clean_up(other, "a"))
    (fix,) = merges
    assert run_fix(yard, "a", fix).changed
    assert calls
    settle(other, "a")
    wanted = NOW if moves == "stream_up" else picture(SIZE, ONE, (9, MiB, 64 * KiB), (7, 3 * MiB, KiB))
    rig.expect("a", disk, wanted)
    rig.expect("a", middle, MIDDLE)
    rig.clean_slate("a")


def test_a_mend_whose_source_is_merged_when_it_is_opened(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the Snapshot reads has gone into another volume: it is not broken, and the copy is made."""
    yard, other = rig.yard, rig.host("two")
    _, (first, middle, _) = _deep(rig)
    yard.copy_image("b", middle, options=COMMIT_ONLY)
    yard.remove_image("a", first, options=COMMIT_ONLY)
    (fix,) = fixes(yard, "b", "mend")
    calls = intercept(monkeypatch, settled, "opening_chain", before=clean_up(other, "a"))
    assert run_fix(yard, "b", fix).changed
    assert len(calls) > 2  # of two chains that are opened together
    rig.expect("b", middle, MIDDLE)
    settle(other, "b", "a")
    rig.clean_slate("a", "b")


def test_a_mend_whose_base_is_merged_when_it_is_opened(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same of what the copy itself reads."""
    yard, other = rig.yard, rig.host("two")
    _, (first, middle, _) = _deep(rig)
    source = rig.disk("b", ONE, THREE)
    copy = yard.copy_image("a", source, middle, options=COMMIT_ONLY)
    yard.remove_image("a", first, options=COMMIT_ONLY)
    (fix,) = fixes(yard, "a", "mend")
    calls = intercept(monkeypatch, settled, "opening_chain", before=clean_up(other, "a"))
    assert run_fix(yard, "a", fix).changed
    assert len(calls) > 2
    rig.expect("a", copy, picture(SIZE, ONE, THREE))
    settle(other, "a", "b")
    rig.expect("a", middle, MIDDLE)
    rig.clean_slate("a", "b")


# -- verbs ------------------------------------------------------------------------------------


def test_a_copy_whose_base_is_removed_holds_nothing(rig: Rig) -> None:
    """Before whichever of its looks it is removed: what the copy had held is released."""
    yard, other = rig.yard, rig.host("two")
    at, refused = 0, 0
    while True:
        at += 1
        source, base = rig.disk("a", ONE), rig.disk("b", TWO)
        with before_look(yard, at, partial(other.remove_image, "b", base, options=COMMIT_ONLY)) as looks:
            try:
                copy = yard.copy_image("b", source, base, options=COMMIT_ONLY)
            except errors.ImageNotFound:
                refused += 1
                assert not [image for image in rig.repository("a").state().images.values() if image.held_for]
            else:
                settle(other, "b", "a")
                rig.expect("b", copy, picture(SIZE, ONE))
        settle(other, "b", "a")
        if looks.seen < at:
            break
    assert refused > 3


@pytest.mark.embedded("the servers of a process")
def test_an_attachment_that_was_replaced_before_it_is_served(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its owner was given first is a Snapshot's by now: nobody may write to it."""
    yard = rig.yard
    disk = rig.disk("a", ONE)
    owner = {"owner": "guest"}
    made: list[str] = []

    def replace() -> None:
        yard.teardown_image("a", disk, options=owner)
        made.append(yard.create_snapshot("a", disk))
        yard.prepare_image("a", disk, options=owner)

    intercept(monkeypatch, Servers, "serve", before=replace)
    assert code_of(lambda: yard.prepare_image("a", disk, options={**owner, "serve": "nbd"})) == "ImageInUse"
    rig.expect("a", made[0], picture(SIZE, ONE))
