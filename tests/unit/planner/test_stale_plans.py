"""A plan finds in its own draft that what it was chosen for has gone, and says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from diskyard import errors
from diskyard.model.capabilities import Capabilities
from diskyard.model.looked import LookAgain, Looked
from diskyard.model.records import CopyHold, FileSource, ImageSource, Pending
from diskyard.model.state import State
from diskyard.model.status import why_broken
from diskyard.model.transaction import Draft
from diskyard.planner.building import NewVolume, WorkIds
from diskyard.planner.change import begin_revert, seal_revert
from diskyard.planner.common import Superseded
from diskyard.planner.copy import PendingImage
from diskyard.planner.copy import begin as begin_copy
from diskyard.planner.mend import (
    begin_restore,
    keep_tracker,
    note_damage,
    seal_pending,
    take_over,
    users_of,
)
from diskyard.planner.merge import consume, plan_merge, seal_merge_down, seal_merge_up
from diskyard.planner.optimize import begin_optimize, plan_optimize, seal_optimize
from diskyard.planner.switch import (
    Switch,
    begin_clone,
    hold,
    hold_again,
    reusable_freeze_point,
    seal_clone,
)
from tests.unit.records import MARKER, NOW, attachment, building, disk, draft_on, image, state, volume, weak

CAPABILITIES = Capabilities(reflink=True, preallocation=True, zeroed=True, enforced_leases=True)
HOLD = CopyHold(target_marker="m", copy_id="c", work_id="w")
LATER = "2.0123456789abcdef0123456789abcdef"
IDS = WorkIds("n", "work")


# -- what was looked at --------------------------------------------------------------------


def test_what_was_looked_at_says_nothing_of_other_volumes() -> None:
    """A volume that came into the chain since is neither missing nor there."""
    found = state(disk("d", "v"), volume("v", "p"), weak("p", "r"), volume("r"))
    assert why_broken(found, found.images["d"], Looked(["v", "r"], [])) is None
    assert "missing" in str(why_broken(found, found.images["d"], Looked(["v", "r"], ["r"])))
    with pytest.raises(LookAgain):
        why_broken(found, found.images["d"], Looked(["v"], []))
    with pytest.raises(LookAgain):
        begin_clone(Draft(found, missing=Looked(["r"], [])), request(), CAPABILITIES)
    with pytest.raises(LookAgain):
        begin_clone(Draft(found), request(), CAPABILITIES)  # nobody has looked
    assert Looked(["v"], ["v"])
    assert not Looked(["v"], [])


# -- freezing -------------------------------------------------------------------------------


def request() -> Switch:
    return Switch("d", "s", IDS, NOW, hold=HOLD)


def test_only_one_raw_volume_is_cloned() -> None:
    """Its file would be taken for the disk's bytes, as any other one's would."""
    raw = state(disk("d", "v"), volume("v"))
    assert begin_clone(draft_on(raw), request(), CAPABILITIES) is not None
    overlay = state(disk("d", "v"), volume("v", "p"), weak("p", "r"), volume("r"))
    qcow2 = state(disk("d", "v"), volume("v", format="qcow2"))
    for other in (overlay, qcow2):
        draft = draft_on(other)
        assert begin_clone(draft, request(), CAPABILITIES) is None
        assert not draft.changes()


def _switched(found: State) -> State:
    found = found.put_image(weak("p", "v")).put_volume(volume("o", "p"))
    return found.put_image(replace(found.images["d"], volume_id="o"))


@pytest.mark.parametrize(
    "change",
    [
        _switched,
        lambda found: found.put_image(replace(found.images["d"], data_generation=LATER)),
        lambda found: found.put_image(replace(found.images["d"], size_bytes=512)),
        lambda found: found.put_volume(replace(found.volumes["v"], size_bytes=8192)),
        lambda found: found.put_volume(replace(found.volumes["v"], format="qcow2")),
        lambda found: found.remove_volume("n"),
    ],
)
def test_a_clone_of_a_disk_that_has_changed(change: Callable[[State], State]) -> None:
    """It is not sealed."""
    draft = draft_on(state(disk("d", "v"), volume("v")))
    clone = begin_clone(draft, request(), CAPABILITIES)
    assert clone is not None
    frozen = seal_clone(draft_on(draft.state), request(), clone)
    assert (frozen.volume_id, frozen.held_for) == ("n", (HOLD,))
    with pytest.raises(Superseded):
        seal_clone(draft_on(change(draft.state)), request(), clone)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda found: found.put_attachment(attachment("t", "d", "v")), errors.ImageInUse),
        (lambda found: found.put_volume(replace(found.volumes["v"], damage="bad")), errors.ImageBroken),
        (lambda found: found.remove_image("d"), errors.ImageNotFound),
    ],
)
def test_a_clone_of_a_disk_that_is_used_broken_or_gone(
    change: Callable[[State], State], error: type[errors.DiskyardError]
) -> None:
    draft = draft_on(state(disk("d", "v"), volume("v")))
    clone = begin_clone(draft, request(), CAPABILITIES)
    assert clone is not None
    with pytest.raises(error):
        seal_clone(draft_on(change(draft.state)), request(), clone)


def test_a_freeze_point_whose_overlay_was_merged_into() -> None:
    """The overlay is the same and reads another image: it is not unwritten any more."""
    found = state(
        disk("d", "v"), volume("v", "p"), weak("p", "r"), volume("r", "q"), weak("q", "z"), volume("z")
    )
    was = found.images["d"]
    point = reusable_freeze_point(found, was)
    assert point is not None
    held = hold_again(draft_on(found), was, "p", "v", HOLD)
    assert held is not None
    assert held.held_for == (HOLD,)
    merged = found.put_volume(volume("v", "q")).remove_image("p")
    assert hold_again(draft_on(merged), was, "p", "v", HOLD) is None
    written = found.put_image(replace(was, data_generation=LATER))
    assert hold_again(draft_on(written), was, "p", "v", HOLD) is None
    with pytest.raises(errors.ImageBroken):
        hold_again(draft_on(found, missing={"r"}), was, "p", "v", HOLD)


def test_a_snapshot_of_the_same_id_that_is_another() -> None:
    """It was removed, and its id given to other bytes, between being found and being held."""
    was = image("s", "v")
    found = state(was, volume("v"))
    assert hold(draft_on(found), was, HOLD).held_for == (HOLD,)
    others = (disk("s", "v"), replace(was, size_bytes=512), replace(was, captured_at=NOW.replace("4", "5")))
    for other in others:
        with pytest.raises(errors.ImageNotFound):
            hold(draft_on(state(other, volume("v"))), was, HOLD)


# -- volumes made of a base ------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.put_volume(volume("x")).put_image(replace(found.images["s"], volume_id="x")),
        lambda found: found.put_volume(replace(found.volumes["v"], damage="bad")),
        lambda found: found.remove_volume("n"),
    ],
)
def test_a_clone_of_a_base_that_was_restored_meanwhile(change: Callable[[State], State]) -> None:
    """What was cloned was damaged."""
    draft = draft_on(state(disk("d", "w"), volume("w"), image("s", "v"), volume("v")))
    new = begin_revert(draft, "d", "s", IDS, CAPABILITIES)
    assert new.clone_of is not None
    seal_revert(draft_on(draft.state), "d", new)
    with pytest.raises(Superseded):
        seal_revert(draft_on(change(draft.state)), "d", new)


def test_an_overlay_of_a_base_that_turns_out_to_be_damaged() -> None:
    """No disk is made that could not be read."""
    draft = draft_on(state(disk("d", "w"), volume("w"), image("s", "v"), volume("v")))
    new = begin_revert(draft, "d", "s", IDS, Capabilities())
    assert new.clone_of is None
    seal_revert(draft_on(draft.state), "d", new)
    damaged = draft.state.put_volume(replace(draft.state.volumes["v"], damage="bad"))
    with pytest.raises(errors.ImageBroken):
        seal_revert(draft_on(damaged), "d", new)


# -- copies ----------------------------------------------------------------------------------


def test_a_base_that_came_meanwhile_as_a_disk() -> None:
    """A copy never reads an image whose bytes change."""
    asked = PendingImage(
        image_id="c",
        ids=IDS,
        kind="virtual_disk",
        size_bytes=4096,
        source=ImageSource(marker=MARKER, image_id="s"),
        base_image_id="b",
        strategy="space",
        user_data=None,
        request_digest="digest",
        now=NOW,
        captured_at=NOW,
    )
    assert begin_copy(draft_on(state(image("b", "v"), volume("v"))), asked, CAPABILITIES)
    with pytest.raises(errors.NotASnapshot):
        begin_copy(draft_on(state(disk("b", "v"), volume("v"))), asked, CAPABILITIES)


def test_a_base_that_a_switch_is_making() -> None:
    """It is on its disk's own volume until the switch is sealed: nothing reads it before that."""
    pending = disk("c", "n", pending=_pending(work_id="w"))
    found = state(pending, building("n", "c", "b"), weak("b", "v"), volume("v"))
    new = NewVolume(found.volumes["n"])
    seal_pending(draft_on(found), "c", new)
    take_over(draft_on(found), pending, WorkIds("m", "new"), keep=True, capabilities=CAPABILITIES)
    for being_made in (found.put_image(disk("d", "v")), found.put_volume(building("o", "b", "b"))):
        with pytest.raises(Superseded):
            seal_pending(draft_on(being_made), "c", new)
        with pytest.raises(Superseded):
            take_over(
                draft_on(being_made), pending, WorkIds("m", "new"), keep=True, capabilities=CAPABILITIES
            )


