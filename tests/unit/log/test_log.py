"""Reading, publishing, twins: what each reader sees whatever is missing or damaged."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import msgspec
import pytest

from diskyard import errors
from diskyard.host.identity import new_nonce
from diskyard.host.publishing import UncertainError
from diskyard.log import entries
from diskyard.log.codec import MAJOR, MINOR, Checkpoint, decode, encode
from diskyard.log.replicas import look_at_replicas, rewrite_replica
from diskyard.model.transaction import Entry
from tests.unit.log.shelf import Shelf, once, part, write, write_many
from tests.unit.records import uid


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def entry_of(shelf: Shelf, number: int) -> Entry:
    return decode(shelf.storage().get("entry", number)[0] or b"", Entry)[0]


def test_every_reader_sees_what_was_published(shelf: Shelf) -> None:
    first, second = shelf.log(), shelf.log()
    assert second.refresh().version == 0
    write(first, "a")
    write(second, "b")
    for log in (first, second, shelf.log()):
        assert log.refresh().version == 2
        assert set(log.refresh().volumes) == {uid("a"), uid("b")}


def test_of_two_writers_one_loses(shelf: Shelf) -> None:
    first, second = shelf.log(), shelf.log()
    state = second.refresh()
    write(first, "a")
    assert second.publish([part("b")], state, new_nonce()) is None
    assert set(second.refresh().volumes) == {uid("a")}


def test_publishing_on_an_old_state_loses(shelf: Shelf) -> None:
    log = shelf.log()
    state = log.refresh()
    write(log, "a")
    assert log.publish([part("b")], state, new_nonce()) is None


def test_what_another_wrote_is_made_durable_before_it_is_answered(shelf: Shelf) -> None:
    reader, watched = shelf.open()
    reader.refresh()
    write(shelf.log(), "a")
    watched.calls.clear()
    reader.refresh()
    assert "sync_log" in watched.calls
    watched.calls.clear()
    reader.refresh()
    assert "sync_log" not in watched.calls


def test_an_entry_that_no_reader_would_read_whole_is_not_published(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = shelf.log()
    write(log, "x")
    monkeypatch.setattr(entries, "ENTRY_LIMIT_BYTES", len(shelf.storage().get("entry", 1)[0] or b""))
    with pytest.raises(errors.InternalError, match="bytes"):
        log.publish([part("a"), part("b")], log.refresh(), new_nonce())
    assert shelf.numbers("entry") == [0, 1]
    assert write(log, "c") is not None


# -- twins -------------------------------------------------------------------------------------


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("data", [None, b"", b"damaged"])
def test_one_copy_is_enough_and_the_next_writer_completes_it(
    shelf: Shelf, copy: int, data: bytes | None
) -> None:
    log = shelf.log()
    write(log, "a")
    shelf.spoil("entry", 1, copy, data=data)
    for reader in (log, shelf.log()):
        assert set(reader.refresh().volumes) == {uid("a")}
        assert reader.damage is None
    other = shelf.log()
    write(other, "b")
    first, second = shelf.storage().get("entry", 1)
    assert first == second
    assert decode(first or b"", Entry)[0].number == 1


def test_swapped_entries_are_damage(shelf: Shelf) -> None:
    log = shelf.log()
    write_many(log, 3)
    two = shelf.storage().get("entry", 2)[0]
    shelf.spoil("entry", 3, data=two)
    reader = shelf.log()
    assert reader.refresh().version == 2
    assert reader.damage is not None
    assert "entry 3" in reader.damage


def test_an_entry_of_another_repository_is_damage(shelf: Shelf) -> None:
    other = Shelf()
    write(other.log(), "stranger")
    write(shelf.log(), "own")
    shelf.spoil("entry", 1, data=other.storage().get("entry", 1)[0])
    reader = shelf.log()
    assert reader.refresh().version == 0
    assert "another repository" in (reader.damage or "")


def test_an_entry_that_does_not_follow_is_damage(shelf: Shelf) -> None:
    log = shelf.log()
    write_many(log, 2)
    forged = msgspec.structs.replace(entry_of(shelf, 2), previous="another")
    shelf.spoil("entry", 2, data=encode(forged))
    assert shelf.log().refresh().version == 1


def test_with_both_copies_damaged_the_repository_is_read_only_and_names_it(shelf: Shelf) -> None:
    write_many(shelf.log(), 5)
    shelf.spoil("entry", 3)
    log, watched = shelf.open()
    state = log.refresh()
    assert state.version == 2
    attempts: tuple[Callable[[], object], ...] = (lambda: write(log, "a"), log.require_writable)
    for attempt in attempts:
        with pytest.raises(errors.CorruptRecord, match="entry 3"):
            attempt()
    assert not {"put", "rewrite", "delete"} & set(watched.calls)
    # Once it can be read again, all goes on.
    shelf.storage().store.objects["entry", 3] = [encode(entry_of(shelf, 4))] * 2
    assert log.refresh().version == 2
    assert shelf.numbers("entry") == [0, 1, 2, 3, 4, 5]


def test_a_checkpoint_leads_past_an_entry_that_cannot_be_read(shelf: Shelf) -> None:
    shelf.entry_age_kept_s = 1e9
    write_many(shelf.log(), 70)
    shelf.spoil("entry", 10)
    log = shelf.log()
    assert log.refresh().version == 70
    assert log.damage is None
    write(log, "a")


# -- checkpoints --------------------------------------------------------------------------------


def test_a_checkpoint_damaged_in_both_copies_is_read_around(shelf: Shelf) -> None:
    write_many(shelf.log(), 130)
    newest = shelf.numbers("checkpoint")[-1]
    shelf.spoil("checkpoint", newest, data=b"damaged")
    log = shelf.log()
    assert log.refresh() == Shelf.log(shelf).refresh()
    assert log.refresh().version == 130
    assert len(log.refresh().volumes) == 130


def test_no_checkpoint_at_all(shelf: Shelf) -> None:
    shelf.spoil("checkpoint", 0)
    with pytest.raises(errors.CorruptRecord, match="checkpoint 0"):
        shelf.log().refresh()


def test_a_checkpoint_that_cannot_be_read_is_rewritten_as_it_was(shelf: Shelf) -> None:
    write_many(shelf.log(), 130)
    newest = shelf.numbers("checkpoint")[-1]
    whole = shelf.storage().get("checkpoint", newest)
    shelf.spoil("checkpoint", newest)
    log, storage = shelf.open()
    log.refresh()
    assert rewrite_replica(storage, log, "checkpoint", newest) is True
    (was, _), (now, _) = (
        decode(copies[0] or b"", Checkpoint) for copies in (whole, shelf.storage().get("checkpoint", newest))
    )
    assert now.state() == was.state()
    assert now.nonces == was.nonces
    assert look_at_replicas(storage, log, "checkpoint", newest) is None
    assert rewrite_replica(storage, log, "checkpoint", newest) is False


def test_a_checkpoint_that_cannot_be_rebuilt_goes_if_a_newer_one_is_there(shelf: Shelf) -> None:
    write_many(shelf.log(), 70)
    shelf.spoil("checkpoint", 0)
    log, storage = shelf.open()
    log.refresh()
    assert rewrite_replica(storage, log, "checkpoint", 0) is True
    assert 0 not in shelf.numbers("checkpoint")
    assert log.rewrite_checkpoint(0) is False


def test_the_only_checkpoint_is_not_removed(shelf: Shelf) -> None:
    log, storage = shelf.open()
    log.refresh()
    shelf.spoil("checkpoint", 0)
    assert rewrite_replica(storage, log, "checkpoint", 0) is False
    assert shelf.numbers("checkpoint") == [0]


def test_an_entry_with_one_bad_copy_is_rewritten_from_the_other(shelf: Shelf) -> None:
    log, storage = shelf.open()
    write_many(log, 3)
    shelf.spoil("entry", 2, 1, data=b"damaged")
    assert rewrite_replica(storage, log, "entry", 2) is True
    assert "delete" not in storage.calls
    assert look_at_replicas(storage, log, "entry", 2) is None
    shelf.spoil("entry", 2)
    assert rewrite_replica(storage, log, "entry", 2) is False
    assert shelf.storage().get("entry", 2) == (b"", b"")


# -- versions -----------------------------------------------------------------------------------


def republish(shelf: Shelf, number: int, version: tuple[int, int]) -> None:
    shelf.spoil("entry", number, data=encode(entry_of(shelf, number), version=version))


def test_a_newer_minor_version_is_read_and_not_written(shelf: Shelf) -> None:
    write_many(shelf.log(), 2)
    republish(shelf, 1, (MAJOR, MINOR + 1))
    log, watched = shelf.open()
    assert log.refresh().version == 2
    with pytest.raises(errors.Unsupported):
        write(log, "a")
    assert not {"put", "rewrite", "delete"} & set(watched.calls)


def test_a_newer_major_version_is_refused(shelf: Shelf) -> None:
    write_many(shelf.log(), 2)
    republish(shelf, 2, (2, 0))
    with pytest.raises(errors.NotARepository, match=r"2\.0"):
        shelf.log().refresh()


# -- failures of the storage ------------------------------------------------------------------------


def test_a_full_storage_before_the_name_is_given_changes_nothing(shelf: Shelf) -> None:
    log, watched = shelf.open()
    log.refresh()

    def full() -> None:
        raise OSError(errno.ENOSPC, "full")

    watched.before = once("put", full, watched)
    with pytest.raises(errors.NoSpace, match="not made"):
        write(log, "a")
    assert log.refresh().version == 0
    assert write(log, "b") is not None


def test_a_failure_after_the_name_is_given_is_unknown_and_a_look_tells(shelf: Shelf) -> None:
    log, watched = shelf.open()
    log.refresh()

    def fail() -> None:
        raise UncertainError(errno.EIO, "Input/output error")

    watched.after = once("put", fail, watched)
    with pytest.raises(errors.StorageError) as caught:
        write(log, "a")
    assert caught.value.details["outcome"] == "unknown"
    assert set(log.refresh().volumes) == {uid("a")}
    watched.before = once("put", fail, watched)
    with pytest.raises(errors.StorageError):
        write(log, "b")
    assert set(log.refresh().volumes) == {uid("a")}


def test_a_storage_that_does_not_answer_is_no_damage(shelf: Shelf) -> None:
    log, watched = shelf.open()
    log.refresh()

    def silent() -> None:
        raise errors.RepositoryUnavailable("silent")

    watched.before = once("get", silent, watched)
    with pytest.raises(errors.RepositoryUnavailable):
        log.refresh()
    assert log.damage is None
    assert write(log, "a") is not None


@pytest.mark.parametrize("method", ["put", "numbers", "delete"])
def test_a_checkpoint_that_cannot_be_written_fails_no_entry(shelf: Shelf, method: str) -> None:
    log, watched = shelf.open()
    write_many(log, 62 + 3 * 64)  # so that there is a checkpoint to delete too

    def fail_in_folding(name: str, words: Sequence[object]) -> None:
        # Folding writes the checkpoint, lists them, and deletes what is too old.
        if name == method and words[0] == "checkpoint" and (name == "put" or "checkpoint" in put):
            put.clear()
            raise OSError(errno.ENOSPC, "full")
        if name == "put":
            put.append(str(words[0]))

    put: list[str] = []

    watched.before = fail_in_folding
    for number in range(10):
        assert write(log, f"v{number}") is not None
