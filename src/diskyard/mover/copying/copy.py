"""Copying a view: what differs goes into the target's top volume, resumably.

If source and target are files, this process moves their bytes itself. It uses QEMU's NBD server for
bytes that are in no file as they are, and to write a qcow2 volume. The differences are found first
(:mod:`diskyard.mover.copying.differences`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from diskyard import errors
from diskyard.host import Host, Limits
from diskyard.mover import advice
from diskyard.mover.copying.differences import Differences, Side, common_layers
from diskyard.mover.copying.moving import MOST_BYTES, STUCK_S, Mover
from diskyard.mover.copying.sharing import Sharing
from diskyard.mover.copying.targets import FileTarget, ServedTarget, Target
from diskyard.mover.copying.telling import Moves, Telling
from diskyard.mover.copying.views import ALL_BYTES, FileView, Guard, NeedsServer, ServedView, View
from diskyard.mover.copying.workers import WorkerPool, when_ended
from diskyard.mover.durable import sync_layer
from diskyard.mover.formats.foreign_headers import BlockMap
from diskyard.mover.formats.qcow2_header import CLUSTER_BYTES
from diskyard.mover.interface import Chain, Monitor
from diskyard.mover.opening import opened_files
from diskyard.mover.qemu.blockgraph import StorageDaemon
from diskyard.mover.qemu.nbdclient import ALLOCATION, DEPTH

_FILE_UNIT_BYTES = 4096  # the block size of most file systems
_RATE_SLICE_S = 0.25


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
    source_blocks: BlockMap | None = None,
    changed_layers: int | None = None,
) -> None:
    """Make the view through ``target`` equal to the view through ``source``.

    The first ``size_bytes`` are compared; beyond its own end the source counts as zeros. On return
    everything is durable. It can be run again from the last checkpoint, or from any offset below that, with
    the same source: the result is right. Layers that end both chains are recognised by their names, and
    what both sides read from them is neither read nor written.

    :param source: nobody may write to it, or to the target's parents, meanwhile.
    :param target: the layer to write, which has at least ``size_bytes``, and its parents. Only what
        differs from the parents is stored.
    :param start_bytes: everything below is durable already (0, or an earlier checkpoint).
    :param target_zeroed: a target without parents reads as zeros wherever no earlier run of this
        copy has written.
    :param changed_layers: how many of the source's layers, from the top, hold every difference to the
        target's parents. This is known if those are a copy of what the layers below show.
    :param source_limits: limits for the daemon that opens the source, if the source is not trusted.
    :param source_blocks: where the source can hold anything but zeros, if QEMU cannot report that.
    :raises diskyard.errors.NoSpace: the target's storage is full.
    :raises diskyard.errors.StorageError: reading or writing failed.
    :raises diskyard.errors.UnsafeImage: a source that is not trusted cannot be read.
    :raises diskyard.errors.Unsupported: libnbd is not installed, and needed.
    """
    own_layers = _own_layers(source, target[1:], changed_layers)
    with opened_files(host, source) as reads, opened_files(host, target) as writes:
        way = _Way(host, reads, writes, monitor, target_zeroed, source_limits, source_blocks)
        for served in (False, True):
            # Inside an except block, the error would keep the programs alive that report runs.
            with suppress(NeedsServer):
                way.copy(size_bytes, start_bytes, own_layers, served=served)
                break
        sync_layer(writes[0])


def _own_layers(source: Chain, base: Chain, changed_layers: int | None) -> tuple[int, int]:
    """How many layers of the source and of the base, from the top, are not in the other's view."""
    if changed_layers is not None:
        return changed_layers, 0
    common = common_layers(source, base)
    return len(source) - common, len(base) - common


@contextmanager
def _unsafe_if_unreadable() -> Iterator[None]:
    try:
        yield
    except errors.StorageError as error:
        raise errors.UnsafeImage(
            f"The image cannot be read: {error.message}", advice=advice.DAMAGED
        ) from error


