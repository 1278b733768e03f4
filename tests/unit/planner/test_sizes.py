"""While an extend is open nothing is made of its disk; what is longer without one is taken over, or not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from diskyard import errors
from diskyard.model.capabilities import Capabilities
from diskyard.model.records import Extending, Volume
from diskyard.model.soundness import flaw_of
from diskyard.model.state import State
from diskyard.model.transaction import Draft, Frees
from diskyard.planner import attach, change, merge, optimize, sizes, switch
from diskyard.planner.building import NewVolume, WorkIds
from diskyard.planner.common import Superseded
from diskyard.planner.normalise import normalise, verify
from diskyard.planner.sizes import Growth
from diskyard.planner.switch import Clone, Switch, SwitchAgain
from tests.unit.records import (
    HOST,
    NOW,
    attachment,
    building,
    copy_hold,
    disk,
    draft_on,
    image,
    state,
    volume,
    weak,
)

CAPABILITIES = Capabilities(reflink=True, preallocation=True, zeroed=True, enforced_leases=True)
INTENT = Extending(work_id="x", size_bytes=8192)
SWITCH = Switch(disk_id="d", image_id="s", ids=WorkIds("o", "w"), now=NOW)
CLONE = Switch(disk_id="d", image_id="s", ids=WorkIds("o", "w"), now=NOW, hold=copy_hold())


def extending(found: State, volume_id: str = "v") -> State:
    """The same state in the middle of an extend."""
    return found.put_volume(replace(found.volumes[volume_id], extending=INTENT))


def begun(found: State) -> tuple[State, Volume]:
    draft = draft_on(found, "n" * 32)
    grown = sizes.begin_extend(draft, "d", 8192, "x")
    assert grown is not None
    return draft.state, grown


def attached(draft: Draft) -> object:
    return attach.attach(draft, "d", attachment_id="t", host=HOST, owner="vm", read_only=None, now=NOW)


REFUSED: dict[str, Callable[[Draft], object]] = {
    "attach": attached,
    "switch": lambda draft: switch.begin(draft, SWITCH),
    "clone": lambda draft: switch.begin_clone(draft, SWITCH, Capabilities(reflink=True)),
    "extend": lambda draft: sizes.begin_extend(draft, "d", 16384, "y"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_while_an_extend_is_open(name: str) -> None:
    found = state(disk("d", "v"), volume("v"))
    REFUSED[name](draft_on(found))
    with pytest.raises(errors.LeaseHeld, match="being extended"):
        REFUSED[name](draft_on(extending(found)))


def test_what_is_not_sealed_while_an_extend_is_open() -> None:
    switching = state(disk("d", "v"), volume("v"), weak("s", "v"), building("o", "s", "s"))
    overlay = NewVolume(switching.volumes["o"])
    switch.seal(draft_on(switching), SWITCH, overlay)
    with pytest.raises(SwitchAgain):
        switch.seal(draft_on(extending(switching)), SWITCH, overlay)
    cloning = state(disk("d", "v"), volume("v"), building("o", "s"))
    clone = Clone(NewVolume(cloning.volumes["o"], cloning.volumes["v"]), cloning.images["d"])
    switch.seal_clone(draft_on(cloning), CLONE, clone)
    with pytest.raises(errors.LeaseHeld):
        switch.seal_clone(draft_on(extending(cloning)), CLONE, clone)
    optimizing = state(disk("d", "v", strategy="performance"), volume("v"))
    plan = optimize.plan_optimize(optimizing, "d", CAPABILITIES)
    assert plan is not None
    optimize.seal_reserve(draft_on(optimizing), plan)
    with pytest.raises(Superseded):
        optimize.seal_reserve(draft_on(extending(optimizing)), plan)
    merging = state(disk("d", "v"), volume("v", "w"), weak("w", "p"), volume("p"))
    merged = merge.plan_merge(merging, "w", {}, CAPABILITIES)
    assert merged is not None
    for seal in (merge.seal_merge_down, merge.seal_merge_up):
        seal(draft_on(merging), "w", merged)
        with pytest.raises(Superseded):
            seal(draft_on(extending(merging)), "w", merged)


def test_a_freeze_point_below_an_extend_is_not_used_again() -> None:
    found = state(disk("d", "v"), volume("v", "w"), weak("w", "p", kind="snapshot"), volume("p"))
    assert switch.reusable_freeze_point(found, found.images["d"]) is not None
    assert switch.reusable_freeze_point(extending(found), found.images["d"]) is None


def test_an_extend_is_sealed_by_its_own_work() -> None:
    found, grown = begun(state(disk("d", "v", origin=None), volume("v", preallocated=True)))
    draft = draft_on(found)
    sizes.seal_extend(draft, "d", grown)
    after = draft.state
    assert (after.images["d"].size_bytes, after.volumes["v"].size_bytes) == (8192, 8192)
    assert after.volumes["v"].extending is None
    assert after.volumes["v"].preallocated
    assert after.images["d"].data_generation == draft.entry
    taken_back = draft_on(found)
    assert sizes.take_back(taken_back, grown)
    assert not sizes.take_back(taken_back, grown)
    assert taken_back.frees() is Frees.WHEN_FIXED
    others = found.put_volume(replace(grown, extending=replace(INTENT, work_id="other")))
    moved = found.put_image(replace(found.images["d"], volume_id="w")).put_volume(
        volume("w", size_bytes=4096)
    )
    for other in (taken_back.state, others, moved):
        with pytest.raises(Superseded):
            sizes.seal_extend(draft_on(other), "d", grown)


def test_a_size_is_taken_over_once() -> None:
    found = state(disk("d", "v"), volume("v", preallocated=True), weak("s", "v"), building("o", "s", "s"))
    growth = Growth(found.volumes["v"], 8192)
    draft = draft_on(found)
    assert sizes.adopt(draft, "d", growth), "a switch that is not sealed has frozen nothing"
    assert (draft.state.images["d"].size_bytes, draft.state.volumes["v"].size_bytes) == (8192, 8192)
    assert not draft.state.volumes["v"].preallocated
    assert not sizes.adopt(draft, "d", growth)
    with pytest.raises(SwitchAgain):
        switch.seal(draft, SWITCH, NewVolume(found.volumes["o"]))


@pytest.mark.parametrize(
    "found",
    [
        state(disk("d", "v"), volume("v"), attachment("t", "d", "v")),
        state(disk("d", "v"), volume("v"), weak("s", "v"), volume("o", "s"), disk("e", "o")),
        state(image("d", "v"), volume("v")),
        state(disk("d", "w"), volume("w"), volume("v")),
        state(disk("d", "v"), volume("v", size_bytes=8192)),
    ],
    ids=["attached", "frozen", "a snapshot", "another volume", "another size"],
)
def test_what_is_not_taken_over(found: State) -> None:
    assert not sizes.adopt(draft_on(found), "d", Growth(volume("v"), 8192))


def test_what_no_state_may_hold() -> None:
    sound = extending(state(disk("d", "v"), volume("v"), weak("s", "v"), building("o", "s", "s")))
    assert flaw_of(sound) is None
    for flawed in (
        state(image("s", "v"), volume("v", extending=INTENT)),
        state(disk("d", "v"), volume("v"), building("o", "d", extending=INTENT)),
        state(disk("d", "v"), volume("v"), volume("o", state="doomed", extending=INTENT)),
    ):
        assert "extended" in str(flaw_of(flawed))


def test_an_extend_ends_with_its_volume() -> None:
    found = extending(state(disk("d", "v"), volume("v")))
    draft = draft_on(found)
    change.remove(draft, "d")
    normalise(draft)
    verify(draft)
    assert draft.state.volumes["v"].state == "doomed"
    assert draft.state.volumes["v"].extending is None
