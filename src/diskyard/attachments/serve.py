"""Serving attached images over NBD on Unix sockets, while this process lives."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from diskyard import errors
from diskyard.caller import Parts, Share, share
from diskyard.host import Host
from diskyard.host.calls import PatientLock, ThreadCalls, calls_of_this_thread
from diskyard.model.records import Volume
from diskyard.model.results import Attached
from diskyard.mover.copying.workers import WorkerPool
from diskyard.mover.interface import Chain
from diskyard.repository.repository import Repository, lease_name
from diskyard.repository.volume_files import opening
from diskyard.storage.interface import Lease

if TYPE_CHECKING:
    from diskyard.mover.qemu.blockgraph import StorageDaemon

SERVED_IMAGES = 16
_CONNECTIONS_MOST = 16  # for one image's guest and tools: nbdcopy opens 4, a guest one for each queue
_SOCKET_PATH_LIMIT_BYTES = 107  # unix(7)
_TEARDOWN_S = 0.5  # a teardown in another process, which takes the same lease, is over by then
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class _Server:
    """A server program that is running.

    :param thread: the thread that started it. A program ends with that thread (host/commands.py), so each
        program has its own thread, which lasts as long as the program. If storage hangs, only what is served
        from there waits.
    :param socket: the name of its socket in the servers' directory.
    """

    thread: WorkerPool[StorageDaemon]
    socket: str
    lease: Lease
    share: Share


class Servers:
    """The NBD servers of this process: one for each image and owner.

    A server holds a lease, and its program inherits it. As long as the program lives, :func:`nobody_serves`
    refuses in every process, so that an attachment does not end under a writer.

    :param folder: the directory for the names of the sockets: the image's id and a hash of the owner. It is
        made when it is needed.
    :param most: how many servers may run at a time. Each is a process of its own. A caller with a token gets
        a part of them.
    """

    def __init__(self, host: Host, folder: str, most: int = SERVED_IMAGES) -> None:
        self._host = host
        self._folder = folder
        self._parts = Parts(most)
        self._lock = threading.Lock()  # guards the counts and turns; no storage is asked while it is held
        self._running: dict[tuple[str, str, str], _Server] = {}
        # For each repository, by marker: the lock that is held while a server is started or ended there.
        self._turns: defaultdict[str, PatientLock] = defaultdict(PatientLock)

    def serve(self, repo: Repository, attached: Attached, chain: Chain) -> Attached:
        """Serve an image until :meth:`stop`.

        :returns: the attachment with the URI filled in.
        :raises diskyard.errors.ImageInUse: another process serves the image to this owner, or the attachment
            has ended.
        :raises diskyard.errors.RepositoryUnavailable: another call that starts or ends a server of this
            repository waits for storage that does not answer.
        :raises diskyard.errors.StorageError: the server does not start.
        :raises diskyard.errors.TooManyRequests: the limit of servers, or the caller's part of it, is reached.
        """
        key = (repo.marker, attached.image_id, attached.owner)
        with self._turn(repo.marker):
            server = self._running.get(key)
            if server is None:
                server = self._running[key] = self._begin(repo, attached, chain)
        return replace(attached, nbd_uri=f"nbd+unix:///{attached.image_id}?socket={server.socket}")

    def _turn(self, marker: str) -> PatientLock:
        with self._lock:
            return self._turns[marker]

    def _begin(self, repo: Repository, attached: Attached, chain: Chain) -> _Server:
        whose = share()
        self._take_part(whose)
        try:
            return self._start_leased(repo, attached, chain, whose)
        except BaseException:
            self._give_back(whose)
            raise

    def _take_part(self, whose: Share) -> None:
        with self._lock:
            taken = self._parts.in_the_way(whose)
            if taken is None:
                self._parts.add(whose)
                return
        words = taken.format(words="images are served over NBD by this process")
        raise errors.TooManyRequests(
            f"{words}, which is the limit.",
            advice="Tear down those that nobody uses any more; or give the guest the image's files, which "
            "prepareImage returns without serve; or raise limits.served_images in the daemon's "
            "configuration.",
        )

    def _give_back(self, whose: Share) -> None:
        with self._lock:
            self._parts.remove(whose)

    def remove_leftovers(self) -> list[str]:
        """Remove the sockets of processes that have ended, and the names that led to them.

        This is for the daemon's start. A server makes the socket before its name.

        :returns: the paths that were removed.
        """
        files = self._host.files
        folders = files.remove_dead_private_folders()
        if not files.is_folder(self._folder):
            return folders
        paths = (os.path.join(self._folder, item.name) for item in files.list(self._folder))
        names = [path for path in paths if self._leads_nowhere(path, folders)]
        for path in names:
            files.discard(path)
        return [*folders, *names]

    def _leads_nowhere(self, path: str, removed: Sequence[str]) -> bool:
        """Whether a name leads to a socket that is gone, as far as this process can know."""
        files = self._host.files
        socket = files.resolve(path)
        folder = os.path.dirname(socket)
        is_known = folder in removed or files.sees_private(folder)
        return socket != path and is_known and not files.exists(socket)

    def _start_leased(self, repo: Repository, attached: Attached, chain: Chain, whose: Share) -> _Server:
        # Imported only when an image is served: every service has this class, but few serve anything.
        from diskyard.mover.qemu.blockgraph import StorageDaemon

        lease = _take(repo, attached.image_id, attached.host_id, attached.owner)
        try:
            volumes = _require_attached(repo, attached, chain)
            socket = self._socket_name(attached)
            with opening(repo, volumes) as files:
                daemon = StorageDaemon(self._host, (files,), inherit_fds=lease.descriptors())
                thread = WorkerPool((daemon,), "diskyard-nbd")
                try:
                    _done(thread, lambda daemon: self._start(daemon, attached, files, socket))
                except BaseException:
                    thread.end(0)
                    raise
            return _Server(thread, socket, lease, whose)
        except BaseException:
            lease.release()
            raise

    def _start(self, daemon: StorageDaemon, attached: Attached, chain: Chain, socket: str) -> None:
        daemon.__enter__()
        try:
            writes = attached.mode == "read_write"
            node = daemon.open_chain(chain, writable=(chain[0].name,) if writes else ())
            daemon.export_nbd(
                node, writable=writes, name=attached.image_id, connections_most=_CONNECTIONS_MOST
            )
            self._host.files.ensure_folder(self._folder)
            self._host.files.discard(socket)
            self._host.files.symlink(daemon.socket_path, socket)
        except BaseException:
            daemon.close()
            raise

    def _socket_name(self, attached: Attached) -> str:
        """The name of the socket. It is the same whenever the image is served to this owner."""
        owner = hashlib.blake2b(attached.owner.encode(), digest_size=4).hexdigest()
        path = os.path.join(self._folder, f"{attached.image_id}.{owner}")
        if len(path.encode()) > _SOCKET_PATH_LIMIT_BYTES:
            raise errors.Unsupported(
                f"The name of the socket, {path}, is longer than {_SOCKET_PATH_LIMIT_BYTES} bytes.",
                advice="Use a state directory with a shorter name ($DISKYARD_STATE_DIR).",
            )
        return path

    def stop(self, marker: str, image_id: str, owner: str) -> None:
        """Stop serving an image to an owner, if this process serves it.

        :raises diskyard.errors.RepositoryUnavailable: see :meth:`serve`.
        """
        with self._turn(marker):
            found = self._running.pop((marker, image_id, owner), None)
            if found is None:
                return
            try:
                _done(found.thread, lambda daemon: daemon.close())
            finally:
                found.thread.end(0)
                # Before the lease is released: with it, another process may give the name to its own socket.
                self._host.files.discard(found.socket)
                found.lease.release()
                self._give_back(found.share)

    def close(self) -> None:
        """Stop all servers, except those whose storage does not answer: they end with this process."""
        for marker, image_id, owner in list(self._running):
            with contextlib.suppress(errors.RepositoryUnavailable):
                self.stop(marker, image_id, owner)


def _done(thread: WorkerPool[StorageDaemon], work: Callable[[StorageDaemon], None]) -> None:
    """Run something on a server's thread, and wait. Storage calls of that thread count as the caller's."""
    mine, its = calls_of_this_thread(), ThreadCalls()
    its.timeout_s = mine.timeout_s

    def do(daemon: StorageDaemon) -> None:
        calls_of_this_thread(its)
        work(daemon)

    mine.behind = its
    try:
        thread.submit(do).result()
    finally:
        mine.behind = None


@contextmanager
def nobody_serves(repo: Repository, image_id: str, host_id: str, owner: str) -> Iterator[None]:
    """A context in which no process serves an image to an owner on a host.

    :raises diskyard.errors.ImageInUse: the image is being served.
    """
    lease = _take(repo, image_id, host_id, owner)
    try:
        yield
    finally:
        lease.release()


def _take(repo: Repository, image_id: str, host_id: str, owner: str) -> Lease:
    name, clock = lease_name(f"{image_id}/served/{host_id}/{owner}"), repo.host.clock
    deadline_s = clock.monotonic_s() + _TEARDOWN_S
    while (lease := repo.storage.try_lock(name)) is None and clock.monotonic_s() < deadline_s:
        clock.sleep(_POLL_S)
    if lease is None:
        raise errors.ImageInUse(
            f"Another process on host {host_id} serves image {image_id} to {owner}.",
            advice="Stop the process that serves it, or tear it down there; then try again.",
            imageId=image_id,
            hostID=host_id,
            owner=owner,
        )
    return lease


def _require_attached(repo: Repository, attached: Attached, chain: Chain) -> list[Volume]:
    """Refuse to serve an attachment that has ended. The caller has the lease, so it cannot end from here on.

    The attachment must name exactly the volumes that are to be served. Otherwise it is a newer one of the
    same owner, made after the disk was frozen.

    :returns: these volumes, top first.
    """
    state = repo.state()
    wanted = (attached.host_id, attached.owner, attached.mode, tuple(layer.name for layer in chain))
    for found in state.attachments_of(attached.image_id):
        if (found.host.host_id, found.owner, found.mode, found.volume_ids) == wanted:
            return [state.volumes[volume_id] for volume_id in found.volume_ids]
    raise errors.ImageInUse(
        f"The attachment of image {attached.image_id} was torn down meanwhile.",
        advice="Prepare the image again.",
        imageId=attached.image_id,
        owner=attached.owner,
    )
