"""Folding and trimming, and who is suspended meanwhile: no false news, no false loss."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from diskyard import errors
from diskyard.testing.faults import Hook, nothing
from tests.unit.log.shelf import DAY_S, Shelf, once, write, write_many
from tests.unit.records import uid


def test_checkpoints_are_folded_and_three_are_kept() -> None:
    shelf = Shelf()
    write_many(shelf.log(), 400)
    checkpoints, entries = shelf.numbers("checkpoint"), shelf.numbers("entry")
    assert len(checkpoints) == 3
    assert entries == list(range(checkpoints[0], 401))
    assert len(shelf.log().refresh().volumes) == 400


def test_entries_of_the_last_day_are_kept() -> None:
    shelf = Shelf(entry_age_kept_s=DAY_S)
    log = shelf.log()
    write_many(log, 100)
    shelf.clock.time_s += DAY_S - 10
    write_many(log, 300)
    assert shelf.numbers("entry") == list(range(401))
    shelf.clock.time_s += 20
    write_many(log, 64)
    assert shelf.numbers("entry") == list(range(101, 465))


def test_a_checkpoint_that_cannot_be_read_is_not_counted() -> None:
    shelf = Shelf()
    log = shelf.log()
    write_many(log, 200)
    readable = shelf.numbers("checkpoint")
    shelf.spoil("checkpoint", readable[-1])
    write_many(log, 64)
    kept = shelf.numbers("checkpoint")
    assert set(kept) == {*readable, 256}
    assert shelf.numbers("entry")[0] == readable[0]
    assert len(shelf.log().refresh().volumes) == 264


def test_the_newest_entry_is_never_trimmed() -> None:
    shelf = Shelf()
    log = shelf.log()
    for _ in range(300):
        write_many(log, 1)
        assert log.refresh().version in shelf.numbers("entry")


def suspended_at(call: int, shelf: Shelf, count: int) -> Hook:
    """Others write so many entries before the n-th call from now."""
    calls = itertools.count(1)

    def hook(method: str, words: Sequence[object]) -> None:
        if next(calls) == call:
            write_many(shelf.log(), count)

    return hook


@pytest.mark.parametrize("count", [1, 70, 500])
def test_a_reader_that_was_suspended_anywhere_sees_no_false_news(count: int) -> None:
    for call in range(1, 8):
        shelf = Shelf()
        write_many(shelf.log(), 10)
        reader, watched = shelf.open()
        reader.refresh()
        write_many(shelf.log(), 3)
        watched.before = suspended_at(call, shelf, count)
        state = reader.refresh()
        assert state.version in (13, 13 + count)
        assert len(state.volumes) == state.version
        assert reader.damage is None
        watched.before = nothing
        assert reader.refresh() == shelf.log().refresh()


def test_a_writer_that_publishes_into_a_trimmed_gap_is_told_that_it_is_not_known() -> None:
    shelf = Shelf()
    write_many(shelf.log(), 5)
    writer, watched = shelf.open()
    writer.refresh()
    watched.before = once("put", lambda: write_many(shelf.log(), 500), watched)
    with pytest.raises(errors.StorageError) as caught:
        write(writer, "late")
    assert caught.value.details["outcome"] == "unknown"
    # Nobody takes the entry in the gap for news, and the log goes on.
    for log in (writer, shelf.log()):
        assert log.refresh().version == 505
        assert uid("late") not in log.refresh().volumes
    assert write(writer, "again") is not None
    assert uid("again") in shelf.log().refresh().volumes
    write_many(shelf.log(), 200)
    assert shelf.numbers("entry")[0] > 6


def test_another_reader_that_stands_at_the_gap_is_not_misled() -> None:
    shelf = Shelf()
    write_many(shelf.log(), 5)
    writer, watched = shelf.open()
    writer.refresh()
    reader = shelf.log()
    assert reader.refresh().version == 5
    watched.before = once("put", lambda: write_many(shelf.log(), 500), watched)
    with pytest.raises(errors.StorageError):
        write(writer, "late")
    assert reader.refresh().version == 505
    assert uid("late") not in reader.refresh().volumes


def test_an_entry_stands_though_its_neighbours_were_trimmed_if_a_checkpoint_lists_it() -> None:
    shelf = Shelf()
    write_many(shelf.log(), 5)
    writer, watched = shelf.open()
    writer.refresh()
    watched.after = once("put", lambda: write_many(shelf.log(), 500), watched)
    assert write(writer, "first") is not None
    assert writer.refresh().version == 506
    assert uid("first") in shelf.log().refresh().volumes


def test_a_writer_suspended_within_a_day_is_simply_told_that_it_lost() -> None:
    shelf = Shelf(entry_age_kept_s=DAY_S)
    write_many(shelf.log(), 5)
    writer, watched = shelf.open()
    writer.refresh()
    watched.before = once("put", lambda: write_many(shelf.log(), 500), watched)
    assert write(writer, "late") is None
    assert writer.refresh().version == 505


def test_a_trimmed_entry_that_a_suspended_writer_puts_back() -> None:
    """It looks as if nothing had come after it; that no checkpoint is at or below it shows otherwise."""
    shelf = Shelf()
    log = shelf.log()
    write_many(log, 10)
    stale = log.refresh()
    copies = shelf.storage().get("entry", stale.version)
    write_many(shelf.log(), 400)
    assert stale.version not in shelf.numbers("entry")
    assert copies[0] is not None
    shelf.storage().rewrite("entry", stale.version, 0, copies[0])
    assert log.refresh().version == 410
