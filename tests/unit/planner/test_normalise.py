"""What every transaction leaves behind, and which drafts are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from msgspec.structs import replace

from diskyard import errors
from diskyard.model.records import Image, ImageSource, Origin, Pending
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.planner.change import remove
from diskyard.planner.normalise import normalise, verify
from tests.unit.records import ENTRY, attachment, building, copy_hold, disk, image, state, volume, weak

#: d -> v -> w (weak) -> p -> s (strong) -> r
CHAIN = state(
    disk("d", "v"), volume("v", "w"), weak("w", "p"), volume("p", "s"), image("s", "r"), volume("r")
)


def after(found: State, change: Callable[[Draft], object]) -> State:
    draft = Draft(found)
    change(draft)
    normalise(draft)
    verify(draft)
    return draft.state


def doomed(found: State) -> set[str]:
    return {key for key, record in found.volumes.items() if record.state == "doomed"}


def test_removing_the_last_reader_releases_the_whole_weak_chain() -> None:
    found = after(CHAIN, lambda draft: remove(draft, "d"))
    assert set(found.images) == {"s"}
    assert doomed(found) == {"v", "p"}
    assert found.volumes["v"].parent_image_id is None
    assert found.dependents("s") == frozenset()


def test_a_snapshot_that_is_read_stays_as_a_weak_one() -> None:
    found = after(CHAIN, lambda draft: remove(draft, "s"))
    assert found.images["s"].visibility == "weak"
    assert doomed(found) == set()
    found = after(found, lambda draft: remove(draft, "d"))
    assert set(found.images) == set()
    assert doomed(found) == {"v", "p", "r"}


def test_another_reader_keeps_what_it_reads() -> None:
    forked = CHAIN.put_image(disk("e", "u")).put_volume(volume("u", "w"))
    found = after(forked, lambda draft: remove(draft, "d"))
    assert set(found.images) == {"w", "s", "e"}
    assert doomed(found) == {"v"}


def test_a_building_volume_keeps_its_parent() -> None:
    forked = CHAIN.put_volume(building("n", "x", "w"))
    found = after(forked, lambda draft: remove(draft, "d"))
    assert "w" in found.images
    assert doomed(found) == {"v"}


def test_a_hold_keeps_an_image_and_releasing_it_lets_go() -> None:
    held = CHAIN.put_image(weak("w", "p", held_for=(copy_hold(),)))
    found = after(held, lambda draft: remove(draft, "d"))
    assert {"w", "s"} == set(found.images)
    found = after(found, lambda draft: draft.put_image(weak("w", "p")))
    assert set(found.images) == {"s"}
    assert doomed(found) == {"v", "p"}


def test_a_weak_base_stays_while_a_copy_waits_for_it() -> None:
    """Not if the base itself was cancelled, nor if the switch that was to make it is not sealed."""
    waiting = disk("c", None, pending=replace(PENDING, base_image_id="w"))
    captured = Origin(marker="m", image_id="d", data_generation=ENTRY)
    awaited = CHAIN.put_image(waiting).put_image(weak("w", "p", captured=captured))
    found = after(awaited, lambda draft: remove(draft, "d"))
    assert set(found.images) == {"w", "s", "c"}
    assert doomed(found) == {"v"}
    for change in (
        lambda draft: remove(draft, "c"),
        lambda draft: draft.put_image(replace(waiting, pending=PENDING)),
    ):
        assert "w" not in after(found, change).images
    begun = found.put_volume(building("n", "c", "w"))
    assert "w" in after(begun, lambda draft: draft.put_image(replace(waiting, volume_id="n"))).images
    for gone in (weak("w", None, pending=PENDING), weak("w", "v")):
        live = state(disk("d", "v"), volume("v"), waiting)
        assert "w" not in after(live, partial(Draft.put_image, image=gone)).images


def test_an_attachment_keeps_every_volume_of_its_graph() -> None:
    used = CHAIN.put_attachment(attachment("a", "d", "v", "p", "r"))
    # A merge has given the disk another volume; its guest still has the old ones.
    switched = after(used, lambda draft: _switch(draft))
    assert doomed(switched) == set()
    assert "w" in switched.images
    found = after(switched, lambda draft: draft.remove_attachment("a"))
    assert doomed(found) == {"v", "p"}
    assert set(found.images) == {"d", "s"}


def _switch(draft: Draft) -> None:
    draft.put_volume(volume("n"))
    draft.put_image(disk("d", "n"))


def test_a_volume_that_two_images_share_lives_with_the_other() -> None:
    shared = CHAIN.put_image(image("t", "v"))
    found = after(shared, lambda draft: remove(draft, "d"))
    assert doomed(found) == set()
    assert set(found.images) == {"t", "w", "s"}


def test_what_was_not_touched_is_left_alone() -> None:
    stray = CHAIN.put_image(weak("x", "y")).put_volume(volume("y"))
    found = after(stray, lambda draft: draft.put_image(disk("d", "v", revision=2)))
    assert "x" in found.images


PENDING = Pending(work_id="w", source=ImageSource(marker="m", image_id="x"))


def _forget(draft: Draft, volume_id: str) -> None:
    draft.remove_volume(volume_id)


@pytest.mark.parametrize(
    ("invariant", "change"),
    [
        ("I1", lambda draft: draft.put_image(image("n", None))),
        ("I1", lambda draft: draft.put_image(image("n", "nowhere"))),
        ("I1", lambda draft: draft.put_volume(building("v", "d", "w"))),
        ("I2", lambda draft: draft.put_image(image("s", "r", consumed_by="p"))),
        ("I2", lambda draft: draft.put_volume(volume("r", "d"))),
        ("I2", lambda draft: draft.put_image(disk("n", "p"))),
        ("I2", lambda draft: draft.put_volume(volume("n", "d"))),
        ("I3", lambda draft: draft.put_volume(volume("v", state="doomed"))),
        ("I3", lambda draft: draft.put_volume(volume("r", state="doomed"))),
        ("I3", lambda draft: _forget(draft, "stray")),
        ("I4", lambda draft: draft.remove_image("s")),
        ("I4", lambda draft: draft.put_volume(volume("n", "nobody"))),
    ],
)
def test_a_draft_that_breaks_an_invariant_is_refused(
    invariant: str, change: Callable[[Draft], object]
) -> None:
    found = CHAIN.put_volume(volume("stray"))
    draft = Draft(found)
    change(draft)
    with pytest.raises(errors.InternalError, match=rf"^I[134]:|^{invariant}:"):
        verify(draft)


def test_a_doomed_volume_may_be_forgotten_once_nothing_names_it() -> None:
    found = CHAIN.put_volume(volume("x", state="doomed"))
    assert "x" not in after(found, lambda draft: draft.remove_volume("x")).volumes
    used = found.put_attachment(attachment("a", "d", "v", "x"))
    with pytest.raises(errors.InternalError, match="I3"):
        after(used, lambda draft: draft.remove_volume("x"))


def test_a_pending_image_may_have_no_volume_or_one_that_is_building() -> None:
    pending: Image = image("n", None, pending=PENDING)
    after(CHAIN, lambda draft: draft.put_image(pending))
    waiting = CHAIN.put_volume(building("b", "n"))
    after(waiting, lambda draft: draft.put_image(image("n", "b", pending=PENDING)))
