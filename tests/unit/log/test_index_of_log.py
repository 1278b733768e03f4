"""A log with an index answers what one without it answers, and reads less."""

from __future__ import annotations

import copy
import errno
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from diskyard import errors
from diskyard.host import Files, Host
from diskyard.host.identity import new_nonce, new_uuid
from diskyard.log.codec import MAJOR, MINOR, Checkpoint, decode, encode
from diskyard.log.index.keeper import IndexKeeper
from diskyard.log.index.local import LocalIndex, is_bad
from diskyard.log.index.stored import stored_in
from diskyard.log.log import Author, Log
from diskyard.model.state import State
from diskyard.model.tables import InMemory, Table
from diskyard.model.transaction import Changes, Draft, Entry
from diskyard.repository.commit import commit
from diskyard.testing.faults import WatchedStorage, with_files
from tests.unit.log.shelf import DAY_S, Shelf, write, write_many
from tests.unit.log.test_index_files import assert_same, blocks_in, files_in
from tests.unit.records import disk, uid, volume

AUTHOR = Author("test", "")
BETWEEN = 8


class IndexedShelf(Shelf):
    """A repository, and a host with an index of its log."""

    def __init__(self, folder: Path, *, entry_age_kept_s: float = 0.0) -> None:
        super().__init__(entry_age_kept_s=entry_age_kept_s)
        self.folder = folder

    def keeper(self) -> IndexKeeper:
        index = LocalIndex(self.host, str(self.folder), self.storage().marker)
        return IndexKeeper(index, records_least=0, entries_between=BETWEEN, entries_at_close=1)

    def open_indexed(self) -> tuple[Log, WatchedStorage]:
        watched = WatchedStorage(self.storage())
        log = Log(watched, self.host, entry_age_kept_s=self.entry_age_kept_s, keeper=self.keeper())
        return log, watched

    def indexed(self) -> Log:
        return self.open_indexed()[0]

    def leave_index(self, entries: int) -> None:
        """Write entries, and an index at the last of them."""
        log = self.indexed()
        write_many(log, entries)
        log.close()
        assert self.version() == log.refresh().version

    def version(self) -> int | None:
        """Of the index; None if there is none."""
        loaded = self.keeper().load()
        return None if loaded is None else loaded.state.version

    def expect_as_without(self, log: Log) -> State:
        """The log's newest state, which must be that of a log without an index."""
        state, plain = log.refresh(), self.log()
        assert_same(state, plain.refresh())
        assert log.nonces()[-1] == state.nonce
        assert log.damage == plain.damage
        return state


@pytest.fixture
def shelf(tmp_path: Path) -> IndexedShelf:
    return IndexedShelf(tmp_path / "index")


def asked(watched: WatchedStorage, kind: str) -> set[object]:
    """The numbers of the log's objects that will have been read."""
    numbers = set[object]()

    def note(method: str, words: Sequence[object]) -> None:
        if method == "get" and words[0] == kind:
            numbers.add(words[1])

    before = watched.before

    def both(method: str, words: Sequence[object]) -> None:
        before(method, words)
        note(method, words)

    watched.before = both
    return numbers


def test_reading_begins_at_the_index(shelf: IndexedShelf) -> None:
    shelf.leave_index(50)
    write_many(shelf.log(), 3)
    log, watched = shelf.open_indexed()
    checkpoints, entries = asked(watched, "checkpoint"), asked(watched, "entry")
    shelf.expect_as_without(log)
    assert checkpoints == set()
    assert entries == {50, 51, 52, 53, 54}
    assert len(log.nonces()) == 54


def test_what_was_loaded_goes_on(shelf: IndexedShelf) -> None:
    """With publishing, with what others publish, and with checkpoints when they are due."""
    shelf.leave_index(60)
    log, other = shelf.indexed(), shelf.log()
    for _ in range(80):
        assert write(log, new_uuid()) is not None
        assert write(other, new_uuid()) is not None
        assert write(other, new_uuid()) is not None
        shelf.expect_as_without(log)
    assert shelf.numbers("checkpoint")[0] > 0


def test_no_checkpoint_is_written_because_an_index_was_read(shelf: IndexedShelf) -> None:
    shelf.leave_index(70)
    before = shelf.numbers("checkpoint")
    write(shelf.indexed(), "a")
    assert shelf.numbers("checkpoint") == before


def test_states_of_before_stay_what_they_are(shelf: IndexedShelf) -> None:
    """The index is written and written anew under them."""
    log, plain = shelf.indexed(), shelf.log()
    states: list[tuple[State, State]] = []
    for _ in range(10):
        write_many(log, BETWEEN)
        log.close()
        states.append((log.refresh(), plain.refresh().whole()))
    for state, expected in states:
        assert_same(state, expected)


