"""find_fixes: each kind is found when it must be, waits when it must, and is not listed otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diskyard.model.capabilities import Capabilities
from diskyard.model.fix import (
    CleanAttachment,
    CleanGarbage,
    CleanHold,
    CleanLeftover,
    CleanProgress,
    CleanReplica,
    CleanVolume,
    Fix,
    Mend,
    Merge,
    Optimize,
)
from diskyard.model.records import ImageSource, Pending, entry_id
from diskyard.model.state import State
from diskyard.model.volume_name import VolumeName
from diskyard.planner.find_fixes import find_fixes
from diskyard.planner.scan import ReplicaFound, Scan, SourceView
from tests.unit.records import attachment, building, copy_hold, disk, image, state, volume, weak

PENDING = Pending(work_id="w", source=ImageSource(marker="m", image_id="x"))
MERGEABLE = state(disk("d", "v"), volume("v", "w"), weak("w", "p"), volume("p"))
ID = "00000000-0000-4000-8000-000000000000"


def scanned(found: State, **more: Any) -> Scan:
    return replace(Scan(state=found, capabilities=Capabilities()), **more)


def fixes(found: State, **more: Any) -> list[Fix]:
    return find_fixes(scanned(found, **more))


def only(found: State, **more: Any) -> Fix:
    (fix,) = fixes(found, **more)
    return fix


def test_a_healthy_repository_has_none() -> None:
    whole = state(disk("d", "v"), volume("v", "s"), image("s", "p"), volume("p"))
    assert fixes(whole, allocated={"v": 1, "p": 1}) == []


def test_a_pending_image_is_mended() -> None:
    found = state(disk("d", "b", pending=PENDING), building("b", "d"))
    fix = only(found, sources={"d": SourceView(None, 5)})
    assert fix.data.action == Mend(image_id="d")
    assert (fix.type, fix.runnable, fix.image_id, fix.moves_bytes) == ("mend", True, "d", 5)
    fix = only(found, sources={"d": SourceView("its base", None)})
    assert (fix.runnable, fix.waits_for) == (False, "its base")
    fix = only(found, sources={"d": SourceView(None, 5)}, locked=frozenset({"d"}), workers={"d": "host2"})
    assert (fix.runnable, fix.held_by) == (False, "host2")


def test_a_snapshot_without_its_volume_is_restored_and_a_disk_is_only_named() -> None:
    found = state(image("s", "v"), volume("v"), disk("d", "u"), volume("u"))
    listed = fixes(found, missing=frozenset({"v", "u"}), sources={"s": SourceView(None, 1)})
    assert {fix.image_id: (fix.data.action, fix.runnable) for fix in listed} == {
        "s": (Mend(image_id="s"), True),
        "d": (Mend(image_id="d"), False),
    }
    assert not only(found, missing=frozenset({"v"})).runnable


def test_a_merge() -> None:
    fix = only(MERGEABLE, allocated={"v": 10, "p": 100})
    assert fix.data.action == Merge(image_id="w")
    assert (fix.image_id, fix.runnable, fix.moves_bytes, fix.frees_bytes) == ("d", True, 10, 10)


def test_a_merge_waits_for_an_attachment_for_a_lease_and_for_its_volumes() -> None:
    attached = MERGEABLE.put_attachment(attachment("a", "d", "v", "p"))
    assert "vm" in (only(attached).waits_for or "")
    assert only(MERGEABLE, locked=frozenset({"d"})).held_by == "another task"
    *mends, merge = fixes(MERGEABLE, missing=frozenset({"p"}))  # what the weak image holds comes first
    assert {fix.data.action for fix in mends} == {Mend(image_id="w"), Mend(image_id="d")}
    assert "cannot be read" in (merge.waits_for or "")


def test_the_direction_of_a_merge() -> None:
    def direction(found: State, **allocated: int) -> str:
        return only(found, allocated=allocated).description

    qcow2 = MERGEABLE.put_volume(volume("p", format="qcow2"))
    assert "down" in direction(qcow2, v=1, p=2)
    assert "up" in direction(qcow2, v=2, p=1)
    assert "down" in direction(MERGEABLE, v=2, p=1)  # a raw parent stays raw
    short = MERGEABLE.put_volume(volume("v", "w", size_bytes=512))
    assert "up" in direction(short, v=1, p=2)  # its size would not be the parent's
    begun = qcow2.put_image(weak("w", "p", consumed_by="v"))
    assert "down" in direction(begun, v=2, p=1)


def test_an_image_degraded_for_performance_is_optimized() -> None:
    found = state(disk("d", "v", strategy="performance"), volume("v", "s"), image("s", "p"), volume("p"))
    fix = only(found, allocated={"v": 1, "p": 2})
    assert fix.data.action == Optimize(image_id="d")
    assert (fix.moves_bytes, fix.needs_bytes) == (3, 4096)
    attached = found.put_attachment(attachment("a", "d", "v", "p"))
    assert not only(attached).runnable
    read = found.put_attachment(attachment("a", "d", "v", "p", mode="read_only"))
    assert only(read).runnable
    broken = fixes(found, missing=frozenset({"p"}))
    assert {fix.image_id: fix.type for fix in broken} == {"s": "mend", "d": "mend"}
    reserve = state(disk("d", "v", strategy="performance"), volume("v"))
    fix = only(reserve, capabilities=Capabilities(preallocation=True))
    assert (fix.data.action, fix.moves_bytes) == (Optimize(image_id="d"), 0)


def test_unready_volumes_are_cleaned_unless_they_are_wanted() -> None:
    fix = only(state(volume("v", state="doomed")), allocated={"v": 9})
    assert (fix.data.action, fix.frees_bytes, fix.runnable) == (CleanVolume(volume_id="v"), 9, True)
    abandoned = state(building("b", "d"))
    assert only(abandoned).data.action == CleanVolume(volume_id="b")
    assert fixes(abandoned, locked=frozenset({"d"})) == []
    wanted = state(disk("d", "b", pending=PENDING), building("b", "d"))
    assert [fix.type for fix in fixes(wanted)] == ["mend"]


def test_garbage_is_what_is_not_named_and_was_made_by_this_history() -> None:
    def name(number: int, nonce: str = "a" * 32) -> VolumeName:
        return VolumeName(entry_id(number, nonce), ID, "raw")

    ours = {"stored": {name(10): 7}, "made_here": frozenset({name(10)})}
    fix = only(state(version=10), **ours)
    assert (fix.data.action, fix.frees_bytes, fix.runnable) == (CleanGarbage(name=str(name(10))), 7, True)
    fix = only(state(version=10), stored={name(11): 7})
    assert not fix.runnable
    assert "older than its volumes" in (fix.waits_for or "")
    for another in (name(9), name(9, "")):
        fix = only(state(version=10), stored={another: 7})
        assert not fix.runnable
        assert "before the repository was restored" in (fix.waits_for or "")
    named = state(disk("d", ID), volume(ID, named_by=name(1).named_by), version=10)
    assert fixes(named, stored={name(1): 7}) == []
    # The same id under another entry is a copy that nothing names.
    assert only(named, stored={name(1): 7, name(10): 7}).data.action == CleanGarbage(name=str(name(10)))
    other = name(1, "b" * 32)
    assert only(named, stored={name(1): 7, other: 7}).data.action == CleanGarbage(name=str(other))


def test_small_things() -> None:
    found = state(
        weak("w", "p", held_for=(copy_hold(),)), volume("p"), disk("d", "v"), volume("v"),
        attachment("a", "d", "v"),
    )  # fmt: skip
    assert fixes(found) == []
    assert only(found, leftovers={"temporary/x": 3}).data.action == CleanLeftover(name="temporary/x")
    assert only(found, gone_attachments=frozenset({"a"})).data.action == CleanAttachment(attachment_id="a")
    hold = CleanHold(image_id="w", hold=copy_hold())
    assert only(found, holds_over=(("w", copy_hold()),)).data.action == hold
    waiting = only(found, holds_unknown=(("w", copy_hold(), "not connected"),))
    assert (waiting.data.action, waiting.runnable) == (hold, False)
    replica = CleanReplica(kind="entry", number=3)
    assert only(found, replicas=(ReplicaFound(replica),)).data.action == replica
    lost = only(found, replicas=(ReplicaFound(replica, "neither copy is whole"),))
    assert (lost.runnable, lost.waits_for) == (False, "neither copy is whole")
    assert only(found, progress=("gone",)).data.action == CleanProgress(image_id="gone")
    assert fixes(found, progress=("gone",), locked=frozenset({"gone"})) == []
    assert fixes(found, progress=("d",)) == []


def test_mends_come_first_and_ids_are_stable() -> None:
    found = (
        MERGEABLE.put_image(disk("n", "b", pending=PENDING))
        .put_volume(building("b", "n"))
        .put_volume(volume("x", state="doomed"))
        .put_image(disk("q", "y", strategy="performance"))
        .put_volume(volume("y", format="qcow2"))
    )
    listed = fixes(found)
    assert [fix.type for fix in listed] == ["mend", "merge", "optimize", "clean"]
    assert [fix.fix_id for fix in fixes(replace(found, version=99))] == [fix.fix_id for fix in listed]
