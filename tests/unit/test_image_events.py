"""What is told of images is what callers can see change, whichever way it is found."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import pytest

from diskyard import errors
from diskyard.image_events import ImageEvent, image_events
from diskyard.model import status
from diskyard.model.capabilities import Capabilities
from diskyard.model.records import Image, ImageSource, Pending, TrackHold
from diskyard.model.state import State
from diskyard.model.transaction import Changes, Draft, Entry, Part, apply
from diskyard.planner import attach, change, clean, create_disk, mend, merge, switch
from diskyard.planner.building import WorkIds
from diskyard.planner.common import Superseded
from diskyard.planner.create_disk import CreateDisk
from diskyard.planner.normalise import normalise, verify
from diskyard.planner.switch import Switch, SwitchAgain
from tests.unit.records import HOST, NOW, attachment, disk, draft_on, image, state, uid, volume, weak

CAPABILITIES = Capabilities(preallocation=True)
Plan = Callable[[Draft], object]


def entry_of(before: State, changes: Changes, *also: Part) -> Entry:
    return Entry(
        marker=before.marker,
        number=before.version + 1,
        nonce=f"n{before.version + 1}",
        previous=before.nonce,
        time=NOW,
        verb="first",
        host=HOST,
        actor="",
        request_digest=None,
        changes=changes,
        also=also,
    )


def after(before: State, plan: Plan) -> tuple[Entry, State]:
    draft = draft_on(before)
    plan(draft)
    normalise(draft)
    verify(draft)
    entry = entry_of(before, draft.changes())
    return entry, apply(before, entry)


def told(before: State, *plans: Plan) -> list[ImageEvent]:
    """What is told when each plan is a part of one entry."""
    draft, parts = draft_on(before), []
    for number, plan in enumerate(plans):
        draft = draft_on(draft.state)
        plan(draft)
        normalise(draft)
        parts.append(Part(verb=f"verb {number}", actor="", request_digest=None, changes=draft.changes()))
    entry = msgspec.structs.replace(entry_of(before, parts[0].changes, *parts[1:]), verb=parts[0].verb)
    return image_events("r", CAPABILITIES, entry, before, apply(before, entry))


def short(events: list[ImageEvent]) -> set[tuple[str, str, str | None]]:
    return {(event.image_id, event.change, event.status) for event in events}


CHAIN = state(
    disk("d", "v"), volume("v", "w"), weak("w", "p"), volume("p", "s"), image("s", "r"), volume("r"),
    disk("e", "x"), volume("x", "s"),
)  # fmt: skip


def test_on_the_wire() -> None:
    (event,) = told(CHAIN, lambda draft: change.set_user_data(draft, "d", {"a": 1}, None))
    assert msgspec.to_builtins(event) == {
        "repositoryId": "r",
        "imageId": "d",
        "change": "changed",
        "status": "optimized",
        "kind": "virtual_disk",
        "entry": 11,
        "verb": "verb 0",
        "hostID": "host",
    }


def test_an_image_comes_and_goes() -> None:
    def make(draft: Draft) -> None:
        draft.put_volume(volume("n"))
        draft.put_image(disk("n", "n"))

    assert short(told(CHAIN, make)) == {("n", "created", "optimized")}
    assert short(told(CHAIN, lambda draft: change.remove(draft, "d"))) == {("d", "removed", None)}
    assert short(told(CHAIN, lambda draft: change.remove(draft, "s"))) == {("s", "removed", None)}


def test_a_damaged_volume_breaks_all_that_read_it() -> None:
    events = told(CHAIN, lambda draft: mend.set_damage(draft, "r", "bad"))
    assert short(events) == {(name, "changed", "broken") for name in "dse"}


def test_a_volume_alone_makes_its_image_another() -> None:
    before = state(disk("d", "v", strategy="performance"), volume("v"))
    events = told(before, lambda draft: draft.put_volume(volume("v", preallocated=True)))
    assert short(events) == {("d", "changed", "optimized")}


def test_what_waits_for_a_base_is_whole_with_it() -> None:
    pending = Pending(work_id="w", source=ImageSource(marker="m", image_id=uid("s")))
    before = CHAIN.put_image(image("s", "r", pending=pending))
    events = told(before, lambda draft: draft.put_image(image("s", "r")))
    assert short(events) == {(name, "changed", "optimized") for name in "dse"}


def test_a_merge_that_is_no_more_possible_is_seen_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "CHAIN_DEPTH_LIMIT", 2)
    events = told(CHAIN, lambda draft: draft.put_image(image("t", "p")))
    assert short(events) == {("t", "created", "optimized"), ("d", "changed", "degraded")}


def test_a_merge_that_waits_for_a_copy_is_seen_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "CHAIN_DEPTH_LIMIT", 2)
    source = ImageSource(marker="m", image_id=uid("s"))
    pending = Pending(work_id="w", source=source, base_image_id="w")
    events = told(CHAIN, lambda draft: draft.put_image(disk("c", None, pending=pending)))
    assert short(events) == {("c", "created", "broken"), ("d", "changed", "degraded")}


def test_what_no_caller_sees_is_not_told() -> None:
    held = TrackHold(target_marker="m", disk_id=uid("other"), copy_id=uid("c"))
    for plan in (
        lambda draft: draft.put_volume(volume("n")),
        lambda draft: draft.put_image(weak("w", "p", held_for=(held,))),
        lambda draft: draft.put_image(disk("d", "v", data_generation="9.")),
    ):
        assert told(CHAIN, plan) == []


def test_attachments_and_trackers_are_seen() -> None:
    guest = attachment("a", "d", "v", "p", "r")
    assert short(told(CHAIN, lambda draft: draft.put_attachment(guest))) == {("d", "changed", "optimized")}
    used = CHAIN.put_attachment(guest)
    assert short(told(used, lambda draft: draft.remove_attachment("a"))) == {("d", "changed", "optimized")}
    hold = TrackHold(target_marker="m", disk_id="d", copy_id=uid("c"))
    events = told(CHAIN, lambda draft: draft.put_image(weak("w", "p", held_for=(hold,))))
    assert short(events) == {("d", "changed", "optimized")}


def test_each_image_has_the_verb_that_changed_it() -> None:
    events = told(
        CHAIN,
        lambda draft: change.set_user_data(draft, "e", 1, None),
        lambda draft: mend.set_damage(draft, "p", "bad"),
        lambda draft: change.set_user_data(draft, "d", 1, None),
    )
    assert {event.image_id: event.verb for event in events} == {"e": "verb 0", "d": "verb 2"}
    events = told(CHAIN, lambda draft: None, lambda draft: mend.set_damage(draft, "p", "bad"))
    assert {event.image_id: event.verb for event in events} == {"d": "verb 1"}


def test_where_entries_were_skipped_all_images_are_looked_at() -> None:
    now = replace(CHAIN.put_image(disk("n", "v", user_data=1)).remove_image("d"), version=99)
    events = image_events("r", CAPABILITIES, None, CHAIN, now)
    assert short(events) == {("n", "created", "optimized"), ("d", "removed", None)}
    assert {(event.entry, event.verb, event.host_id) for event in events} == {(99, None, None)}


# -- any history -------------------------------------------------------------------------


class Story:
    """Random entries, each a plan of the real planners."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.state = state()
        self._names = (uid(str(number)) for number in range(10_000))

    def step(self) -> tuple[Entry, State, State] | None:
        """One entry and the states around it; None if what was drawn could not be."""
        before = self.state
        try:
            entry, self.state = after(before, self.chance.choice(list(self._plans())))
        except (errors.DiskyardError, Superseded, SwitchAgain, IndexError, KeyError):
            return None
        return entry, before, self.state

    def _any(self, found: Any) -> Any:
        return self.chance.choice(sorted(found))

    def _plans(self) -> Iterator[Plan]:
        found, fresh = self.state, self._names
        yield from (self._create, self._create, self._snapshot, self._snapshot, self._snapshot)
        if not found.images:
            return
        one: Image = found.images[self._any(found.images)]
        yield partial(change.remove, image_id=one.id)
        yield partial(change.set_user_data, image_id=one.id, user_data=next(fresh), if_revision=None)
        yield partial(change.set_strategy, image_id=one.id, strategy=self._any(["space", "performance"]))
        yield partial(mend.set_last_error, image_id=one.id, text=self._any(["", "failed"]) or None)
        volume_id = self._any(found.volumes)
        yield partial(mend.set_damage, volume_id=volume_id, damage=self._any(["", "bad"]) or None)
        yield partial(clean.forget, volume_id=volume_id)
        yield self._prepare(one)
        if found.attachments:
            yield partial(attach.remove_attachment, attachment_id=self._any(found.attachments))
        disk_id = self._any(found.images)
        hold = TrackHold(target_marker="m", disk_id=disk_id, copy_id=next(fresh))
        yield partial(switch.hold, was=one, new_hold=hold)
        yield partial(change.end_trackers, disk_id=disk_id)
        for weak_id in [key for key, item in found.images.items() if not item.is_strong]:
            plan = merge.plan_merge(
                found, weak_id, {key: self.chance.randint(0, 9) for key in found.volumes}, Capabilities()
            )
            if plan is not None:
                seal = merge.seal_merge_down if plan.direction == "down" else merge.seal_merge_up
                yield partial(seal, image_id=weak_id, plan=plan)
                yield partial(merge.consume, plan=plan, fresh_id=next(fresh))

    def _create(self, draft: Draft) -> None:
        snapshots = [key for key, item in draft.state.images.items() if item.kind == "snapshot"]
        asked = CreateDisk(
            image_id=next(self._names),
            ids=WorkIds(next(self._names), "w"),
            size_bytes=4096,
            base_snapshot_id=self._any([*snapshots, ""]) or None,
            strategy=self._any(["space", "performance"]),
            user_data=None,
            request_digest="x",
            now=NOW,
        )
        new = create_disk.begin(draft, asked, CAPABILITIES)
        assert new is not None
        create_disk.seal(draft, asked, new)

    def _snapshot(self, draft: Draft) -> None:
        disks = [key for key, item in draft.state.images.items() if item.kind == "virtual_disk"]
        asked = Switch(
            disk_id=self._any(disks),
            image_id=next(self._names),
            ids=WorkIds(next(self._names), "w"),
            now=NOW,
            request_digest="x",
        )
        new = switch.begin(draft, asked)
        assert new is not None
        switch.seal(draft, asked, new)

    def _prepare(self, one: Image) -> Plan:
        words = {
            "host": HOST,
            "owner": "vm",
            "read_only": self._any([True, False]),
            "now": NOW,
        }
        return partial(attach.attach, image_id=one.id, attachment_id=next(self._names), **words)


@pytest.mark.parametrize("seed", range(12))
def test_what_an_entry_names_leads_to_all_that_changed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same is found as by looking at every image before and after."""
    monkeypatch.setattr(status, "CHAIN_DEPTH_LIMIT", 3)
    story, events, entries = Story(seed), 0, 0
    for _ in range(400):
        step = story.step()
        if step is None:
            continue
        entry, before, now = step
        found = image_events("r", CAPABILITIES, entry, before, now)
        assert short(found) == short(image_events("r", CAPABILITIES, None, before, now))
        events, entries = events + len(found), entries + 1
    assert entries > 100
    assert events > 100
