"""Reading a file of this host into a pending image."""

from __future__ import annotations

import os
from collections.abc import Sequence

from diskyard import errors
from diskyard.caller import handed
from diskyard.fixes.work import Work, filled_bytes, require_free_space
from diskyard.host import Host
from diskyard.model.records import FileSource, Image
from diskyard.model.state import State
from diskyard.mover.copying.copy import copy_view
from diskyard.mover.interface import Chain, Monitor
from diskyard.mover.transfer import private_copy
from diskyard.mover.untrusted import (
    IMPORT_LIMITS,
    blocks_held,
    import_layer,
    inspect_import,
)
from diskyard.operations.engine import Engine
from diskyard.operations.transfer import changed_file, open_given, private_path, require_asked, why_not_asked
from diskyard.operations.writers import WRITER_WORDS, require_file_unwritten
from diskyard.repository.repository import Repository

_FINGERPRINT_PARTS = 5
_LOOK_S = 0.1


def import_waits_for(engine: Engine, repo: Repository, image: Image, source: FileSource) -> str | None:
    """Why the file of a pending import cannot be read on this host now; None if it can."""
    if source.machine_id != engine.host.identity.machine_id:
        return "the file to import is on another host"
    return why_not_asked(engine, repo, image, source) or _file_waits_for(engine.host, source)


def _file_waits_for(host: Host, source: FileSource) -> str | None:
    try:
        given = handed()
        if given is None:
            now = host.files.fingerprint(source.path)
            written = not source.force and host.files.name_is_written_by_qemu(source.path)
        else:
            now = host.files.fingerprint_of(given.fd)
            written = not source.force and host.files.is_written_by_qemu(given.fd)
    except (OSError, errors.DiskyardError) as error:
        return f"the file to import cannot be read: {error}"
    if source.fingerprint.count(":") + 1 < _FINGERPRINT_PARTS:
        return "an earlier version recorded too little to tell whether the file has changed: import it again"
    if now != source.fingerprint:
        return "the file to import has changed since, or its name, links or rights have"
    return f"of the file to import, {WRITER_WORDS}" if written else None


def require_free_space_to_import(work: Work, state: State, source: FileSource, image: Image) -> None:
    """Refuse an import that would fail later because the storage is full.

    Every format but raw is stored twice while it is imported: in the private copy, and in the volume. The
    volume needs at least as much as is left to copy of the file's allocated data.

    :raises diskyard.errors.NoSpace: says how much is needed, and how much is free.
    :raises diskyard.errors.PathNotAllowed: the file may not be looked at.
    :raises diskyard.errors.ImageInUse: a running QEMU has the file open for writing.
    :raises diskyard.errors.UnsafeImage: the file is no longer the one that was committed.
    """
    _require_as_committed(work, image, source)
    files, given = work.engine.host.files, handed()
    item = files.look(source.path) if given is None else files.look_open(given.fd)
    if item is None:
        return  # opening it raises the error
    left_bytes = max(0, min(item.allocated_bytes, image.size_bytes) - filled_bytes(work.repo, state, image))
    copy_bytes = 0 if source.format == "raw" else item.allocated_bytes
    require_free_space(work.repo, copy_bytes + left_bytes, "The import")


class _Watched:
    """A monitor that ends the work as soon as it sees that the file has changed."""

    def __init__(self, work: Work, source: FileSource, fd: int) -> None:
        self._work, self._source, self._fd = work, source, fd
        self._looked_s = work.engine.host.clock.monotonic_s()

    @property
    def rate_limit_bytes_per_s(self) -> int:
        """See :class:`Monitor`."""
        return self._work.rate_limit_bytes_per_s

    @property
    def inherit_fds(self) -> Sequence[int]:
        """See :class:`Monitor`."""
        return self._work.inherit_fds

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        """See :class:`Monitor`. Also looks at the file now and then."""
        now_s = self._work.engine.host.clock.monotonic_s()
        if now_s - self._looked_s >= _LOOK_S:
            self._looked_s = now_s
            self.look()
        self._work.advance(done_bytes, total_bytes)

    def checkpoint(self, durable_bytes: int) -> None:
        """See :class:`Monitor`. The durable bytes were read before this look, from the unchanged file."""
        self.look()
        self._work.checkpoint(durable_bytes)

    def look(self) -> None:
        """Refuse the file if it has changed, or if a running QEMU may be changing it.

        :raises diskyard.errors.UnsafeImage: the file has changed.
        :raises diskyard.errors.ImageInUse: some QEMU has the file open for writing, and the import was not
            forced.
        """
        host = self._work.engine.host
        if not self._source.force:
            require_file_unwritten(host, self._fd, self._source.path)
        if host.files.fingerprint_of(self._fd) != self._source.fingerprint:
            raise changed_file(self._source.path)


