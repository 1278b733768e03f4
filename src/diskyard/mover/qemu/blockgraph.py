"""Chains as QEMU opens them: one storage daemon per task, with the same explicit graphs as :mod:`graphs`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

from diskyard import errors
from diskyard.host import Host, Limits
from diskyard.mover.interface import Chain, Layer, Monitor
from diskyard.mover.opening import descriptors, opened_files, storage_told
from diskyard.mover.qemu.failures import expected, failure
from diskyard.mover.qemu.graphs import BACKED_FORMATS, bound, check_format, opens_past_cache

if TYPE_CHECKING:
    from diskyard.mover.qemu.qmp import QmpChild

_POLL_FIRST_S = 0.002
_POLL_LONGEST_S = 0.1
_CANCEL_TIMEOUT_S = 30.0


def layer_sizes_bytes(host: Host, layers: Sequence[Layer], *, limits: Limits | None = None) -> list[int]:
    """The real virtual size of each layer's storage, up to its bound, whatever its record says.

    A daemon of its own opens the layers without their backing: QEMU 7.2 needs time that grows with the
    square of the depth to report the sizes in a chain (7 s at 200 layers).

    :raises diskyard.errors.StorageError: a layer cannot be opened.
    """
    with (
        opened_files(host, tuple(layers)) as opened,
        StorageDaemon(host, (opened,), limits=limits) as daemon,
    ):
        return [daemon.size_bytes(daemon.open_chain((layer,))) for layer in opened]


class _ImageInfo(msgspec.Struct, rename="kebab"):
    virtual_size: int


class _Node(msgspec.Struct, rename="kebab"):
    node_name: str
    ro: bool
    image: _ImageInfo


class _JobInfo(msgspec.Struct, rename="kebab"):
    id: str
    status: str
    current_progress: int
    total_progress: int
    error: str | None = None


class StorageDaemon:
    """A qemu-storage-daemon for one task; a context manager, used by one thread.

    It dies with this process, and holds the lease descriptors that it inherits until then. When the
    context ends without an exception, everything that it has open is flushed and closed. After an
    exception it is killed if it does not end by itself. No program and no socket is left.

    :param chains: everything that it will have to open. It inherits their files when it starts, since that
        of QEMU 7.2 cannot be given any later.
    :param inherit_fds: descriptors of leases (:attr:`Monitor.inherit_fds`).
    :param limits: limits for a daemon that opens a file that is not trusted.
    :param timeout_s: how long one command may take before it counts as hung.
    :raises diskyard.errors.StorageError: it does not start.
    :raises diskyard.errors.Unsupported: it is not installed.
    """

    def __init__(
        self,
        host: Host,
        chains: Sequence[Chain] = (),
        *,
        inherit_fds: Sequence[int] = (),
        limits: Limits | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        self._host = host
        self._inherit_fds = (*inherit_fds, *descriptors(*chains))
        self._limits = limits
        self._timeout_s = min(timeout_s, host.commands.timeout_most_s)
        self._child: QmpChild | None = None
        self._nodes: dict[tuple[str, bool], str] = {}
        self._count = 0
        self._folder: str | None = None

    def __enter__(self) -> Self:
        # Not at the top: asyncio is slow to import, and work that moves no data does not need it.
        from diskyard.mover.qemu.qmp import QmpChild

        # QEMU makes the monitor when it reads that option, so --chardev must come first.
        words = ("qemu-storage-daemon", "--chardev", "socket,id=qmp,fd={fd}", "--monitor", "chardev=qmp")
        self._child = QmpChild(
            self._host,
            words,
            inherit_fds=self._inherit_fds,
            limits=self._limits,
            timeout_s=self._timeout_s,
        )
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except errors.StorageError:
            if exc is None:
                raise  # otherwise the exception reports a failure already

    def close(self) -> None:
        """End the daemon, flushing what it has open. It may have ended already.

        :raises diskyard.errors.StorageError: it had to be killed: data that was written and not flushed
            is lost.
        """
        child, self._child = self._child, None
        try:
            if child is not None and not child.end():
                raise errors.StorageError("qemu-storage-daemon did not close what it had open.")
        finally:
            if self._folder is not None:
                self._host.files.discard_private_folder(self._folder)
                self._folder = None

    def kill(self) -> None:
        """End the daemon without flushing, when storage hangs."""
        child, self._child = self._child, None
        if child is not None:
            child.end(gently=False)

    def command(self, name: str, arguments: Mapping[str, object] | None = None, *, doing: str) -> object:
        """One QMP command; see :meth:`diskyard.mover.qemu.qmp.QmpChild.command`."""
        if self._child is None:
            raise errors.InternalError("A storage daemon is used outside of its context.")
        return self._child.command(name, arguments, doing=doing)

    # -- nodes -----------------------------------------------------------------------

    def open_chain(self, chain: Chain, *, writable: Collection[str] = (), buffered: bool = False) -> str:
        """Open a chain, except for layers that are open already, and return its top node's name.

        A layer that is open in the same mode is used again, so that chains with common parents share nodes.
        Each layer keeps the backing that it had when it was opened first.

        :param writable: the names of the layers opened for writing.
        :param buffered: writes go through the page cache, which gathers small ones until they are flushed.
        :raises diskyard.errors.StorageError: a layer cannot be opened; the message says which.
        """
        node: str | None = None
        for index in reversed(range(len(chain))):
            layer = chain[index]
            check_format(layer, is_root=index == len(chain) - 1)
            node = self._open_layer(layer, node, layer.name in writable, buffered)
        if node is None:
            raise errors.InternalError("A chain has no layer.")
        return node

    def _open_layer(self, layer: Layer, backing: str | None, writable: bool, buffered: bool) -> str:
        known = self._nodes.get((layer.name, writable))
        if known is not None:
            return known
        file = self._open_file(layer, writable, buffered)
        node = self._fresh_name()
        options: dict[str, object] = {
            "driver": layer.format,
            "node-name": node,
            "read-only": not writable,
            "file": file,
            "force-share": layer.shared,
        }
        if layer.format in BACKED_FORMATS:
            options["backing"] = backing
        options |= bound(layer, writable=writable)
        self.command("blockdev-add", options, doing=f"opening volume {layer.name}")
        self._nodes[layer.name, writable] = node
        return node

    def _open_file(self, layer: Layer, writable: bool, buffered: bool) -> str:
        node = self._fresh_name()
        options: dict[str, object] = {
            **storage_told(layer),
            "node-name": node,
            "read-only": not writable,
            "force-share": layer.shared,
        }
        doing = f"opening the storage of volume {layer.name}"
        past_cache = not (writable and buffered) and opens_past_cache(self._host, layer, writable=writable)
        options["cache"] = {"direct": past_cache}
        self.command("blockdev-add", options, doing=doing)
        return node

    def _fresh_name(self) -> str:
        # Node names have at most 31 characters, which is too short for a volume's id.
        self._count += 1
        return f"node{self._count}"

    def size_bytes(self, node: str) -> int:
        """The size of the view through a node. This is slow if the daemon has deep chains open."""
        return self._node(node).image.virtual_size

    def is_read_only(self, node: str) -> bool:
        """Whether a node is read-only at present; a job may have changed that."""
        return self._node(node).ro

    def _node(self, node: str) -> _Node:
        doing = "looking at a volume"
        answer = self.command("query-named-block-nodes", {"flat": True}, doing=doing)
        for entry in expected(answer, list[_Node], doing):
            if entry.node_name == node:
                return entry
        raise errors.StorageError(f"The storage daemon has lost its node {node}.")

    # -- exports ---------------------------------------------------------------------

    def export_nbd(
        self,
        node: str,
        *,
        writable: bool,
        allocation_depth: bool = True,
        name: str | None = None,
        connections_most: int = 0,
    ) -> str:
        """Export a node and return its NBD URI. The export's default name is the node's.

        The socket is in a directory that only this user can enter; both are removed at the end.

        :param connections_most: clients beyond this number wait until another leaves; 0 for no limit. The
            value of a daemon's first export applies to all of its exports.
        """
        if self._folder is None:
            self._folder = self._host.files.make_private_folder()
            address = {"type": "unix", "data": {"path": self.socket_path}}
            start = {"addr": address, "max-connections": connections_most}
            self.command("nbd-server-start", start, doing="starting an NBD server")
        export = {
            "type": "nbd",
            "id": f"export-{node}",
            "node-name": node,
            "name": name or node,
            "writable": writable,
            "allocation-depth": allocation_depth,
        }
        self.command("block-export-add", export, doing="exporting a volume")
        return f"nbd+unix:///{name or node}?socket={self.socket_path}"

    def unexport(self, node: str) -> None:
        """End an export whose clients have disconnected, so that jobs can use the node."""
        remove = {"id": f"export-{node}", "mode": "hard"}
        self.command("block-export-del", remove, doing="ending an export")
        doing, deadline_s = "ending an export", self._host.clock.monotonic_s() + self._timeout_s
        while expected(self.command("query-block-exports", doing=doing), list[object], doing):
            if self._host.clock.monotonic_s() > deadline_s:
                raise errors.StorageError(f"QEMU did not end an export within {self._timeout_s:g} seconds.")
            self._host.clock.sleep(_POLL_FIRST_S)

    @property
    def socket_path(self) -> str:
        """Where the NBD server listens, once something is exported."""
        return os.path.join(self._folder or "", "nbd")

    # -- jobs ------------------------------------------------------------------------

    def run_job(self, start: str, arguments: Mapping[str, object], monitor: Monitor, *, doing: str) -> None:
        """Start a block job and wait for its end. A job that becomes READY is completed.

        :param start: the QMP command, for instance ``block-stream``.
        :param arguments: its arguments, without id and speed.
        :raises diskyard.errors.StorageError: the job failed; QEMU's words are in the message.
        :raises diskyard.errors.NoSpace: the job failed because the storage is full.
        :raises Stopped: from the monitor; the job has ended by then.
        """
        speed = monitor.rate_limit_bytes_per_s
        own = {"job-id": "job", "auto-dismiss": False, "speed": speed}
        self.command(start, {**arguments, **own}, doing=doing)
        try:
            self._follow_job(speed, monitor, doing)
        except BaseException:
            with contextlib.suppress(errors.DiskyardError):
                self._cancel_job(doing)
            raise

    def _follow_job(self, speed: int, monitor: Monitor, doing: str) -> None:
        pause_s = _POLL_FIRST_S
        completing = False
        while True:
            job = self._query_job(doing)
            if job is None:
                raise errors.StorageError(f"QEMU lost the job that was {doing}.")
            monitor.advance(job.current_progress, job.total_progress)
            if job.status == "concluded":
                self.command("job-dismiss", {"id": "job"}, doing=doing)
                if job.error is not None:
                    raise failure(job.error, doing)
                return
            if job.status == "ready" and not completing:
                self.command("job-complete", {"id": "job"}, doing=doing)
                completing = True
            elif monitor.rate_limit_bytes_per_s != speed:
                speed = monitor.rate_limit_bytes_per_s
                self.command("block-job-set-speed", {"device": "job", "speed": speed}, doing=doing)
            self._host.clock.sleep(pause_s)
            pause_s = min(pause_s * 2, _POLL_LONGEST_S)

    def _query_job(self, doing: str) -> _JobInfo | None:
        jobs = expected(self.command("query-jobs", doing=doing), list[_JobInfo], doing)
        return next((job for job in jobs if job.id == "job"), None)

    def _cancel_job(self, doing: str) -> None:
        deadline_s = self._host.clock.monotonic_s() + _CANCEL_TIMEOUT_S
        cancelled = False
        while (job := self._query_job(doing)) is not None:
            if job.status == "concluded":
                self.command("job-dismiss", {"id": "job"}, doing=doing)
                return
            if not cancelled:
                self.command("job-cancel", {"id": "job"}, doing=doing)
                cancelled = True
            if self._host.clock.monotonic_s() > deadline_s:
                self.kill()  # the storage hangs, and the job ends with the daemon
                return
            self._host.clock.sleep(_POLL_FIRST_S)
