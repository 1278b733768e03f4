"""The contract suite's first part: the store for the log."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from diskyard.log.store import LogKind
from diskyard.storage.interface import Storage
from diskyard.testing import other_process
from diskyard.testing.place import Place

KINDS: tuple[LogKind, ...] = ("entry", "checkpoint")
_AT_ONCE = 8
_NUMBERS = 25
_PROCESSES = 4


def framed(payload: bytes) -> bytes:
    """Bytes that look like an object of the log. Of anything else, a format may read only the beginning."""
    return b"kind 1.0 %d checksum\n%s}\n" % (len(payload) + 1, payload)


def _gone(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


def _huge(path: Path) -> None:
    path.unlink()
    path.touch()
    os.truncate(path, 1 << 30)


UNREADABLE: tuple[Callable[[Path], None], ...] = (_folder, _fifo, _link)


class LogStoreContract:
    """What ``put``, ``get``, ``numbers``, ``rewrite``, ``delete`` and ``sync_log`` promise."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_put_is_there_in_both_copies(self, repository: Storage, kind: LogKind) -> None:
        """Both hold the bytes, and they are those that were put."""
        assert repository.get(kind, 7) == (None, None)
        assert repository.put(kind, 7, b"seven") is True
        assert repository.get(kind, 7) == (b"seven", b"seven")

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_second_put_changes_nothing(self, repository: Storage, kind: LogKind) -> None:
        """The loser is told so by the answer False."""
        repository.put(kind, 7, b"first")
        assert repository.put(kind, 7, b"second") is False
        assert repository.get(kind, 7) == (b"first", b"first")

    def test_entries_and_checkpoints_of_one_number_are_apart(self, repository: Storage) -> None:
        """The kinds are two separate stores."""
        repository.put("entry", 7, b"entry")
        assert repository.put("checkpoint", 7, b"checkpoint") is True
        assert repository.get("entry", 7) == (b"entry", b"entry")

    def test_a_large_object(self, repository: Storage) -> None:
        """A transaction of many records, and a checkpoint of many images."""
        data = framed(os.urandom(3 << 20))
        repository.put("checkpoint", 7, data)
        assert repository.get("checkpoint", 7) == (data, data)

    def test_threads_that_put_one_number(self, repository: Storage, place: Place) -> None:
        """Exactly one wins, and both replicas hold its bytes."""
        connections = [place.connect() for _ in range(_AT_ONCE)]
        won: dict[int, list[int]] = {number: [] for number in range(1, _NUMBERS + 1)}
        barrier = threading.Barrier(_AT_ONCE, timeout=30)

        def publish(writer: int) -> None:
            for number in won:
                barrier.wait()
                if connections[writer].put("entry", number, b"writer %d" % writer):
                    won[number].append(writer)

        threads = [threading.Thread(target=publish, args=(writer,)) for writer in range(_AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, winners in won.items():
            assert len(winners) == 1, f"number {number} was won by {winners}"
            data = b"writer %d" % winners[0]
            assert repository.get("entry", number) == (data, data)

    def test_processes_that_put_one_number(self, repository: Storage, place: Place) -> None:
        """The same between processes, for formats that have more than one."""
        if not place.other_processes:
            pytest.skip("the format lives in one process")
        writers = [
            other_process.start(place, "publish", first=1, last=_NUMBERS, text=f"writer {n}")
            for n in range(_PROCESSES)
        ]
        for writer in writers:
            assert other_process.answer(writer) == "ready"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        won = [other_process.answer(writer) for writer in writers]
        for writer in writers:
            other_process.end(writer)
        assert sorted(number for numbers in won for number in numbers) == list(range(1, _NUMBERS + 1))
        for n, numbers in enumerate(won):
            for number in numbers:
                data = b"writer %d" % n
                assert repository.get("entry", number) == (data, data)

    def test_numbers_and_their_ages(self, repository: Storage, place: Place) -> None:
        """Every number, on another connection too. What is new is young."""
        for number in (1, 2, 5):
            repository.put("entry", number, b"x")
        ages = place.connect().numbers("entry")
        assert set(ages) == {0, 1, 2, 5}
        assert all(-2 <= age_s < 60 for age_s in ages.values())
        assert set(repository.numbers("checkpoint")) == {0}

    def test_newest_number(self, repository: Storage, place: Place) -> None:
        """The highest number, on another connection too, and also if only one replica exists."""
        assert repository.newest_number("entry") == 0
        for number in (9, 10, 300):
            repository.put("entry", number, b"x")
            assert place.connect().newest_number("entry") == number
        repository.delete("entry", 300)
        assert repository.newest_number("entry") == 10
        assert repository.newest_number("checkpoint") == 0

    def test_has(self, repository: Storage, place: Place) -> None:
        """It exists for another connection too, until it is deleted."""
        repository.put("entry", 7, b"x")
        for connection in (repository, place.connect()):
            found = [(kind, number) for kind in KINDS for number in (0, 6, 7) if connection.has(kind, number)]
            assert sorted(found) == [("checkpoint", 0), ("entry", 0), ("entry", 7)]
        repository.delete("entry", 7)
        assert not repository.has("entry", 7)

    @pytest.mark.parametrize("kind", KINDS)
    def test_delete_removes_both_copies(self, repository: Storage, kind: LogKind) -> None:
        """It is absent afterwards. Deleting what is absent does nothing."""
        repository.put(kind, 7, b"seven")
        repository.delete(kind, 7)
        repository.delete(kind, 7)
        assert repository.get(kind, 7) == (None, None)
        assert 7 not in repository.numbers(kind)

    @pytest.mark.parametrize("copy", [0, 1])
    def test_rewrite_changes_one_copy(self, repository: Storage, copy: int) -> None:
        """The other stays."""
        repository.put("entry", 7, b"old")
        repository.rewrite("entry", 7, copy, b"new")
        copies = repository.get("entry", 7)
        assert (copies[copy], copies[1 - copy]) == (b"new", b"old")

    def test_rewrite_is_never_absent_nor_half(self, repository: Storage, place: Place) -> None:
        """A reader sees the old bytes or the new ones."""
        texts = {framed(b"a" * 5000), framed(b"b" * 70_000)}
        repository.put("entry", 7, min(texts))
        done = threading.Event()
        seen: set[bytes | None] = set()

        def read() -> None:
            reader = place.connect()
            while not done.is_set():
                seen.update(reader.get("entry", 7))

        thread = threading.Thread(target=read)
        thread.start()
        for _ in range(40):
            for text in sorted(texts):
                repository.rewrite("entry", 7, 0, text)
                repository.rewrite("entry", 7, 1, text)
        done.set()
        thread.join()
        assert seen <= texts

    def test_sync_log(self, repository: Storage) -> None:
        """It may be called at any time."""
        repository.sync_log()

    # -- copies that are damaged, for formats that keep them as files ----------------------

    @pytest.mark.parametrize("copy", [0, 1])
    def test_one_copy_is_gone(self, repository: Storage, place: Place, copy: int) -> None:
        """The number is not free: one replica is enough."""
        if place.copy_path is None:
            pytest.skip("the format has no files to damage")
        repository.put("entry", 7, b"seven")
        place.copy_path("entry", 7, copy).unlink()
        copies = repository.get("entry", 7)
        assert (copies[copy], copies[1 - copy]) == (None, b"seven")
        assert 7 in repository.numbers("entry")
        assert repository.put("entry", 7, b"other") is False
        assert repository.get("entry", 7)[1 - copy] == b"seven"
        repository.rewrite("entry", 7, copy, b"seven")
        assert repository.get("entry", 7) == (b"seven", b"seven")

    @pytest.mark.parametrize("spoil", UNREADABLE)
    @pytest.mark.parametrize("copy", [0, 1])
    def test_a_copy_that_cannot_be_read_is_empty(
        self, repository: Storage, place: Place, copy: int, spoil: Callable[[Path], None]
    ) -> None:
        """It exists, it does not hang, it leaks no descriptor, and rewriting mends it."""
        if place.copy_path is None:
            pytest.skip("the format has no files to damage")
        repository.put("entry", 7, b"seven")
        spoil(place.copy_path("entry", 7, copy))
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(8):
            copies = repository.get("entry", 7)
            assert (copies[copy], copies[1 - copy]) == (b"", b"seven")
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert 7 in repository.numbers("entry")
        assert repository.put("entry", 7, b"other") is False
        repository.rewrite("entry", 7, copy, b"seven")
        assert repository.get("entry", 7) == (b"seven", b"seven")

    def test_a_huge_sparse_file_in_its_place(self, repository: Storage, place: Place) -> None:
        """A file of 1 GiB without blocks is refused by its length, without being read."""
        if place.copy_path is None:
            pytest.skip("the format has no files to damage")
        repository.put("entry", 7, b"seven")
        _huge(place.copy_path("entry", 7, 0))
        assert repository.get("entry", 7) == (b"", b"seven")

    def test_deleting_copies_that_cannot_be_read(self, repository: Storage, place: Place) -> None:
        """Trimming is not stopped by something else in an object's place."""
        if place.copy_path is None:
            pytest.skip("the format has no files to damage")
        for number, spoil in enumerate(UNREADABLE, start=7):
            repository.put("entry", number, b"x")
            spoil(place.copy_path("entry", number, number % 2))
            repository.delete("entry", number)
            assert repository.get("entry", number) == (None, None)
