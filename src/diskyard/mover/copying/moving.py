"""Moves in flight: several at once, under a rate limit, with progress and checkpoints."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from diskyard.host import Host
from diskyard.host.bulk import Buffer
from diskyard.mover.copying.differences import Move, moved_bytes
from diskyard.mover.copying.pace import Pace
from diskyard.mover.copying.targets import Part, Target, Writer
from diskyard.mover.copying.telling import Batch, Moves, Telling
from diskyard.mover.copying.views import Reader, View
from diskyard.mover.copying.workers import WorkerPool
from diskyard.mover.formats.qcow2_header import CLUSTER_BYTES
from diskyard.mover.interface import Monitor

MOST_BYTES = 1 << 20  # of one move: larger moves are no quicker, and take more memory
_WORKERS = 2  # measured on two processors, where more workers only took turns
_IN_FLIGHT_MOST = 2 * _WORKERS
_LITTLE_MOVES = 16  # in a batch: one worker at a time does them, as two would only wait for each other
_CHECKPOINT_S = 2.0
_TICK_S = 0.1
STUCK_S = 10.0


_Place = tuple[Move, int, int]
"""A move, and where its bytes begin and end in a worker's memory."""


@dataclass(frozen=True, slots=True)
class _Tools:
    """What one worker reads, compares and writes with."""

    source: Reader
    base: Reader | None
    writer: Writer
    memory: Buffer
    other: Buffer


@dataclass(frozen=True, slots=True)
class _Flight:
    """Moves that are in flight."""

    future: Future[None]
    start_bytes: int
    end_bytes: int
    moved_bytes: int


