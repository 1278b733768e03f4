"""Merges cut, raced and repeated: guests, verbs and other hosts meanwhile."""

from __future__ import annotations

from functools import partial

import pytest

from diskyard import KiB, MiB, errors
from tests.api.helpers import (
    COMMIT_ONLY,
    SIZE,
    Rig,
    code_of,
    fix_module,
    fixes,
    intercept,
    kill,
    picture,
    run_fix,
    settle,
)

ONE = (1, 0, MiB)
TWO = (2, MiB, MiB)
THREE = (3, 2 * MiB, 64 * KiB)


def chain_with_removed_middle(rig: Rig, down: bool) -> tuple[str, str]:
    """A disk on a Snapshot that was removed, on one that stays; which way it merges."""
    disk = rig.disk("a", ONE)
    rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, (2, MiB, MiB if down else 64 * KiB))
    middle = rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, (3, 2 * MiB, 64 * KiB if down else MiB))
    rig.yard.remove_image("a", middle, options=COMMIT_ONLY)
    return disk, middle


def wanted_after(down: bool, *more: tuple[int, int, int]) -> bytes:
    return picture(
        SIZE, ONE, (2, MiB, MiB if down else 64 * KiB), (3, 2 * MiB, 64 * KiB if down else MiB), *more
    )


MOVERS = {True: "commit_down", False: "stream_up"}


@pytest.mark.parametrize("down", [True, False])
def test_a_merge_run_twice_with_a_write_between(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, down: bool
) -> None:
    """A merge cut after it moved its bytes is run again; what a guest wrote in between stays."""
    yard = rig.yard
    disk, _ = chain_with_removed_middle(rig, down)
    (fix,) = fixes(yard, "a", "merge")
    with monkeypatch.context() as patch:
        intercept(patch, fix_module("merge"), MOVERS[down], after=kill)
        assert code_of(lambda: run_fix(yard, "a", fix)) == "InternalError"
    rig.expect("a", disk, wanted_after(down))
    later = (9, MiB + 128 * KiB, 512 * KiB)
    rig.write("a", disk, later)
    (again,) = fixes(yard, "a", "merge")
    assert run_fix(rig.host("two"), "a", again).changed
    rig.expect("a", disk, wanted_after(down, later))
    settle(yard, "a")
    rig.expect("a", disk, wanted_after(down, later))
    rig.clean_slate("a")


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("down", [True, False])
def test_a_guest_that_starts_during_a_merge(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, down: bool, moment: str
) -> None:
    """It is told to wait, or the merge gives way; never are its writes lost."""
    yard, other = rig.yard, rig.host("two")
    disk, _ = chain_with_removed_middle(rig, down)
    later = (9, MiB + 128 * KiB, 512 * KiB)
    wrote: list[bool] = []

    def guest() -> None:
        try:
            rig.write("a", disk, later, yard=other)
            wrote.append(True)
        except errors.LeaseHeld:
            wrote.append(False)

    (fix,) = fixes(yard, "a", "merge")
    with monkeypatch.context() as patch:
        intercept(patch, fix_module("merge"), MOVERS[down], **{moment: guest})
        run_fix(yard, "a", fix)
    assert len(wrote) == 1
    more = [later] if wrote[0] else []
    rig.expect("a", disk, wanted_after(down, *more))
    settle(yard, "a")
    rig.expect("a", disk, wanted_after(down, *more))
    rig.clean_slate("a")


@pytest.mark.parametrize("down", [True, False])
def test_two_hosts_merge_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch, down: bool) -> None:
    """One works, the other is told so."""
    yard, other = rig.yard, rig.host("two")
    disk, _ = chain_with_removed_middle(rig, down)
    (fix,) = fixes(yard, "a", "merge")
    seen: list[str] = []

    def second() -> None:
        seen.append(code_of(lambda: run_fix(other, "a", fix)) if not down else "")
        for found in fixes(other, "a", "merge"):
            assert not found.runnable
            assert found.held_by
            seen.append(code_of(partial(run_fix, other, "a", found)))

    intercept(monkeypatch, fix_module("merge"), MOVERS[down], before=second)
    assert run_fix(yard, "a", fix).changed
    assert set(seen) - {""} == {"LeaseHeld"}
    settle(other, "a")
    rig.expect("a", disk, wanted_after(down))
    rig.clean_slate("a")


