"""Two hosts at once: what the first is making is safe from the second, and the other way round."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from diskyard import KiB, MiB
from tests.api.helpers import (
    COMMIT_ONLY,
    SIZE,
    Rig,
    clean_up,
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


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("verb", ["snapshot", "disk", "copy", "revert", "copy base"])
def test_a_second_host_cleans_while_a_volume_is_made(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, verb: str, moment: str
) -> None:
    """What the first host is making is not garbage, at no moment, and its verb succeeds."""
    yard, other = rig.yard, rig.host("two")
    disk = rig.disk("a", ONE)
    base = yard.create_snapshot("a", disk)
    rig.write("a", disk, TWO)
    reader = rig.disk("a", THREE)
    clean = clean_up(other, "a")
    words = {moment: clean}
    calls = intercept(monkeypatch, rig.repository("a").storage, "create_volume", 9, **words)
    run: dict[str, Callable[[], str | None]] = {
        "snapshot": lambda: yard.create_snapshot("a", disk),
        "disk": lambda: yard.create_virtual_disk("a", SIZE, base),
        "copy": lambda: yard.copy_image("b", disk, options=COMMIT_ONLY),
        "revert": lambda: yard.revert_virtual_disk("a", disk, base),
        "copy base": lambda: yard.copy_image("a", disk, reader, options=COMMIT_ONLY),
    }
    made = run[verb]()
    assert calls
    clean()
    settle(other, "b", "a")
    rig.expect("a", base, picture(SIZE, ONE))
    rig.expect("a", reader, picture(SIZE, THREE))
    rig.expect("a", disk, picture(SIZE, ONE) if verb == "revert" else picture(SIZE, ONE, TWO))
    if made is not None:
        wanted = picture(SIZE, ONE) if verb == "disk" else picture(SIZE, ONE, TWO)
        rig.expect("b" if verb == "copy" else "a", made, wanted)
    rig.clean_slate("a", "b")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_second_host_cleans_while_an_optimized_volume_is_built(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The volume that is being filled stays, and the image is switched to it."""
    yard, other = rig.yard, rig.host("two")
    disk = rig.disk("a", ONE)
    yard.create_snapshot("a", disk)
    rig.write("a", disk, TWO)
    yard.set_strategy("a", disk, "performance")
    (fix,) = fixes(yard, "a", "optimize")
    seen: list[list[str | None]] = []

    def clean() -> None:
        seen.append([found.held_by for found in fixes(other, "a", "optimize")])
        clean_up(other, "a")()

    calls = intercept(monkeypatch, fix_module("optimize"), "copy_view", **{moment: clean})
    assert run_fix(yard, "a", fix).changed
    assert len(calls) == 1
    assert seen != [[None]]
    assert yard.get_image_status("a", disk).status == "optimized"
    rig.expect("a", disk, picture(SIZE, ONE, TWO))
    settle(other, "a")
    rig.clean_slate("a")


def test_a_write_while_an_optimized_volume_is_built(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that wrote meanwhile makes the new volume stale: it is thrown away, not switched to."""
    yard, other = rig.yard, rig.host("two")
    disk = rig.disk("a", ONE)
    yard.create_snapshot("a", disk)
    yard.set_strategy("a", disk, "performance")
    (fix,) = fixes(yard, "a", "optimize")
    write = lambda: rig.write("a", disk, TWO, yard=other)  # noqa: E731
    intercept(monkeypatch, fix_module("optimize"), "copy_view", after=write)
    run_fix(yard, "a", fix)
    rig.expect("a", disk, picture(SIZE, ONE, TWO))
    settle(yard, "a")
    rig.expect("a", disk, picture(SIZE, ONE, TWO))
    assert yard.get_image_status("a", disk).status == "optimized"
    rig.clean_slate("a")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_base_removed_while_a_disk_is_created_on_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The disk has the base's bytes all the same."""
    yard, other = rig.yard, rig.host("two")
    source = rig.disk("a", ONE)
    base = yard.create_snapshot("a", source)
    yard.remove_image("a", source)
    rig.wait()

    def remove() -> None:
        other.remove_image("a", base)
        other.wait_for_tasks(30)
        clean_up(other, "a")()

    intercept(monkeypatch, rig.repository("a").storage, "create_volume", **{moment: remove})
    disk = yard.create_virtual_disk("a", SIZE, base)
    rig.expect("a", disk, picture(SIZE, ONE))
    settle(other, "a")
    rig.expect("a", disk, picture(SIZE, ONE))
    assert len(rig.files("a")) == 1
    rig.clean_slate("a")


def test_a_base_removed_before_a_copy_on_it_is_mended(rig: Rig) -> None:
    """The difference keeps the base it was promised."""
    yard = rig.yard
    disk = rig.disk("a", ONE)
    base = yard.create_snapshot("a", disk)
    yard.copy_image("b", base)
    rig.wait()
    rig.write("a", disk, THREE)
    copy = yard.copy_image("b", disk, base, options=COMMIT_ONLY)
    yard.remove_image("b", base)
    rig.wait()
    settle(rig.host("two"), "b", "a")
    rig.expect("b", copy, picture(SIZE, ONE, THREE))
    settle(yard, "a", "b")
    rig.clean_slate("a", "b")


def test_a_copy_whose_source_was_written_between_two_runs_of_its_mend(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is of the moment it was asked for, however often it was begun."""
    yard, other = rig.yard, rig.host("two")
    disk = rig.disk("a", ONE, TWO)
    copy = yard.copy_image("b", disk, options=COMMIT_ONLY)
    (fix,) = fixes(yard, "b")
    with monkeypatch.context() as patch:
        intercept(patch, fix_module("mend"), "copy_view", after=kill)
        assert code_of(lambda: run_fix(yard, "b", fix)) == "InternalError"
    rig.write("a", disk, (9, 0, SIZE))
    clean_up(other, "a")()
    with monkeypatch.context() as patch:
        intercept(patch, fix_module("mend"), "copy_view", before=kill)
        assert code_of(lambda: run_fix(other, "b", fix)) == "InternalError"
    rig.write("a", disk, (8, 0, SIZE))
    settle(other, "b", "a")
    rig.expect("b", copy, picture(SIZE, ONE, TWO))
    rig.expect("a", disk, picture(SIZE, (8, 0, SIZE)))
    rig.clean_slate("a", "b")


def test_a_mend_taken_over_cannot_seal(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose volume was replaced by a later one finds nothing to do."""
    yard, other = rig.yard, rig.host("two")
    disk = rig.disk("a", ONE)
    copy = yard.copy_image("b", disk, options=COMMIT_ONLY)
    (fix,) = fixes(yard, "b")

    def cancel() -> None:
        other.remove_image("b", copy)
        other.wait_for_tasks(30)

    intercept(monkeypatch, fix_module("mend"), "copy_view", after=cancel)
    assert run_fix(yard, "b", fix).changed is False
    settle(yard, "a", "b")
    assert rig.files("b") == []