def _pending(**more: object) -> Pending:
    source = ImageSource(marker=MARKER, image_id="s")
    return Pending(**{"work_id": "old", "source": source, "base_image_id": "b", **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda found: found.put_image(disk("b", "v")), Superseded),
        (lambda found: found.put_volume(replace(found.volumes["v"], damage="bad")), errors.ImageBroken),
        (lambda found: found.put_image(replace(found.images["d"], size_bytes=512)), Superseded),
        (lambda found: found.put_image(replace(found.images["d"], volume_id=None)), Superseded),
        (lambda found: found.put_image(replace(found.images["d"], pending=None)), Superseded),
        (
            lambda found: found.put_image(
                replace(
                    found.images["d"],
                    pending=_pending(
                        source=FileSource(machine_id="m", path="/p", format="raw", fingerprint="f")
                    ),
                )
            ),
            Superseded,
        ),
    ],
)
def test_a_mend_of_what_is_another_image_by_now(
    change: Callable[[State], State], error: type[Exception]
) -> None:
    was = disk("d", "n", pending=_pending())
    found = state(was, building("n", "d", "b"), image("b", "v"), volume("v"))

    def take(found: State) -> object:
        return take_over(draft_on(found), was, WorkIds("m", "new"), keep=True, capabilities=CAPABILITIES)

    assert take(found) is not None
    with pytest.raises(error):
        take(change(found))