@pytest.mark.parametrize("verb", ["snapshot", "copy", "revert", "extend", "remove"])
@pytest.mark.parametrize("down", [True, False])
def test_verbs_during_a_merge(rig: Rig, monkeypatch: pytest.MonkeyPatch, down: bool, verb: str) -> None:
    """Each is done or refused for the moment, and every image keeps its bytes."""
    yard, other = rig.yard, rig.host("two")
    disk, _ = chain_with_removed_middle(rig, down)
    base = yard.list_images("a", kind="snapshot").images[0].image_id
    made: list[str] = []

    def second() -> None:
        try:
            if verb == "snapshot":
                made.append(other.create_snapshot("a", disk))
                rig.expect("a", made[0], wanted_after(down), yard=other)
            elif verb == "copy":
                made.append(other.copy_image("b", disk, options=COMMIT_ONLY))
            elif verb == "revert":
                other.revert_virtual_disk("a", disk, base)
                made.append("")
            elif verb == "extend":
                other.extend_virtual_disk("a", disk, 2 * SIZE)
                made.append("")
            else:
                other.remove_image("a", disk)
                made.append("")
        except errors.LeaseHeld:
            return

    (fix,) = fixes(yard, "a", "merge")
    with monkeypatch.context() as patch:
        intercept(patch, fix_module("merge"), MOVERS[down], after=second)
        try:
            run_fix(yard, "a", fix)
        except errors.LeaseHeld:
            pass
    other.wait_for_tasks(30)
    settle(yard, "b", "a")
    if verb == "revert" and made:
        rig.expect("a", disk, picture(SIZE, ONE))
    elif verb == "extend" and made:
        rig.expect("a", disk, wanted_after(down) + bytes(SIZE))
    elif verb == "remove":
        assert code_of(lambda: yard.get_image_info("a", disk)) == "ImageNotFound"
    else:
        rig.expect("a", disk, wanted_after(down))
    if verb in ("snapshot", "copy") and made:
        rig.expect("a" if verb == "snapshot" else "b", made[0], wanted_after(down))
    rig.expect("a", base, picture(SIZE, ONE))
    rig.clean_slate("a", "b")


@pytest.mark.parametrize("cut", ["before", "after", "not"])
def test_a_snapshot_half_merged_away_and_copied_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """Its id comes back with its own bytes, though the volume it had has others by then."""
    yard = rig.yard
    disk = rig.disk("a", ONE)
    snapshot = yard.create_snapshot("a", disk)
    yard.copy_image("b", snapshot)
    rig.wait()
    rig.write("a", disk, THREE)
    yard.remove_image("a", snapshot, options=COMMIT_ONLY)
    (fix,) = fixes(yard, "a", "merge")
    with monkeypatch.context() as patch:
        if cut != "not":
            intercept(patch, fix_module("merge"), "commit_down", **{cut: kill})
            assert code_of(lambda: run_fix(yard, "a", fix)) == "InternalError"
        else:
            copy_again = lambda: yard.copy_image("a", snapshot, options=COMMIT_ONLY)  # noqa: E731
            refused = lambda: code_of(copy_again) == "LeaseHeld"  # noqa: E731
            intercept(patch, fix_module("merge"), "commit_down", after=refused)
            run_fix(yard, "a", fix)
    assert yard.copy_image("a", snapshot) == snapshot
    assert yard.wait_for_tasks(30)
    rig.expect("a", disk, picture(SIZE, ONE, THREE))
    settle(rig.host("two"), "a", "b")
    rig.expect("a", snapshot, picture(SIZE, ONE))
    rig.expect("b", snapshot, picture(SIZE, ONE))
    rig.expect("a", disk, picture(SIZE, ONE, THREE))
    rig.clean_slate("a", "b")


def test_a_snapshot_copied_back_just_before_its_merge(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removed Snapshot that was made visible again is not consumed by a merge planned before."""
    yard, other = rig.yard, rig.host("two")
    disk = rig.disk("a", ONE)
    snapshot = yard.create_snapshot("a", disk)
    yard.copy_image("b", snapshot)
    rig.wait()
    rig.write("a", disk, THREE)
    yard.remove_image("a", snapshot, options=COMMIT_ONLY)
    (fix,) = fixes(yard, "a", "merge")
    back = lambda: other.copy_image("a", snapshot, options=COMMIT_ONLY)  # noqa: E731
    intercept(monkeypatch, fix_module("merge"), "require_free_space", before=back)
    run_fix(yard, "a", fix)
    rig.expect("a", snapshot, picture(SIZE, ONE))
    rig.expect("a", disk, picture(SIZE, ONE, THREE))
    settle(yard, "a", "b")
    rig.expect("a", snapshot, picture(SIZE, ONE))
