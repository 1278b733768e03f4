"""A seal is refused once its volume belongs to other work: it may be written to by that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from diskyard.model.capabilities import Capabilities
from diskyard.model.records import Building, ImageSource, Pending
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.planner.building import NewVolume
from diskyard.planner.common import Superseded
from diskyard.planner.mend import seal_pending
from diskyard.planner.merge import consume, plan_merge, seal_merge_down, seal_merge_up
from diskyard.planner.optimize import plan_optimize, seal_optimize
from tests.unit.records import attachment, building, disk, draft_on, state, volume, weak

CAPABILITIES = Capabilities(reflink=False, preallocation=True, zeroed=True, enforced_leases=True)
Sealing = tuple[State, Callable[[Draft], object]]
MINE, OTHERS = "work", "other work"


def mine(found: State) -> NewVolume:
    return NewVolume(replace(found.volumes["n"], building=Building(work_id=MINE, image_id="d")))


def being_optimized() -> Sealing:
    found = state(replace(disk("d", "v"), strategy="performance"), volume("v"), building("n", "d"))
    plan = plan_optimize(found, "d", CAPABILITIES)
    assert plan is not None
    return found, lambda draft: seal_optimize(draft, plan, mine(found))


def being_mended() -> Sealing:
    pending = Pending(work_id=MINE, source=ImageSource(marker="m", image_id="s"))
    found = state(replace(disk("d", "n"), pending=pending), building("n", "d"))
    return found, lambda draft: seal_pending(draft, "d", mine(found))


@pytest.mark.parametrize("made", [being_optimized, being_mended])
def test_a_volume_that_other_work_has_taken(
    made: Callable[[], tuple[State, Callable[[Draft], object]]],
) -> None:
    found, seal = made()
    record = found.volumes["n"]
    assert record.building is not None
    draft = draft_on(found.put_volume(replace(record, building=replace(record.building, work_id=MINE))))
    seal(draft)
    assert draft.state.volumes["n"].state == "ready"
    for other in (
        replace(record, building=replace(record.building, work_id=OTHERS)),
        replace(record, state="ready", building=None),
        replace(record, state="doomed", building=None),
    ):
        with pytest.raises(Superseded):
            seal(draft_on(found.put_volume(other)))
    with pytest.raises(Superseded):
        seal(draft_on(found.remove_volume("n")))


@pytest.mark.parametrize("volume_id", ["v", "p"])
def test_a_merge_of_volumes_that_a_guest_has_open(volume_id: str) -> None:
    """Its graph would change under it: not begun, and not sealed either way."""
    found = state(disk("d", "v"), volume("v", "w"), weak("w", "p"), volume("p"))
    plan = plan_merge(found, "w", {}, Capabilities())
    assert plan is not None
    attached = found.put_attachment(attachment("t", "d", volume_id))
    for change in (
        lambda draft: consume(draft, plan, "fresh"),
        lambda draft: seal_merge_down(draft, "w", plan),
        lambda draft: seal_merge_up(draft, "w", plan),
    ):
        change(draft_on(found))
        with pytest.raises(Superseded):
            change(draft_on(attached))
