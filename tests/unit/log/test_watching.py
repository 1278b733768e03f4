"""Who watches a log is told of each entry once, in order, whether it was read or published."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence

import pytest

from diskyard import errors
from diskyard.host.publishing import UncertainError
from diskyard.log.log import Author, Log
from diskyard.model.state import State
from diskyard.model.transaction import Entry, apply
from diskyard.repository.commit import commit
from diskyard.testing.together import at_once
from tests.unit.log.shelf import DAY_S, Shelf, once, write, write_many
from tests.unit.records import uid, volume

LONG_S = 60.0


class Told:
    """What a listener was told: numbers of entries, and pairs of numbers where some were skipped."""

    def __init__(self, log: Log) -> None:
        self.numbers: list[int | tuple[int, int]] = []
        self.at: State | None = None
        self.end = log.watch(self)

    def __call__(self, entry: Entry | None, before: State, after: State) -> None:
        if self.at is not None:
            assert (before.version, before.nonce) == (self.at.version, self.at.nonce)
        if entry is None:
            self.numbers.append((before.version, after.version))
        else:
            self.numbers.append(entry.number)
            assert apply(before, entry) == after
        self.at = after


@pytest.fixture
def shelf() -> Shelf:
    return Shelf(entry_age_kept_s=DAY_S)


def test_what_is_published_and_what_is_read_is_told_once(shelf: Shelf) -> None:
    log = shelf.log()
    write(log, "before")
    told = Told(log)
    write(log, "a")
    write_many(shelf.log(), 2)
    log.refresh()
    log.refresh()
    write(log, "b")
    assert told.numbers == [2, 3, 4, 5]
    told.end()
    write(log, "c")
    assert told.numbers == [2, 3, 4, 5]


def test_an_entry_of_several_is_told_as_one(shelf: Shelf) -> None:
    log = shelf.log()
    log.refresh()
    told = Told(log)
    names = ("a", "b", "c")
    acts = [
        lambda name=name: commit(log, lambda draft: draft.put_volume(volume(uid(name))), Author("test", ""))
        for name in names
    ]
    at_once(log, *acts)
    assert told.numbers == [1]
    assert told.at is not None
    assert set(told.at.volumes) == {uid(name) for name in names}


@pytest.mark.parametrize("was_made", [False, True])
def test_after_an_unknown_outcome_what_is_read_again_is_not_told_again(shelf: Shelf, was_made: bool) -> None:
    log, watched = shelf.open()
    write_many(log, 3)
    told = Told(log)
    write(log, "a")

    def fail() -> None:
        raise UncertainError(errno.EIO, "Input/output error")

    setattr(watched, "after" if was_made else "before", once("put", fail, watched))
    with pytest.raises(errors.StorageError):
        write(log, "b")
    assert told.numbers == [4]
    log.refresh()
    write(log, "c")
    assert told.numbers == ([4, 5, 6] if was_made else [4, 5])


def test_what_is_not_durable_yet_is_told_later(shelf: Shelf) -> None:
    log, watched = shelf.open()
    log.refresh()
    told = Told(log)
    write_many(shelf.log(), 2)

    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    watched.before = once("sync_log", fail, watched)
    with pytest.raises(OSError, match="Input"):
        log.refresh()
    assert told.numbers == []
    log.refresh()
    assert told.numbers == [1, 2]


def test_entries_that_were_trimmed_unread_are_skipped() -> None:
    shelf = Shelf()
    log = shelf.log()
    write_many(log, 5)
    told = Told(log)
    write_many(shelf.log(), 400)
    log.refresh()
    assert told.numbers[0] == (5, 384)
    assert told.numbers[1:] == list(range(385, 406))


def test_a_log_that_went_back_is_told_as_such(shelf: Shelf) -> None:
    """A backup was put back: what comes then has numbers that were there before."""
    log = shelf.log()
    write_many(log, 3)
    told = Told(log)
    write_many(log, 2)
    for number in (4, 5):
        shelf.storage().delete("entry", number)
    write(shelf.log(), "new")
    log.refresh()
    write(shelf.log(), "next")
    log.refresh()
    assert told.numbers == [4, 5, (5, 0), 1, 2, 3, 4, 5]
    assert told.at is not None
    assert uid("new") in told.at.volumes


def test_a_listener_that_raises_harms_nobody(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    log = shelf.log()
    log.refresh()
    shown: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", shown.append)

    def fail(entry: Entry | None, before: State, after: State) -> None:
        raise ValueError("of the listener")

    log.watch(fail)
    told = Told(log)
    write_many(log, 2)
    assert told.numbers == [1, 2]
    assert [str(found.exc_value) for found in shown] == ["of the listener"] * 2


def test_a_listener_may_read_the_log(shelf: Shelf) -> None:
    """What that finds is told after what it was told."""
    log = shelf.log()
    log.refresh()
    others: list[Callable[[], object]] = [lambda: write(shelf.log(), "other")]

    def read(entry: Entry | None, before: State, after: State) -> None:
        if others:
            others.pop()()
        log.refresh()

    log.watch(read)
    told = Told(log)
    write(log, "a")
    assert told.numbers == [1, 2]


def test_nobody_waits_for_a_listener_but_who_tells(shelf: Shelf) -> None:
    """While one thread tells, others read and publish; the order stays."""
    log = shelf.log()
    log.refresh()
    tells, may_go = threading.Event(), threading.Event()

    def wait(entry: Entry | None, before: State, after: State) -> None:
        if entry is not None and entry.number == 1:
            tells.set()
            assert may_go.wait(LONG_S)

    log.watch(wait)
    told = Told(log)
    first = threading.Thread(target=write, args=(log, "a"))
    first.start()
    assert tells.wait(LONG_S)
    write_many(log, 2)
    write_many(shelf.log(), 1)
    assert log.refresh().version == 4
    may_go.set()
    first.join()
    assert told.numbers == [1, 2, 3, 4]


def test_many_threads_and_two_logs(shelf: Shelf) -> None:
    logs = [shelf.log(), shelf.log()]
    for log in logs:
        log.refresh()
    told = [Told(log) for log in logs]

    def work(log: Log, name: str) -> None:
        for number in range(10):
            record = volume(uid(f"{name} {number}"))
            commit(log, lambda draft, record=record: draft.put_volume(record), Author("test", ""))  # type: ignore[misc]

    threads = [
        threading.Thread(target=work, args=(log, f"{index} {number}"))
        for index, log in enumerate(logs)
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = [log.refresh().version for log in logs]
    assert versions[0] == versions[1]
    for found in told:
        assert found.numbers == list(range(1, versions[0] + 1))
    assert len(logs[0].refresh().volumes) == 80


def test_a_reader_suspended_over_a_trim_tells_no_false_news() -> None:
    for call in range(1, 8):
        shelf = Shelf()
        write_many(shelf.log(), 10)
        reader, watched = shelf.open()
        reader.refresh()
        told = Told(reader)
        write_many(shelf.log(), 3)
        watched.before = _suspended_at(call, shelf)
        reader.refresh()
        watched.before = lambda method, words: None
        reader.refresh()
        assert told.at == shelf.log().refresh()


def _suspended_at(call: int, shelf: Shelf) -> Callable[[str, Sequence[object]], None]:
    left = [call]

    def hook(method: str, words: Sequence[object]) -> None:
        left[0] -= 1
        if not left[0]:
            write_many(shelf.log(), 300)

    return hook