class Mover:
    """Does the moves of one copy.

    :param stack: closes what the workers open.
    """

    def __init__(
        self,
        host: Host,
        stack: ExitStack,
        source: View,
        base: View | None,
        target: Target,
        telling: Telling,
        monitor: Monitor,
    ) -> None:
        self._host, self._monitor = host, monitor
        self._source, self._base = source, base
        self._zeros = Buffer(MOST_BYTES)  # never written, so it takes no memory
        tools = [
            _Tools(
                source.reader(stack),
                None if base is None else base.reader(stack),
                target.writer(stack),
                Buffer(MOST_BYTES),
                self._zeros if base is None else Buffer(MOST_BYTES),
            )
            for _ in range(_WORKERS)
        ]
        self._workers = WorkerPool(tools, "copy")
        try:
            self._flusher = WorkerPool([target], "flush")
        except BaseException:
            self._workers.end(STUCK_S)
            raise
        self._telling = telling
        self._ended = False
        self._in_flight: deque[_Flight] = deque()
        self._flushing: tuple[Future[None], int] | None = None
        self._moved_bytes = 0
        self._reached_bytes = 0
        self._checkpoint_s = host.clock.monotonic_s()
        self._drop_zeros = False
        self._in_turn = threading.Lock()

    def run(self, moves: Moves, *, drop_zeros: bool, give_up: Callable[[], None]) -> None:
        """Do all moves; durable on return.

        :param drop_zeros: zeros need not be written where the base has none but zeros, or there is no base:
            the target reads as zeros there already.
        :param give_up: called after a failure if worker threads do not come back.
        """
        self._reached_bytes, self._drop_zeros = moves.start_bytes, drop_zeros
        pace = Pace(self._host, self._monitor)
        try:
            with closing(self._telling.batches(self._tick)) as batches:
                for batch in batches:
                    self._admit(batch, pace)
            while self._in_flight:
                self._collect(wait=True)
            self._flush_all()
        except BaseException:
            self._end()
            if self.is_stuck:
                give_up()
                self._end()
            raise
        self._end()
        self._reached_bytes = moves.size_bytes
        self._monitor.checkpoint(moves.size_bytes)
        self._monitor.advance(self._moved_bytes, self._moved_bytes)

    @property
    def pools(self) -> Sequence[WorkerPool[Any]]:
        """All threads that work for this copy."""
        return (self._telling.pool, self._workers, self._flusher)

    def _end(self) -> None:
        """Let the threads end as soon as they can."""
        self._ended = True
        self._telling.end(STUCK_S)
        for pool in (self._workers, self._flusher):
            pool.end(STUCK_S)

    @property
    def is_stuck(self) -> bool:
        """Whether storage that hangs still holds a thread, so that a write may still happen."""
        return any(pool.is_alive() for pool in self.pools)

    def _admit(self, batch: Batch, pace: Pace) -> None:
        """Begin moves as soon as there is capacity for them and the rate allows it."""
        size_bytes = moved_bytes(batch)
        pace.admit(size_bytes, self._tick)
        while len(self._in_flight) >= _IN_FLIGHT_MOST:
            self._collect(wait=True)
        self._tick()
        self._source.expect(run for move in batch for run in move.source)
        if self._base is not None:
            self._base.expect(run for move in batch for run in move.base)
        start, end = batch[0].offset_bytes, batch[-1].offset_bytes + batch[-1].length_bytes
        future = self._workers.submit(partial(self._do, batch))
        self._in_flight.append(_Flight(future, start, end, size_bytes))

    # -- results --------------------------------------------------------------------------

    def _tick(self) -> None:
        """Collect finished work, write checkpoints, and report progress."""
        while self._in_flight and self._in_flight[0].future.done():
            self._collect(wait=False)
        self._see_to_checkpoint()
        self._advance()

    def _collect(self, *, wait: bool) -> None:
        """Remove the oldest moves if they have ended. If they failed, their error is raised."""
        flight = self._in_flight[0]
        if wait:
            with suppress(StillRunning):
                flight.future.exception(_TICK_S)
            self._see_to_checkpoint()
        if flight.future.done():
            flight.future.result()
            self._in_flight.popleft()
            self._moved_bytes += flight.moved_bytes
            self._reached_bytes = flight.end_bytes
        self._advance()

    def _advance(self) -> None:
        self._monitor.advance(self._moved_bytes, self._telling.total_bytes or 0)

    def _see_to_checkpoint(self) -> None:
        """Now and then make durable what is written, while the moves go on."""
        self._telling.check()
        if self._flushing is not None:
            future, offset_bytes = self._flushing
            if future.done():
                future.result()
                self._monitor.checkpoint(offset_bytes)
                self._flushing, self._checkpoint_s = None, self._host.clock.monotonic_s()
        elif self._host.clock.monotonic_s() - self._checkpoint_s >= _CHECKPOINT_S:
            # Everything below the oldest move in flight is written.
            oldest = self._in_flight[0].start_bytes if self._in_flight else self._reached_bytes
            self._flushing = (self._flusher.submit(_flush), oldest)

    def _flush_all(self) -> None:
        """Make everything written durable. A stop is noticed meanwhile, since the storage may hang."""
        last = self._flusher.submit(_flush)
        while not last.done():
            with suppress(StillRunning):
                last.exception(_TICK_S)
            self._advance()
        if self._flushing is not None:
            self._flushing[0].result()
        last.result()

    # -- in the workers ------------------------------------------------------------------

    def _do(self, batch: Batch, tools: _Tools) -> None:
        with self._in_turn if len(batch) >= _LITTLE_MOVES else nullcontext():
            if self._ended:
                return
            for move in batch:
                if move.is_zero:
                    tools.writer.zero(move.offset_bytes, move.length_bytes)
            tools.writer.write(self._read(_laid_out(batch), tools))
        tools.writer.write_out()

    def _read(self, places: Sequence[_Place], tools: _Tools) -> list[Part]:
        """Read the source of moves, and return the parts that must be written."""
        memory = tools.memory.view
        tools.source.read([(move.source, memory[start:end]) for move, start, end in places])
        compared = [place for place in places if place[0].base]
        if tools.base is not None and compared:
            base_memory = tools.other.view
            tools.base.read([(move.base, base_memory[start:end]) for move, start, end in compared])
        parts: list[Part] = []
        for move, start, end in places:
            at = move.offset_bytes - start
            other = tools.other if move.base else self._zeros
            if not move.base and not self._drop_zeros:
                parts.append((at + start, memory[start:end]))
                continue
            for begin, stop in changed_parts(tools.memory, other, start, end):
                parts.append((at + begin, memory[begin:stop]))
        return parts


def _laid_out(batch: Batch) -> list[_Place]:
    """Where the bytes of each move go in a worker's memory."""
    places: list[_Place] = []
    start = 0
    for move in batch:
        if not move.is_zero:
            places.append((move, start, start + move.length_bytes))
            start += move.length_bytes
    return places


def _flush(target: Target) -> None:
    target.flush()


def changed_parts(one: Buffer, other: Buffer, start: int, end: int) -> Iterable[tuple[int, int]]:
    """The begin and end of each run of clusters that differ, in one range of two buffers.

    Clusters are counted from the start of the range.
    """
    if one.equals(other, start, end):
        return ()
    if end - start <= CLUSTER_BYTES:
        return ((start, end),)
    return _changed_clusters(one, other, start, end)


def _changed_clusters(one: Buffer, other: Buffer, start: int, end: int) -> Iterator[tuple[int, int]]:
    begin: int | None = None
    for at in range(start, end, CLUSTER_BYTES):
        if one.equals(other, at, min(at + CLUSTER_BYTES, end)):
            if begin is not None:
                yield begin, at
            begin = None
        elif begin is None:
            begin = at
    if begin is not None:
        yield begin, end
