"""A thread that finds what to move. Moving begins with the first move that it finds."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from diskyard.mover.copying.differences import Differences, Move, moved_bytes
from diskyard.mover.copying.workers import WorkerPool

_BATCH_MOVES = 64  # small moves are handed over together
_KEPT_MOVES = 10_000  # found moves that may wait, some 6 MiB of them; more where runs are small
_TICK_S = 0.1

Batch = list[Move]


@dataclass(frozen=True, slots=True)
class Moves:
    """Everything that a copy must move.

    :param start_bytes: everything below is durable already.
    :param size_bytes: of the target's view.
    :param most_bytes: no move reads more.
    """

    differences: Differences
    start_bytes: int
    size_bytes: int
    most_bytes: int

    def batches(self, look_around: Callable[[], None], start_bytes: int | None = None) -> Generator[Batch]:
        """The moves from an offset on, in order; ``look_around`` is called if none is found for long."""
        start_bytes = self.start_bytes if start_bytes is None else start_bytes
        with closing(self.differences.moves(start_bytes, look_around)) as moves:
            yield from _batches(moves, self.most_bytes)


class _Ended(Exception):
    """The moves are not wanted any more."""


class Telling:
    """Finds the moves of one copy, and counts their bytes.

    If far more is found than the mover has taken, it only counts from there on, so that few moves wait.
    The mover then finds the rest a second time.

    :ivar total_bytes: None until all is counted.
    :ivar pool: the thread that tells.
    """

    def __init__(self, moves: Moves) -> None:
        self._moves = moves
        self._found: SimpleQueue[Batch | int | None] = SimpleQueue()
        self._taken_moves = 0
        self._ended = False
        self.total_bytes: int | None = None
        self.pool = WorkerPool([moves], "tell")
        self._future = self.pool.submit(self._tell)

    def batches(self, tick: Callable[[], None]) -> Generator[Batch]:
        """All moves, in order; ``tick`` is called now and then while none is found for long.

        If finding them failed, its error is raised here.
        """
        while True:
            try:
                found = self._found.get(timeout=_TICK_S)
            except Empty:
                tick()
                continue
            if found is None:
                self._future.result()
                return
            if isinstance(found, int):
                yield from self._moves.batches(tick, found)
                return
            self._taken_moves += len(found)
            yield found

    def check(self) -> None:
        """Raise the error with which finding moves failed, if it failed."""
        if self._future.done():
            self._future.result()

    def end(self, timeout_s: float) -> None:
        """Find no more moves. Wait for the thread, but not longer than ``timeout_s``."""
        self._ended = True
        self.pool.end(timeout_s)

    def _tell(self, moves: Moves) -> None:
        total_bytes, told_moves, is_told = 0, 0, True
        try:
            with suppress(_Ended), closing(moves.batches(self._look_around)) as batches:
                for batch in batches:
                    total_bytes += moved_bytes(batch)
                    if is_told and told_moves - self._taken_moves > _KEPT_MOVES:
                        self._found.put(batch[0].offset_bytes)
                        is_told = False
                    if is_told:
                        told_moves += len(batch)
                        self._found.put(batch)
                self.total_bytes = total_bytes
        finally:
            self._found.put(None)

    def _look_around(self) -> None:
        if self._ended:
            raise _Ended


def _batches(moves: Iterable[Move], most_bytes: int) -> Iterator[Batch]:
    """Moves in batches of about ``most_bytes``, which are worth handing over to a thread."""
    batch: Batch = []
    size_bytes = 0
    for move in moves:
        if batch and (len(batch) == _BATCH_MOVES or size_bytes + move.length_bytes > most_bytes):
            yield batch
            batch, size_bytes = [], 0
        batch.append(move)
        size_bytes += move.length_bytes
    if batch:
        yield batch
