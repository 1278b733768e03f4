"""What the log says while a running guest is moved to another volume: both chains are right all the time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from diskyard import errors
from diskyard.model.records import DONE_BY_OTHERS, Attachment, Origin
from diskyard.model.soundness import flaw_of
from diskyard.model.state import State
from diskyard.model.transaction import Draft, Frees
from diskyard.planner import attach, running
from diskyard.planner.building import WorkIds
from diskyard.planner.common import Superseded
from diskyard.planner.mend import set_damage
from diskyard.planner.normalise import normalise, verify
from diskyard.planner.switch import Switch, begin, seal
from tests.unit.records import (
    HOST,
    MARKER,
    NOW,
    attachment,
    copy_hold,
    disk,
    draft_on,
    image,
    state,
    volume,
)

SNAPSHOT = Switch("d", "s", WorkIds("new", "work"), NOW, attachment_id="a", request_digest="digest")
FREEZE = Switch("d", "s", WorkIds("new", "work"), NOW, attachment_id="a", hold=copy_hold())
LIVE = state(
    disk("d", "v"),
    volume("v", "base"),
    image("base", "b"),
    volume("b"),
    attachment("a", "d", "v", "b", live="qmp"),
)


def published(draft: Draft) -> State:
    """The state after the entry that a draft would become."""
    normalise(draft)
    verify(draft)
    assert flaw_of(draft.state) is None
    after = draft.state
    return State.of(
        MARKER,
        draft.before.version + 1,
        "nonce",
        after.images.values(),
        after.volumes.values(),
        after.attachments.values(),
    )


def switching(request: Switch = SNAPSHOT) -> State:
    """The state after the two entries that come before the guest is told."""
    draft = draft_on(LIVE, "one")
    new = begin(draft, request)
    assert new is not None
    draft = draft_on(published(draft), "two")
    seal(draft, request, new)
    return published(draft)


def attached(found: State) -> Attachment:
    return found.attachments["a"]


def test_the_disk_is_on_the_overlay_before_the_guest_follows() -> None:
    """The guest may be on either volume, so both are named; nobody sees the frozen image yet."""
    after = switching()
    assert after.images["d"].volume_id == "new"
    assert (after.images["s"].volume_id, after.images["s"].is_strong) == ("v", False)
    assert attached(after).volume_ids == ("new", "v", "b")
    said = attached(after).switching
    assert said is not None
    assert (said.work_id, said.image_id, said.from_volume_id, said.to_volume_id) == ("work", "s", "v", "new")
    assert after.images["s"].captured is None


@pytest.mark.parametrize(("request_", "strong"), [(SNAPSHOT, True), (FREEZE, False)])
def test_a_guest_that_followed(request_: Switch, strong: bool) -> None:
    """The frozen bytes have a data generation that the disk never had: the guest wrote meanwhile."""
    before = switching(request_)
    draft = draft_on(before, "three")
    running.complete(draft, "a", "work")
    after = published(draft)
    frozen = after.images["s"]
    assert frozen.is_strong is strong
    assert frozen.captured == Origin(marker=MARKER, image_id="d", data_generation=draft.entry)
    assert frozen.data_generation not in (
        before.images["d"].data_generation,
        LIVE.images["d"].data_generation,
    )
    assert attached(after).switching is None
    assert attached(after).volume_ids == ("new", "v", "b")


def test_a_guest_that_did_not_follow() -> None:
    """All is as before, but for the disk's data generation; the overlay can be deleted."""
    draft = draft_on(switching(), "three")
    running.undo(draft, "a", "work")
    after = published(draft)
    assert after.images["d"].volume_id == "v"
    assert "s" not in after.images
    assert after.volumes["new"].state == "doomed"
    assert attached(after) == attached(LIVE)


@pytest.mark.parametrize("end", [running.complete, running.undo])
def test_only_one_of_two_ends_it(end: Callable[[Draft, str, str], object]) -> None:
    """Whoever was held up and comes late changes nothing."""
    draft = draft_on(switching(), "three")
    running.undo(draft, "a", "work")
    late = draft_on(published(draft), "four")
    with pytest.raises(Superseded):
        end(late, "a", "work")
    other = draft_on(switching(), "three")
    with pytest.raises(Superseded):
        end(other, "a", "another's work")


