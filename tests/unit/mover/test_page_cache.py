"""What a copy reads from the page cache, and what it has the storage take out of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import pytest

from diskyard import errors
from diskyard.host import Files, Host
from diskyard.host.bulk import FilePiece
from diskyard.mover.copying.copy import copy_view
from tests.unit.mover.bench import MIB, Bench, RecordingMonitor

R = TypeVar("R")
PIECES = 40
STEP_BYTES = 96 << 10


def scattered(bench: Bench, tail_bytes: int = 0) -> bytes:
    """A file ``source`` with many little pieces; its bytes."""
    size = PIECES * STEP_BYTES + tail_bytes
    source = bench.folder / "source"
    with source.open("xb") as file:
        file.truncate(size)
        for index in range(PIECES):
            os.pwrite(file.fileno(), os.urandom(4096 + index % 3 * 4096), index * STEP_BYTES)
    return source.read_bytes()


def copied(bench: Bench, host: Host, size_bytes: int) -> bytes:
    """What the copy of ``source`` holds."""
    source = replace(bench.layer("other", "raw", size_bytes), path=str(bench.folder / "source"))
    target = bench.layer("target", "raw", size_bytes)
    copy_view(
        host, (source,), (target,), size_bytes, start_bytes=0, monitor=RecordingMonitor(), target_zeroed=True
    )
    assert target.path is not None
    with open(target.path, "rb") as file:
        return file.read()


@pytest.mark.parametrize("share", [0, 2, 1])
@pytest.mark.parametrize("tail_bytes", [0, 512])
def test_what_is_not_cached_is_asked_for_together_and_read(bench: Bench, share: int, tail_bytes: int) -> None:
    """Of nothing, of each second piece, or of the first half of each."""
    asked = list[tuple[int, int, int]]()

    class ColdFiles(Files):
        def read_cached(self, pieces: Sequence[FilePiece]) -> list[int]:
            found = super().read_cached(pieces)
            for index, (_, _, memory) in enumerate(pieces):
                kept = (0, len(memory) // 2, len(memory) * (index % 2))[share]
                memory[kept:] = b"\xee" * (len(memory) - kept)  # whatever was there before
                found[index] = min(found[index], kept)
            return found

        def will_need(self, ranges: Sequence[tuple[int, int, int]]) -> None:
            asked.extend(ranges)
            super().will_need(ranges)

    wanted = scattered(bench, tail_bytes)
    host = replace(bench.host, files=ColdFiles(bench.host.identity))
    assert copied(bench, host, len(wanted)) == wanted
    assert {offset for _, offset, _ in asked} <= {index * STEP_BYTES for index in range(PIECES)}
    assert len({offset for _, offset, _ in asked}) >= PIECES // 2


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EOPNOTSUPP])
def test_where_the_page_cache_cannot_be_asked(
    bench: Bench, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems do not know RWF_NOWAIT."""
    preadv = os.preadv

    def refuse(fd: int, parts: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(number, os.strerror(number))
        return preadv(fd, parts, offset)

    monkeypatch.setattr(os, "preadv", refuse)
    wanted = scattered(bench)
    assert copied(bench, bench.host, len(wanted)) == wanted


def test_a_failure_to_read_what_is_cached_is_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, parts: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "preadv", fail)
    wanted = scattered(bench)
    with pytest.raises(errors.StorageError):
        copied(bench, bench.host, len(wanted))


@pytest.mark.parametrize("call", ["begin_write_out", "end_write_out"])
@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EIO, errors.StorageError), (errno.ENOSPC, errors.NoSpace)]
)
def test_what_the_storage_does_not_take_is_an_error(
    bench: Bench, call: str, number: int, kind: type[errors.DiskyardError]
) -> None:
    """It may be told there and nowhere else."""

    class FailingFiles(Files):
        def passing(self, name: str, words: tuple[object, ...], do: Callable[[], R]) -> R:
            if name == call:
                raise OSError(number, os.strerror(number))
            return super().passing(name, words, do)

    data = os.urandom(MIB) * 40
    (bench.folder / "source").write_bytes(data)
    host = replace(bench.host, files=FailingFiles(bench.host.identity))
    with pytest.raises(kind):
        copied(bench, host, len(data))


def test_a_large_copy_leaves_the_page_cache_and_is_whole(bench: Bench) -> None:
    ended = list[tuple[int, int]]()

    class ToldFiles(Files):
        def end_write_out(self, fd: int, offset_bytes: int, length_bytes: int) -> None:
            super().end_write_out(fd, offset_bytes, length_bytes)
            ended.append((offset_bytes, length_bytes))

    data = os.urandom(MIB) * 48
    (bench.folder / "source").write_bytes(data)
    host = replace(bench.host, files=ToldFiles(bench.host.identity))
    assert copied(bench, host, len(data)) == data
    assert sum(length for _, length in ended) >= 10 * MIB
    assert len({offset for offset, _ in ended}) == len(ended)
