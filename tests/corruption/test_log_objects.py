"""Entries and checkpoints, each copy or both, damaged in every way."""

from __future__ import annotations

import pytest

from diskyard import errors
from diskyard.log.store import LogKind
from diskyard.service import call
from diskyard.testing.corruption import DAMAGES, Damage, Outside, apply_to_all
from diskyard.testing.effort import Effort
from diskyard.testing.survey import survey
from diskyard.testing.world import host_named
from tests.conftest import Tally
from tests.corruption.cases import Bench, copies_of, expect_healthy, expect_readable, expect_whole

SAMPLE = 1
SAMPLE_BOTH = 2
_KEPT_FOLDER = "folder with something in it"  # somebody else's: it cannot be renamed over


def targets(bench: Bench) -> list[tuple[LogKind, int]]:
    """Of each kind those that are read, and those that are only kept."""
    entries, checkpoints = bench.numbers("entry"), bench.numbers("checkpoint")
    newest = checkpoints[-1]
    numbers = (entries[0], newest - 1, newest, newest + 1, entries[-1] - 1, entries[-1])
    found: list[tuple[LogKind, int]] = [("entry", number) for number in numbers]
    return [*found, *(("checkpoint", number) for number in (checkpoints[0], newest))]


def test_what_the_world_holds(bench: Bench) -> None:
    """The cases below mean something only on a log that was trimmed and has a tail."""
    entries, checkpoints = bench.numbers("entry"), bench.numbers("checkpoint")
    assert len(checkpoints) == 3
    assert 0 < entries[0] <= checkpoints[0]
    assert entries[-1] > checkpoints[-1] + 2


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_one_copy(
    bench: Bench, outside: Outside, effort: Effort, tally: Tally, damage: Damage, copy: int
) -> None:
    """Everything works; the copy is listed as a clean fix, and is whole after it."""
    tally("corruption")
    chosen = effort.sample(targets(bench), SAMPLE, "one copy", damage, copy)
    for kind, number in chosen:
        expect_other_copy(bench, outside, damage, kind, number, copy)
    tally("corruption", cases=len(chosen), runs=len(chosen))


def expect_other_copy(
    bench: Bench, outside: Outside, damage: Damage, kind: LogKind, number: int, copy: int
) -> None:
    """One copy damaged: the other does all."""
    with bench.world() as world:
        paths = copies_of(world, kind, number)
        whole = paths[copy].read_bytes()
        damage.apply(paths[copy], outside)
        found = survey(world)
        expect_readable(world)
        assert any(f"replica of {kind} {number} again" in words for words in found.listed), found.listed
        if damage.name == _KEPT_FOLDER:
            assert all(isinstance(error, errors.StorageError) for error in found.errors.values())
            return
        assert not found.errors, found.errors
        expect_whole(world, found)
        assert [path.read_bytes() for path in paths] == [whole, whole]
        expect_healthy(world)
    outside.judge()


@pytest.mark.parametrize("copy", [0, 1])
def test_what_is_published_has_two_copies(bench: Bench, outside: Outside, tally: Tally, copy: int) -> None:
    """Of a change that was just answered either copy may be lost."""
    tally("corruption")
    expect_two_copies(bench, outside, copy)
    tally("corruption", cases=1, runs=1)


def expect_two_copies(bench: Bench, outside: Outside, copy: int) -> None:
    """A change, and one of its copies lost."""
    with bench.world() as world:
        service = world.service(host_named("writer"))
        asked = {"repositoryId": "a", "imageId": world.names["d"], "userData": "changed"}
        call(service, "setUserData", asked)
        number = service.connections.get("a").state().version
        service.close()
        world.user_data["a", world.names["d"]] = "changed"
        copies_of(world, "entry", number)[copy].unlink()
        service = world.service(host_named("reader"))
        world.judge_bytes(service)
        service.close()


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_both_copies(bench: Bench, outside: Outside, effort: Effort, tally: Tally, damage: Damage) -> None:
    """Read-only at the last state that can be read, named; or nothing is lost, and it goes on."""
    tally("corruption")
    newest_entry, newest_checkpoint = bench.numbers("entry")[-1], bench.numbers("checkpoint")[-1]
    chosen = effort.sample(targets(bench), SAMPLE_BOTH, "both copies", damage)
    for kind, number in chosen:
        with bench.world() as world:
            apply_to_all(damage, copies_of(world, kind, number), outside)
            found = survey(world)
            expect_readable(world)
            named = f"{kind} {number}" in found.words
            needed = kind == "entry" and (
                number > newest_checkpoint or (damage.vanishes and number == newest_checkpoint)
            )
            if damage.vanishes and number == newest_entry:
                # Nothing shows that it was there: the log ends before it.
                assert not found.errors
            elif needed:
                assert named, found.words
                refused = found.errors["set user data in a"], found.errors["create in a"]
                assert all(isinstance(error, errors.CorruptRecord) for error in refused)
                assert "entry" in refused[0].message
                assert any(f"entry {number}" in words for words in found.listed)
                assert "set user data in b" not in found.errors
            else:
                expect_whole(world, found)
                kept = number >= bench.numbers("checkpoint")[0]  # below nobody reads it
                assert named or damage.vanishes or not kept
                if damage.name != _KEPT_FOLDER:
                    assert not found.errors, found.errors
        outside.judge()
    tally("corruption", cases=len(chosen), runs=len(chosen))


def test_every_checkpoint(bench: Bench, outside: Outside, effort: Effort, tally: Tally) -> None:
    """Nothing tells the state: the repository is refused by name, and the other goes on."""
    tally("corruption")
    chosen = effort.sample(DAMAGES, 5, "every checkpoint")
    for damage in chosen:
        with bench.world() as world:
            for number in bench.numbers("checkpoint"):
                apply_to_all(damage, copies_of(world, "checkpoint", number), outside)
            before = sorted(path.name for path in (world.folder / "a" / "volumes").iterdir())
            found = survey(world)
            assert isinstance(found.errors["connect a"], errors.CorruptRecord)
            assert "heckpoint" in found.errors["connect a"].message
            expect_whole(world, found, but=lambda place, image_id: place == "a")
            assert "set user data in b" not in found.errors
            assert sorted(path.name for path in (world.folder / "a" / "volumes").iterdir()) == before
        outside.judge()
    tally("corruption", cases=len(chosen), runs=len(chosen))