def test_the_state_rests_on_the_index_before_long(shelf: IndexedShelf) -> None:
    log = shelf.indexed()
    for _ in range(5):
        write_many(log, BETWEEN)
        log.close()
        volumes = log.refresh().volumes
        assert isinstance(volumes, Table)
        assert not isinstance(volumes.stored, InMemory)
        assert len(volumes.changed) == 0


@pytest.mark.parametrize("is_stored", [False, True])
def test_what_came_and_went_leaves_nothing_where_no_index_can_be_written(
    shelf: IndexedShelf, monkeypatch: pytest.MonkeyPatch, *, is_stored: bool
) -> None:
    """Another process may be the one that always writes it."""
    if is_stored:
        shelf.leave_index(100)
    else:
        write_many(shelf.log(), 100)
    log = shelf.indexed()
    monkeypatch.setattr(LocalIndex, "save", lambda *_: None)
    for _ in range(3 * BETWEEN):
        name = new_uuid()
        assert write(log, name) is not None
        gone = Changes(remove_volumes=(uid(name),))
        assert log.publish([AUTHOR.part(gone)], log.refresh(), new_nonce()) is not None
    for records in shelf.expect_as_without(log).tables().values():
        assert isinstance(records, Table)
        assert isinstance(records.stored, InMemory) is not is_stored
        assert len(records.changed) == 0


def test_a_few_records_are_not_worth_an_index(shelf: IndexedShelf) -> None:
    index = LocalIndex(shelf.host, str(shelf.folder), shelf.storage().marker)
    log = Log(shelf.storage(), shelf.host, keeper=IndexKeeper(index, records_least=11, entries_between=1))
    write_many(log, 10)
    log.close()
    assert files_in(shelf.folder) == []
    write_many(log, 1)
    log.close()
    assert shelf.version() == 11


def test_a_process_that_read_little_does_not_write(shelf: IndexedShelf) -> None:
    """A command that adds one entry leaves the index alone; one that read 32 does not."""
    shelf.leave_index(20)
    log = Log(shelf.storage(), shelf.host, keeper=IndexKeeper(shelf.keeper()._index, records_least=0))
    write_many(log, 31)
    log.close()
    assert shelf.version() == 20
    write_many(log, 1)
    log.close()
    assert shelf.version() == 52


# -- an index that is not of this log ----------------------------------------------------------


def test_a_log_restored_from_a_backup(shelf: IndexedShelf) -> None:
    """The entry of the index is not there any more, and later another one has its number."""
    write_many(shelf.log(), 3)
    backup = copy.deepcopy(shelf.storage().store.objects)
    shelf.leave_index(7)
    index = {path: path.read_bytes() for path in files_in(shelf.folder)}
    shelf.storage().store.objects.clear()
    shelf.storage().store.objects.update(backup)
    indexed = shelf.indexed()
    assert shelf.expect_as_without(indexed).version == 3
    indexed.close()  # what it writes beside, it has written then
    write_many(shelf.log(), 7)
    for path, data in index.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    assert shelf.version() == 10
    log, watched = shelf.open_indexed()
    checkpoints = asked(watched, "checkpoint")
    assert shelf.expect_as_without(log).version == 10
    assert checkpoints == {0}
    log.close()
    assert shelf.expect_as_without(shelf.indexed()).version == 10


def test_an_index_whose_entry_was_trimmed(shelf: IndexedShelf) -> None:
    shelf.leave_index(5)
    shelf.clock.time_s += 2 * DAY_S
    write_many(shelf.log(), 400)
    assert shelf.numbers("entry")[0] > 5
    log, watched = shelf.open_indexed()
    checkpoints = asked(watched, "checkpoint")
    shelf.expect_as_without(log)
    assert checkpoints == {shelf.numbers("checkpoint")[-1]}


def test_an_index_far_behind_the_newest_checkpoint(tmp_path: Path) -> None:
    """Reading that is quicker than reading all entries."""
    shelf = IndexedShelf(tmp_path / "index", entry_age_kept_s=DAY_S)
    shelf.leave_index(5)
    write_many(shelf.log(), 130)
    log, watched = shelf.open_indexed()
    checkpoints = asked(watched, "checkpoint")
    shelf.expect_as_without(log)
    assert checkpoints == {128}


@pytest.mark.parametrize("number", [10, 11])
def test_an_entry_that_cannot_be_read(shelf: IndexedShelf, number: int) -> None:
    """The one of the index, or the one after it: it is named, as without an index."""
    shelf.leave_index(10)
    write_many(shelf.log(), 2)
    shelf.spoil("entry", number)
    log = shelf.indexed()
    assert shelf.expect_as_without(log).version == number - 1
    assert log.damage == f"entry {number}: neither replica can be read"
    log.close()
    with pytest.raises(errors.CorruptRecord):
        log.require_writable()


