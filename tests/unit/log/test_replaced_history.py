"""A log whose history is another than the one that a process has known: restored, or failed over."""

from __future__ import annotations

import pytest

from diskyard import errors
from diskyard.log.log import Log
from diskyard.log.store import LogKind
from diskyard.model.records import entry_id
from tests.unit.log.shelf import DAY_S, Shelf, write, write_many
from tests.unit.records import uid


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def go_back(shelf: Shelf, number: int) -> None:
    """Put an older state of the log back, of which an entry is the newest."""
    kinds: tuple[LogKind, ...] = ("entry", "checkpoint")
    for kind in kinds:
        for later in shelf.numbers(kind):
            if later > number:
                shelf.storage().delete(kind, later)


def expect_read_only(log: Log, words: str) -> None:
    with pytest.raises(errors.CorruptRecord, match=f"history .* was replaced: .*{words}"):
        write(log, "mine")
    assert "history was replaced" in (log.read_only_because() or "")


def test_another_entry_in_the_place_of_one_that_was_known(shelf: Shelf) -> None:
    log = shelf.log()
    write_many(log, 5)
    go_back(shelf, 4)
    write(shelf.log(), "theirs")
    state = log.refresh()
    assert (state.version, uid("theirs") in state.volumes) == (5, True)  # what there is can be read
    expect_read_only(log, "another entry 5")


def test_another_history_that_has_grown_past_the_known_one(shelf: Shelf) -> None:
    log = shelf.log()
    write_many(log, 5)
    go_back(shelf, 2)
    write_many(shelf.log(), 200)  # with checkpoints of its own
    assert log.refresh().version > 200
    expect_read_only(log, "another entry 5")


def test_a_log_that_ends_earlier_than_was_known(shelf: Shelf) -> None:
    log = shelf.log()
    write_many(log, 5)
    go_back(shelf, 4)
    assert log.refresh().version == 4
    expect_read_only(log, "ended at entry 5, and now ends at entry 4")


def test_it_stays_so_until_the_log_is_opened_anew(shelf: Shelf) -> None:
    log = shelf.log()
    write_many(log, 5)
    go_back(shelf, 4)
    log.refresh()
    write(shelf.log(), "theirs")
    log.refresh()
    expect_read_only(log, "ended at entry 5")
    anew = shelf.log()
    assert anew.read_only_because() is None
    write(anew, "mine")


def test_the_same_history_read_anew_is_no_other(shelf: Shelf) -> None:
    """Trimmed far past what was known, with checkpoints in between."""
    shelf = Shelf(entry_age_kept_s=-DAY_S)
    log = shelf.log()
    write_many(log, 5)
    write_many(shelf.log(), 400)
    assert 5 not in shelf.numbers("entry")
    log.refresh()
    assert log.read_only_because() is None
    write(log, "mine")


def test_an_entry_is_in_the_history_or_not(shelf: Shelf) -> None:
    log = shelf.log()
    write_many(log, 3)
    before = log.refresh()
    go_back(shelf, 2)
    anew = shelf.log()
    write_many(anew, 2)
    now = anew.refresh()
    assert anew.has_entry(entry_id(now.version, now.nonce)) is True
    assert anew.has_entry(entry_id(before.version, before.nonce)) is False
    assert anew.has_entry(entry_id(now.version + 1, now.nonce)) is False
    assert anew.has_entry("2.") is None  # format 1.0 says nothing of the history