def test_a_base_that_turns_out_to_be_damaged_before_the_seal() -> None:
    """What was found to differ from it may be wrong."""
    found = state(disk("d", "n", pending=_pending()), building("n", "d", "b"), image("b", "v"), volume("v"))
    new = NewVolume(found.volumes["n"])
    found = found.put_image(disk("d", "n", pending=_pending(work_id=new.work_id)))
    seal_pending(draft_on(found), "d", new)
    with pytest.raises(errors.ImageBroken):
        seal_pending(draft_on(found.put_volume(replace(found.volumes["v"], damage="bad"))), "d", new)


def test_a_snapshot_that_is_another_is_not_restored() -> None:
    was = image("s", "v")
    found = state(was, volume("v"))
    begin_restore(draft_on(found, missing={"v"}), was, IDS, CAPABILITIES)
    other = found.put_image(replace(was, size_bytes=512))
    with pytest.raises(Superseded):
        begin_restore(draft_on(other, missing={"v"}), was, IDS, CAPABILITIES)


def test_a_tracker_of_a_disk_that_was_removed() -> None:
    """The hold is released: nothing is to be tracked any more."""
    frozen = weak("f", "v", held_for=(HOLD,))
    for disks in ((disk("d", "w"),), (replace(disk("d", "w"), visibility="weak"),), ()):
        draft = draft_on(state(frozen, volume("v"), volume("w"), *disks))
        keep_tracker(draft, "f", HOLD, "d")
        is_tracked = bool(draft.state.images["f"].held_for)
        assert is_tracked == bool(disks and disks[0].is_strong)
        assert HOLD not in draft.state.images["f"].held_for