def test_ending_it_may_use_the_logs_reserve() -> None:
    """On a full storage the disk would stay as it is for ever; beginning it takes room like any verb."""
    begun = draft_on(LIVE, "one")
    new = begin(begun, SNAPSHOT)
    assert new is not None
    sealing = draft_on(published(begun), "two")
    seal(sealing, SNAPSHOT, new)
    assert sealing.frees() is Frees.NOTHING
    completing, undoing = draft_on(switching(), "three"), draft_on(switching(), "three")
    running.complete(completing, "a", "work")
    assert completing.frees() is Frees.WHEN_FIXED
    running.undo(undoing, "a", "work")
    assert undoing.frees() is Frees.AT_ONCE


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (replace(attached(LIVE), live=None), errors.ImageInUse),
        (replace(attached(LIVE), id="other"), errors.ImageInUse),
        (attached(switching()), errors.LeaseHeld),
    ],
)
def test_a_guest_that_cannot_follow(found: Attachment, error: type[errors.DiskyardError]) -> None:
    with pytest.raises(error):
        running.require_followable(state(LIVE.images["d"], found), LIVE.images["d"], "a")
    with pytest.raises(errors.ImageInUse):
        running.require_followable(state(LIVE.images["d"]), LIVE.images["d"], "a")


def test_an_attachment_does_not_end_while_it_is_switching() -> None:
    """Whether its guest has followed is in the overlay's bytes, which a plan cannot see."""
    with pytest.raises(errors.LeaseHeld):
        attach.detach(draft_on(switching()), "d", host=HOST, owner="vm", of_host_id=None, force=True)
    with pytest.raises(errors.LeaseHeld):
        attach.remove_attachment(draft_on(switching()), "a")


def test_what_is_accepted_is_no_other_image_any_more() -> None:
    """A copy elsewhere with the same id has the bytes from before."""
    frozen = image("s", "v", captured=Origin(marker=MARKER, image_id="d", data_generation="3."))
    draft = draft_on(state(frozen, volume("v")), "one")
    assert not running.accept_changed(draft, "v")
    running.mark_changed(draft, "v", "wrote to it")
    assert running.accept_changed(draft, "v")
    after = published(draft)
    assert after.volumes["v"].damage is None
    assert after.images["s"].captured == Origin(marker=MARKER, image_id="s", data_generation=draft.entry)


def test_a_guest_that_starts_now_opens_what_is_better_now() -> None:
    """What it reads below may have been exchanged; the running one still has the old volume open."""
    moved = LIVE.put_volume(volume("better")).put_image(image("base", "better"))
    draft = draft_on(moved, "one")
    found = attach.attach(draft, "d", attachment_id="x", host=HOST, owner="vm", read_only=None, now=NOW)
    assert found.volume_ids == ("v", "better", "b")
    assert published(draft).attachments["a"] == found


def test_what_others_did_is_not_found_to_be_gone() -> None:
    """A check of a volume's own tables cannot see that; only a person knows."""
    detached = LIVE.remove_attachment("a")
    draft = draft_on(detached)
    found = []
    changes: list[Callable[[], object]] = [
        lambda: running.mark_changed(draft, "v", "wrote to it"),
        lambda: set_damage(draft, "v", None),
        lambda: running.clear_changed(draft, "v"),
        lambda: set_damage(draft, "v", "its refcounts are wrong"),
        lambda: running.clear_changed(draft, "v"),
    ]
    for change in changes:
        change()
        found.append(draft.state.volumes["v"].damage)
    marked, checked = f"{DONE_BY_OTHERS}wrote to it", "its refcounts are wrong"
    assert found == [marked, marked, None, checked, checked]


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda found: found.put_attachment(replace(attached(found), volume_ids=("new", "b"))),
        lambda found: found.put_image(replace(found.images["d"], volume_id="v")),
        lambda found: found.put_image(replace(found.images["s"], visibility="strong")),
        lambda found: found.put_image(replace(found.images["s"], volume_id="b")),
    ],
)
def test_a_record_of_a_switch_that_contradicts_the_rest(spoilt: Callable[[State], State]) -> None:
    assert flaw_of(switching()) is None
    assert flaw_of(spoilt(switching())) is not None