@dataclass(slots=True)
class _Way:
    """How the bytes get from a source to a target: what is opened, and by which process."""

    host: Host
    source: Chain
    target: Chain
    monitor: Monitor
    target_zeroed: bool
    source_limits: Limits | None
    source_blocks: BlockMap | None
    _daemons: list[StorageDaemon] = field(default_factory=list)
    _writer: StorageDaemon | None = None
    _exports: dict[str, str] = field(default_factory=dict)

    def copy(self, size_bytes: int, start_bytes: int, own_layers: tuple[int, int], *, served: bool) -> None:
        """Copy. Unless ``served``, bytes that are in files are read from the files.

        :raises NeedsServer: some bytes are in no file as they are.
        """
        with ExitStack() as stack:
            stack.callback(self._forget_daemons)
            for fd in self.monitor.inherit_fds:
                stack.callback(os.close, os.dup(fd))
            source = self._open_source(stack, served=served)
            base = None if len(self.target) == 1 else self._open_base(stack, served=served)
            most_bytes = self._most_bytes()
            differences = Differences(
                Side(source, own_layers[0]),
                None if base is None else Side(base, own_layers[1]),
                size_bytes,
                base_is_zeroed=self.target_zeroed,
                sharing=_sharing(self.host, source, base),
                unit_bytes=CLUSTER_BYTES if self._target_file() is None else _FILE_UNIT_BYTES,
                most_bytes=most_bytes,
            )
            moves = Moves(differences, start_bytes, size_bytes, most_bytes)
            telling = Telling(moves)  # begins before the target is opened, which takes as long
            pools: Sequence[WorkerPool[Any]] = (telling.pool,)
            try:
                target = self._open_target(stack)
                mover = Mover(self.host, stack, source, base, target, telling, self.monitor)
                pools = mover.pools
                drop_zeros = base is not None or self.target_zeroed
                mover.run(moves, drop_zeros=drop_zeros, give_up=self._kill)
            finally:
                telling.end(STUCK_S)
                if any(pool.is_alive() for pool in pools):
                    # A write that hangs may still happen. Until then nobody else may get the lease, and
                    # no other file may get the number of the descriptor that is written to.
                    when_ended(pools, stack.pop_all().close)

    def _most_bytes(self) -> int:
        """The size limit of one move: small under a low rate limit, so that bytes do not move in bursts."""
        limit_bytes_per_s = self.monitor.rate_limit_bytes_per_s
        if not limit_bytes_per_s:
            return MOST_BYTES
        slice_bytes = int(limit_bytes_per_s * _RATE_SLICE_S)
        return min(MOST_BYTES, max(CLUSTER_BYTES, slice_bytes - slice_bytes % CLUSTER_BYTES))

    def _open_source(self, stack: ExitStack, *, served: bool) -> View:
        is_raw = len(self.source) == 1 and self.source[0].format == "raw"
        if not served and (is_raw or self.source_limits is None):
            found = FileView.of(stack, self.host, self.source)
            if found is not None:
                return found
        if self.source_limits is None:
            return self._serve(
                stack,
                self._shared_daemon(stack),
                self.source,
                nullcontext,
                size_bytes=self.source[0].size_bytes,
            )
        guard = nullcontext if is_raw else _unsafe_if_unreadable
        daemon = StorageDaemon(self.host, (self.source,), limits=self.source_limits)
        self._daemons.append(stack.enter_context(daemon))
        return self._serve(stack, daemon, self.source, guard, self.source_blocks)

    def _open_base(self, stack: ExitStack, *, served: bool) -> View:
        found = None if served else FileView.of(stack, self.host, self.target[1:], ALL_BYTES)
        return found or self._serve(stack, self._shared_daemon(stack), self.target[1:], nullcontext)

    def _target_file(self) -> int | None:
        """The descriptor of the target's file, if this process writes the target itself."""
        top = self.target[0]
        return top.fd if len(self.target) == 1 and top.format == "raw" and self.target_zeroed else None

    def _open_target(self, stack: ExitStack) -> Target:
        top = self.target[0]
        file_fd = self._target_file()
        if file_fd is not None:
            return FileTarget(stack, self.host, file_fd)
        daemon = self._shared_daemon(stack)
        node = daemon.open_chain(self.target, writable=(top.name,), buffered=True)
        return ServedTarget(stack, self.host, daemon.export_nbd(node, writable=True))

    def _shared_daemon(self, stack: ExitStack) -> StorageDaemon:
        """The daemon that opens everything trusted."""
        if self._writer is None:
            chains = (self.target,) if self.source_limits is not None else (self.source, self.target)
            daemon = StorageDaemon(self.host, chains, inherit_fds=self.monitor.inherit_fds)
            self._writer = stack.enter_context(daemon)
            self._daemons.append(daemon)
        return self._writer

    def _serve(
        self,
        stack: ExitStack,
        daemon: StorageDaemon,
        chain: Chain,
        guard: Guard,
        blocks: BlockMap | None = None,
        size_bytes: int | None = None,
    ) -> View:
        with guard():
            node = daemon.open_chain(chain)
        # If the source is the base's own top, one export serves both.
        key = f"{id(daemon)} {node}"
        uri = self._exports.get(key) or daemon.export_nbd(node, writable=False)
        self._exports[key] = uri
        # Depths matter only if the target has parents, which may hold the same layer.
        contexts = (ALLOCATION, DEPTH) if len(self.target) > 1 else (ALLOCATION,)
        return ServedView(stack, self.host, uri, contexts, guard, blocks, size_bytes)

    def _kill(self) -> None:
        """End the servers: threads that wait for storage that hangs then come back."""
        for daemon in self._daemons:
            daemon.kill()

    def _forget_daemons(self) -> None:
        self._daemons.clear()
        self._exports.clear()
        self._writer = None


def _sharing(host: Host, source: View, base: View | None) -> Callable[[], Sharing] | None:
    if isinstance(source, FileView) and isinstance(base, FileView):
        return partial(Sharing, host, source, base)
    return None