# -- merges, optimizes and checks ------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.put_image(replace(found.images["d"], data_generation=LATER)),
        lambda found: found.put_volume(replace(found.volumes["v"], damage="bad")),
        lambda found: found.put_volume(replace(found.volumes["p"], damage="bad")),
        lambda found: found.put_volume(replace(found.volumes["p"], size_bytes=8192)),
    ],
)
def test_a_merge_of_volumes_that_have_changed(change: Callable[[State], State]) -> None:
    found = state(disk("d", "v"), volume("v", "w"), weak("w", "p"), volume("p"))
    plan = plan_merge(found, "w", {}, CAPABILITIES)
    assert plan is not None
    for seal in (
        lambda draft: consume(draft, plan, "fresh"),
        lambda draft: seal_merge_down(draft, "w", plan),
        lambda draft: seal_merge_up(draft, "w", plan),
    ):
        seal(draft_on(found))
        with pytest.raises(Superseded):
            seal(draft_on(change(found)))


def test_a_merge_under_a_disk_that_was_snapshotted_meanwhile() -> None:
    """The Snapshot has the bytes that the disk had: that is no reason to begin anew."""
    found = state(disk("d", "v"), volume("v", "w"), weak("w", "p"), volume("p"))
    plan = plan_merge(found, "w", {}, CAPABILITIES)
    assert plan is not None
    taken = found.put_image(image("s", "v")).put_volume(volume("o", "s"))
    taken = taken.put_image(replace(found.images["d"], volume_id="o", data_generation=LATER))
    draft = draft_on(taken)
    seal_merge_down(draft, "w", plan)
    assert draft.state.images["s"].volume_id == "p"


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.put_volume(replace(found.volumes["p"], damage="bad")),
        lambda found: found.put_image(replace(found.images["d"], strategy="space")),
    ],
)
def test_an_optimize_of_what_has_changed(change: Callable[[State], State]) -> None:
    found = state(
        disk("d", "v", strategy="performance"),
        volume("v", "w"),
        image("w", "p"),
        volume("p"),
    )
    plan = plan_optimize(found, "d", CAPABILITIES)
    assert plan is not None
    begun = draft_on(found)
    new = begin_optimize(begun, plan, IDS, CAPABILITIES)
    seal_optimize(draft_on(begun.state), plan, new)
    with pytest.raises(Superseded):
        begin_optimize(draft_on(change(found)), plan, IDS, CAPABILITIES)
    with pytest.raises(Superseded):
        seal_optimize(draft_on(change(begun.state)), plan, new)
    with pytest.raises(Superseded):
        seal_optimize(draft_on(begun.state, missing={"p"}), plan, new)


def test_damage_seen_in_a_volume_that_was_written_to_meanwhile() -> None:
    """What a check read half of is not noted."""
    found = state(disk("d", "v"), volume("v"))
    was, users = found.volumes["v"], users_of(found, found.volumes["v"])

    def noted(found: State) -> str | None:
        draft = draft_on(found)
        note_damage(draft, was, users, "bad")
        return draft.state.volumes["v"].damage

    assert noted(found) == "bad"
    assert noted(found.put_image(replace(found.images["d"], data_generation=LATER))) is None
    assert noted(found.put_volume(replace(was, size_bytes=8192))) is None
    assert noted(found.put_image(replace(found.images["d"], volume_id=None, pending=_pending()))) is None