def test_a_checkpoint_that_leads_past_damage(shelf: IndexedShelf) -> None:
    shelf.leave_index(60)
    write_many(shelf.log(), 10)
    shelf.spoil("entry", 62)
    assert shelf.expect_as_without(shelf.indexed()).version == 70


def test_a_missing_entry_with_a_later_one(shelf: IndexedShelf) -> None:
    shelf.leave_index(10)
    write_many(shelf.log(), 3)
    shelf.spoil("entry", 11, data=None)
    log = shelf.indexed()
    assert shelf.expect_as_without(log).version == 10
    assert log.damage == "entry 11 is missing, and entry 13 is there"


def test_what_a_newer_minor_version_wrote_is_not_indexed(shelf: IndexedShelf) -> None:
    shelf.leave_index(10)
    write_many(shelf.log(), 1)
    store = shelf.storage().store.objects
    entry, _ = decode(store["entry", 11][0] or b"", Entry)
    store["entry", 11] = [encode(entry, version=(MAJOR, MINOR + 1))] * 2
    log = shelf.indexed()
    assert shelf.expect_as_without(log).version == 11
    assert log.newer_minor
    log.close()
    assert shelf.version() == 10


def test_a_log_that_is_closed_leaves_no_index(shelf: IndexedShelf) -> None:
    shelf.leave_index(10)
    log = shelf.indexed()
    state = log.refresh()
    log.publish([AUTHOR.part(Changes(closes=True))], state, new_nonce())
    log.close()
    assert list(shelf.folder.iterdir()) == []


# -- an index that cannot be read ----------------------------------------------------------------


def test_an_index_that_is_damaged_in_use_is_read_around(shelf: IndexedShelf) -> None:
    """One call fails, and says so; the next one is answered from the log, which lost nothing."""
    shelf.leave_index(100)
    log = shelf.indexed()
    state = log.refresh()
    os.truncate(blocks_in(shelf.folder), 100)
    with pytest.raises(errors.RepositoryUnavailable, match="discarded") as raised:
        list(state.volumes)
    assert raised.value.advice == "Repeat the call: the repository's log is then read again."
    assert is_bad(state)
    shelf.expect_as_without(log)
    assert files_in(shelf.folder) == []
    assert write(log, "a") is not None
    shelf.expect_as_without(log)
    log.close()
    assert files_in(shelf.folder) == []  # not in this process any more
    shelf.leave_index(1)
    shelf.expect_as_without(shelf.indexed())


def test_planning_on_a_damaged_index_fails_before_anything_is_published(shelf: IndexedShelf) -> None:
    shelf.leave_index(100)
    log = shelf.indexed()
    known = list(log.refresh().volumes)
    log = shelf.indexed()
    log.refresh()
    os.truncate(blocks_in(shelf.folder), 100)

    def doom(draft: Draft) -> None:
        draft.put_volume(msgspec.structs.replace(draft.state.volumes[known[0]], state="doomed"))

    with pytest.raises(errors.RepositoryUnavailable, match="discarded"):
        commit(log, doom, AUTHOR)
    assert shelf.log().refresh().version == 100
    commit(log, doom, AUTHOR)
    assert shelf.expect_as_without(log).volumes[known[0]].state == "doomed"


def test_reading_forward_on_a_damaged_index_begins_anew(shelf: IndexedShelf) -> None:
    """What follows the index cannot be checked against it: the log is read without it, at once."""
    shelf.leave_index(100)
    write_many(shelf.log(), 3)
    loaded = shelf.keeper().load()
    assert loaded is not None
    stored = stored_in(loaded.state.volumes)
    assert stored is not None
    assert stored.root is not None
    path, leaves_bytes = blocks_in(shelf.folder), stored.root.block.offset_bytes
    path.write_bytes(bytes(leaves_bytes) + path.read_bytes()[leaves_bytes:])
    assert shelf.version() == 100  # the roots are whole
    assert shelf.expect_as_without(shelf.indexed()).version == 103
    assert files_in(shelf.folder) == []


def test_a_look_at_what_is_known_does_not_return_a_bad_state(shelf: IndexedShelf) -> None:
    shelf.leave_index(100)
    log = shelf.indexed()
    state = log.refresh()
    os.truncate(blocks_in(shelf.folder), 100)
    with pytest.raises(errors.RepositoryUnavailable):
        state.whole()
    assert_same(log.newest_known(), shelf.log().refresh())