def copy_file(work: Work, source: FileSource, image: Image, target: Chain, start_bytes: int) -> None:
    """Copy a file's bytes into a volume, resumably.

    A file of any format but raw is copied privately first, so that the bytes that are checked are the bytes
    that are read. The file is looked at before, during and after the copy.

    :raises diskyard.errors.UnsafeImage: the file is not, or no longer, the one that was committed.
    :raises diskyard.errors.ImageInUse: a running QEMU has the file open for writing.
    :raises diskyard.errors.PathNotAllowed: this host was not asked to import the file, and it is in no
        transfer directory.
    """
    host, size_bytes = work.engine.host, image.size_bytes
    _require_as_committed(work, image, source)
    # Opened here, only once: this file is read, whatever gets its name or its directory's name from now on.
    fd = open_given(host, source.path, block_device=source.format == "raw")
    try:
        require_asked(work.engine, work.repo, image, source, fd)
        watched = _Watched(work, source, fd)
        watched.look()
        try:
            if source.format == "raw":
                _copy_layer(work, fd, source, size_bytes, target, start_bytes, watched)
            else:
                _copy_privately(work, source, fd, size_bytes, target, start_bytes, watched)
        except (errors.StorageError, errors.UnsafeImage):
            watched.look()  # the failure may come from a change, such as a file that was cut short
            raise
        watched.look()
    finally:
        os.close(fd)
    _require_as_committed(work, image, source)


def _require_as_committed(work: Work, image: Image, source: FileSource) -> None:
    """Refuse the import before anything is opened, and before the file's directory is touched."""
    is_here = source.machine_id == work.engine.host.identity.machine_id
    not_asked = why_not_asked(work.engine, work.repo, image, source) if is_here else None
    if not_asked is not None:
        raise errors.PathNotAllowed(
            f"Image {image.id} cannot be completed: {not_asked}.",
            advice="Anyone who may write to the repository may have written that record: make sure that this "
            "import was asked for before you repeat it.",
        )
    waits_for = import_waits_for(work.engine, work.repo, image, source)
    if waits_for is None:
        return
    if WRITER_WORDS in waits_for:
        raise errors.ImageInUse(
            f"{source.path} cannot be imported: {waits_for}.",
            advice="Run the fix again when that program has ended; if the file has changed then, "
            "remove the image and import it again.",
        )
    raise errors.UnsafeImage(
        f"{source.path} cannot be imported: {waits_for}.",
        advice="Remove the image and import the file again.",
    )


def _copy_privately(
    work: Work,
    source: FileSource,
    source_fd: int,
    size_bytes: int,
    target: Chain,
    start_bytes: int,
    watched: _Watched,
) -> None:
    path = private_path(work.repo)
    work.stage = "1/2"
    copy_fd = private_copy(work.engine.host, source_fd, path, watched)
    try:
        watched.look()  # the copy is of the unchanged file: what happens to the file now does not matter
        if inspect_import(work.engine.host, copy_fd, source.format) != size_bytes:
            raise changed_file(source.path)
        work.stage = "2/2"
        _copy_layer(work, copy_fd, source, size_bytes, target, start_bytes, work)
    finally:
        work.engine.host.files.discard(path)
        os.close(copy_fd)


def _copy_layer(
    work: Work,
    fd: int,
    source: FileSource,
    size_bytes: int,
    target: Chain,
    start_bytes: int,
    monitor: Monitor,
) -> None:
    copy_view(
        work.engine.host,
        (import_layer(work.engine.host, fd, source.format, size_bytes),),
        target,
        size_bytes,
        start_bytes=start_bytes,
        monitor=monitor,
        target_zeroed=work.repo.storage.capabilities.zeroed,
        source_limits=IMPORT_LIMITS,
        source_blocks=blocks_held(work.engine.host, fd, source.format),
    )
