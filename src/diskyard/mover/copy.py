"""Copying a view: what differs goes into the target's top volume, in order, resumably.

Two passes over the block status of source and base, neither of which reads data: the
first adds up how much there is to move, the second moves it. Storage is read only where
status cannot tell that both sides are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue

from diskyard import errors
from diskyard.host import Host, Limits
from diskyard.mover.blockgraph import StorageDaemon
from diskyard.mover.differences import (
    MOVE_MOST_BYTES,
    Differences,
    Move,
    Side,
    changed_parts,
    common_layers,
    moved_bytes,
)
from diskyard.mover.durable import sync_layer
from diskyard.mover.foreign_headers import BlockMap
from diskyard.mover.interface import Chain, Monitor
from diskyard.mover.nbdclient import ALLOCATION, DEPTH, Extent, NbdClient
from diskyard.mover.pace import Pace

_WORKERS = 4
_CHECKPOINT_BYTES = 256 << 20
_CHECKPOINT_S = 2.0
_COUNTING_S = 2.0
_WAIT_S = 0.1
_STUCK_S = 10.0
_ZEROS = bytes(MOVE_MOST_BYTES)


_Guard = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class _Uris:
    source: str
    base: str | None
    target: str


@dataclass(frozen=True, slots=True)
class _Connections:
    """What one worker reads and writes with; a connection serves one thread at a time."""

    source: NbdClient
    base: NbdClient | None
    target: NbdClient


def copy_view(
    host: Host,
    source: Chain,
    target: Chain,
    size_bytes: int,
    *,
    start_bytes: int,
    monitor: Monitor,
    target_zeroed: bool,
    source_limits: Limits | None = None,
    source_fds: Sequence[int] = (),
    source_blocks: BlockMap | None = None,
    changed_layers: int | None = None,
) -> None:
    """Make the view through ``target`` equal to the view through ``source``.

    The first ``size_bytes`` are compared; beyond its end the source is zero. On return all
    is durable. Run again from the last checkpoint, or from any offset below it, with the same
    source, it ends right. Layers that both chains end in are recognised by their names, and
    what both sides read from them is neither read nor written.

    :param target: the layer to write, of ``size_bytes`` at least, and its parents: only what
        differs from what they show is stored.
    :param start_bytes: everything below is durable already (0, or an earlier checkpoint).
    :param target_zeroed: a target without parents reads as zeros wherever no earlier run of this
        copy has written.
    :param changed_layers: how many of the source's layers, from the top, hold all in which it
        can differ from what the target's parents show: known where the base is a copy of what
        the layers below them show.
    :param source_limits: what the daemon that opens the source may use, where the source is not
        trusted.
    :param source_fds: open files that the source's layers name as ``/dev/fd/…``, for that daemon.
    :param source_blocks: where the source can hold anything but zeros, if QEMU cannot tell that.
    :raises Stopped: from the monitor; go on from the last checkpoint.
    :raises diskyard.errors.NoSpace: the target's storage is full.
    :raises diskyard.errors.StorageError: reading or writing failed.
    :raises diskyard.errors.UnsafeImage: a source that is not trusted cannot be read.
    :raises diskyard.errors.Unsupported: libnbd is not installed.
    """
    with ExitStack() as stack:
        writer = stack.enter_context(StorageDaemon(host, inherit_fds=monitor.inherit_fds))
        reader = writer
        if source_limits is not None:
            reader = stack.enter_context(StorageDaemon(host, limits=source_limits, inherit_fds=source_fds))
        guard = _unsafe_if_unreadable if reader is not writer and source[0].format != "raw" else nullcontext
        uris = _export(reader, writer, source, target, guard)
        own = _own_layers(source, target[1:], changed_layers)
        differences = _differences(stack, host, uris, own, size_bytes, target_zeroed, guard, source_blocks)
        workers = [_connect(stack, host, uris, guard) for _ in range(_WORKERS)]
        copy = _Copy(host, differences, workers, monitor, size_bytes, drop_zeros=target_zeroed)
        try:
            copy.run(start_bytes)
        except BaseException:
            # Storage that hangs holds the workers: without their servers they come back.
            if not copy.settle(_STUCK_S):
                reader.kill()
                writer.kill()
            raise
    sync_layer(host, target[0])


@contextmanager
def _unsafe_if_unreadable() -> Iterator[None]:
    try:
        yield
    except errors.StorageError as error:
        raise errors.UnsafeImage(f"The image cannot be read: {error.message}") from error


class _GuardedClient(NbdClient):
    """A source, whose failures are what its guard makes of them."""

    def __init__(
        self, host: Host, uri: str, contexts: Sequence[str], guard: _Guard, blocks: BlockMap | None = None
    ) -> None:
        self._guard = guard
        self._blocks = blocks
        with guard():
            super().__init__(host, uri, contexts)

    def read(self, offset_bytes: int, length_bytes: int) -> bytearray:
        with self._guard():
            return super().read(offset_bytes, length_bytes)

    def extents(self, offset_bytes: int, length_bytes: int) -> list[Extent]:
        if self._blocks is not None:
            return [Extent(*run, depth=0) for run in self._blocks.runs(offset_bytes, length_bytes)]
        with self._guard():
            return super().extents(offset_bytes, length_bytes)


def _export(
    reader: StorageDaemon, writer: StorageDaemon, source: Chain, target: Chain, guard: _Guard
) -> _Uris:
    with guard():
        source_node = reader.open_chain(source)
    target_node = writer.open_chain(target, writable=(target[0].name,))
    base = None
    if len(target) > 1:
        base_node = writer.open_chain(target[1:])
        # Where the source is the base's own top, one export serves both.
        shared = reader is writer and base_node == source_node
        base = None if shared else writer.export_nbd(base_node, writable=False)
    source_uri = reader.export_nbd(source_node, writable=False)
    return _Uris(
        source=source_uri,
        base=(base or source_uri) if len(target) > 1 else None,
        target=writer.export_nbd(target_node, writable=True),
    )


def _connect(stack: ExitStack, host: Host, uris: _Uris, guard: _Guard) -> _Connections:
    return _Connections(
        source=stack.enter_context(_GuardedClient(host, uris.source, (), guard)),
        base=stack.enter_context(NbdClient(host, uris.base)) if uris.base else None,
        target=stack.enter_context(NbdClient(host, uris.target)),
    )


def _own_layers(source: Chain, base: Chain, changed_layers: int | None) -> tuple[int, int]:
    """How many layers of the source and of the base, from the top, the other does not show."""
    if changed_layers is not None:
        return changed_layers, 0
    common = common_layers(source, base)
    return len(source) - common, len(base) - common


def _differences(
    stack: ExitStack,
    host: Host,
    uris: _Uris,
    own: tuple[int, int],
    size_bytes: int,
    target_zeroed: bool,
    guard: _Guard,
    source_blocks: BlockMap | None,
) -> Differences:
    # Which layer holds something matters only where the target's parents may hold it too.
    contexts = (ALLOCATION, DEPTH) if uris.base is not None else (ALLOCATION,)
    base = None
    if uris.base is not None:
        base = Side(stack.enter_context(NbdClient(host, uris.base, contexts)), own[1])
    source = Side(
        stack.enter_context(_GuardedClient(host, uris.source, contexts, guard, source_blocks)), own[0]
    )
    return Differences(source, base, size_bytes, base_is_zeroed=target_zeroed)


class _Copy:
    """The second pass: moves in flight, pace, progress and checkpoints."""

    def __init__(
        self,
        host: Host,
        differences: Differences,
        workers: list[_Connections],
        monitor: Monitor,
        size_bytes: int,
        *,
        drop_zeros: bool,
    ) -> None:
        self._host = host
        self._differences = differences
        self._target = workers[0].target
        self._free: SimpleQueue[_Connections] = SimpleQueue()
        for worker in workers:
            self._free.put(worker)
        self._monitor = monitor
        self._size_bytes = size_bytes
        self._drop_zeros = drop_zeros
        self._executor = ThreadPoolExecutor(len(workers), thread_name_prefix="copy")
        self._in_flight: set[Future[None]] = set()
        self._moved_bytes = 0
        self._total_bytes: int | None = None
        self._offset_bytes = 0
        self._pace = Pace(host, monitor)
        self._checkpoint_s = host.clock.monotonic_s()
        self._checkpoint_moved_bytes = 0

    def run(self, start_bytes: int) -> None:
        """Move everything from an offset on; durable through the target's writer on return."""
        self._offset_bytes = start_bytes
        self._total_bytes = self._count(start_bytes)
        for window_bytes, moves in self._differences.windows(start_bytes):
            self._reached(window_bytes)
            for move in moves:
                self._reached(move.offset_bytes)
                self._admit(move)
        self._drain(0)
        self._target.flush()
        self._offset_bytes = self._size_bytes
        self._monitor.checkpoint(self._size_bytes)
        self._advance()
        self._executor.shutdown()

    def settle(self, timeout_s: float) -> bool:
        """After a failure: let what is in flight end; False if it does not."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        # A future that is cancelled before it has begun counts as not done for ever.
        begun = [future for future in self._in_flight if not future.cancelled()]
        return not wait(begun, timeout_s).not_done

    def _count(self, start_bytes: int) -> int | None:
        """How much there is to move; None if that cannot be told quickly."""
        begin_s = self._host.clock.monotonic_s()
        total_bytes = 0
        for _, moves in self._differences.windows(start_bytes):
            total_bytes += moved_bytes(moves)
            self._advance()
            if self._host.clock.monotonic_s() - begin_s > _COUNTING_S:
                return None
        return total_bytes

    def _advance(self) -> None:
        if self._total_bytes is None:
            self._monitor.advance(self._offset_bytes, self._size_bytes)
        else:
            self._monitor.advance(self._moved_bytes, self._total_bytes)

    def _reached(self, offset_bytes: int) -> None:
        """Everything below ``offset_bytes`` is under way; make it durable if that is due."""
        self._offset_bytes = max(self._offset_bytes, offset_bytes)
        now_s = self._host.clock.monotonic_s()
        new_bytes = self._moved_bytes - self._checkpoint_moved_bytes
        if now_s - self._checkpoint_s >= _CHECKPOINT_S or new_bytes >= _CHECKPOINT_BYTES:
            self._drain(0)
            self._target.flush()
            self._monitor.checkpoint(self._offset_bytes)
            self._checkpoint_s = self._host.clock.monotonic_s()
            self._checkpoint_moved_bytes = self._moved_bytes
        self._advance()

    def _admit(self, move: Move) -> None:
        self._drain(_WORKERS - 1)
        if not move.is_zero:
            self._pace.admit(move.length_bytes, self._advance)
            self._moved_bytes += move.length_bytes
        self._in_flight.add(self._executor.submit(self._move, move))

    def _drain(self, most: int) -> None:
        """Wait until at most so many moves are in flight."""
        while len(self._in_flight) > most:
            done, self._in_flight = wait(self._in_flight, _WAIT_S, FIRST_COMPLETED)
            for future in done:
                future.result()
            self._advance()

    def _move(self, move: Move) -> None:
        connections = self._free.get()
        try:
            self._move_with(connections, move)
        finally:
            self._free.put(connections)

    def _move_with(self, connections: _Connections, move: Move) -> None:
        if move.is_zero:
            connections.target.zero(move.offset_bytes, move.length_bytes)
            return
        data = _read(connections.source, move)
        parts: list[tuple[int, int]] = [(0, len(data))]
        if move.compare and connections.base is not None:
            parts = list(changed_parts(data, _read(connections.base, move)))
        elif connections.base is not None or self._drop_zeros:
            parts = list(changed_parts(data, _ZEROS[: len(data)]))
        for start, end in parts:
            connections.target.write(data[start:end], move.offset_bytes + start)


def _read(client: NbdClient, move: Move) -> bytearray:
    """A move's bytes; zeros beyond the end of the view."""
    available_bytes = min(move.length_bytes, client.size_bytes - move.offset_bytes)
    data = client.read(move.offset_bytes, available_bytes)
    if available_bytes < move.length_bytes:
        data += bytes(move.length_bytes - available_bytes)
    return data