class FailsAt(Files):
    """Fails its n-th call, and after it all others too if the fault lasts."""

    def __init__(self, at: int, number: int, *, lasting: bool) -> None:
        super().__init__(Host.real().identity)
        self.calls = 0
        self._at, self._number, self._lasting = at, number, lasting

    def passing(self, name: str, words: tuple[object, ...], do: Callable[[], Any]) -> Any:
        self.calls += 1
        if self.calls == self._at or (self._lasting and self.calls > self._at):
            raise OSError(self._number, os.strerror(self._number))
        return super().passing(name, words, do)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("lasting", [False, True])
def test_whatever_call_of_the_index_fails(tmp_path: Path, number: int, *, lasting: bool) -> None:
    """The log goes on; at most a call on a record says that it is to be repeated."""
    for at in range(1, 200):
        shelf = IndexedShelf(tmp_path / str(at))
        shelf.leave_index(3)
        files = FailsAt(at, number, lasting=lasting)
        index = LocalIndex(with_files(shelf.host, files), str(shelf.folder), shelf.storage().marker)
        keeper = IndexKeeper(index, records_least=0, entries_between=2, entries_at_close=1)
        log = Log(shelf.storage(), shelf.host, keeper=keeper)
        failed = 0
        for _ in range(4):
            try:
                assert write(log, new_uuid()) is not None
                log.close()
                shelf.expect_as_without(log)
            except errors.RepositoryUnavailable:
                failed += 1
        assert failed <= 1
        shelf.expect_as_without(shelf.indexed())
        if files.calls < at:
            break
    assert 10 < at < 199


def test_where_no_thread_can_be_had_what_was_published_is_answered(
    shelf: IndexedShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.leave_index(3)
    log = shelf.indexed()
    log.refresh()

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        write_many(log, 2 * BETWEEN)
        log.close()
    assert shelf.version() == 3
    write_many(log, BETWEEN)
    log.close()
    assert shelf.expect_as_without(log).version == shelf.version() == 3 + 3 * BETWEEN


# -- what rests on it ----------------------------------------------------------------------------


def test_a_checkpoint_of_it_is_one_of_the_whole_state(shelf: IndexedShelf) -> None:
    shelf.leave_index(60)
    log = shelf.indexed()
    write_many(log, 10)
    number = shelf.numbers("checkpoint")[-1]
    assert number > 60
    written, _ = decode(shelf.storage().get("checkpoint", number)[0] or b"", Checkpoint)
    assert [found.id for found in written.volumes] == sorted(found.id for found in written.volumes)
    shelf.storage().delete("entry", 1)
    shelf.expect_as_without(log)


def test_an_entry_of_very_many_changes(shelf: IndexedShelf) -> None:
    shelf.leave_index(20)
    log = shelf.indexed()
    many = [(uid(f"i{number}"), uid(f"v{number}")) for number in range(700)]
    changes = Changes(
        put_images=tuple(disk(image_id, volume_id) for image_id, volume_id in many),
        put_volumes=tuple(volume(volume_id) for _, volume_id in many),
    )
    assert log.publish([AUTHOR.part(changes)], log.refresh(), new_nonce()) is not None
    shelf.expect_as_without(log)
    write_many(log, BETWEEN)
    log.close()
    assert shelf.version() == 21 + BETWEEN
    shelf.expect_as_without(shelf.indexed())


def test_listeners_are_told_each_entry_once(shelf: IndexedShelf) -> None:
    shelf.leave_index(20)
    log, told = shelf.indexed(), list[int]()

    def listener(entry: Entry | None, before: State, after: State) -> None:
        assert entry is not None
        assert (before.version, after.version) == (entry.number - 1, entry.number)
        told.append(entry.number)

    log.refresh()
    log.watch(listener)
    for _ in range(5):
        write_many(log, BETWEEN)
        write_many(shelf.log(), 3)
        log.refresh()
    assert told == list(range(21, 21 + 5 * (BETWEEN + 3)))


def test_a_bad_index_is_no_news_to_listeners(shelf: IndexedShelf) -> None:
    shelf.leave_index(100)
    log, told = shelf.indexed(), list[Sequence[object]]()
    state = log.refresh()
    log.watch(lambda *step: told.append(step))
    os.truncate(blocks_in(shelf.folder), 100)
    with pytest.raises(errors.RepositoryUnavailable):
        state.whole()
    shelf.expect_as_without(log)
    assert told == []


def test_plain_states_are_whole_already() -> None:
    state = State("marker", 1, "nonce")
    assert state.whole() is state
    assert list(replace(state, images=state.images.set("b", disk("b", None))).images_after("a")) == [
        disk("b", None)
    ]
