"""Reading a file of this host into a pending image."""

from __future__ import annotations

import os

from diskyard import errors
from diskyard.fixes.work import Work, filled_bytes, require_room
from diskyard.host import Host
from diskyard.model.records import FileSource, Image
from diskyard.mover.copy import copy_view
from diskyard.mover.interface import Chain
from diskyard.mover.transfer import private_copy
from diskyard.mover.untrusted import (
    IMPORT_LIMITS,
    blocks_held,
    import_layer,
    inspect_import,
    open_untrusted,
)


def file_waits_for(host: Host, source: FileSource) -> str | None:
    """Why a file cannot be read on this host now; None if it can."""
    if source.machine_id != host.identity.machine_id:
        return "the file to import is on another host"
    try:
        now = host.files.fingerprint(source.path)
    except (OSError, errors.DiskyardError) as error:
        return f"the file to import cannot be read: {error}"
    return None if now == source.fingerprint else "the file to import has changed since"


def require_room_to_import(work: Work, source: FileSource, image: Image) -> None:
    """Refuse an import that would only fail when the storage is full.

    All formats but raw are stored twice while they are read: as the private copy, and in
    the volume, which needs at least what is left of the file's own data.

    :raises diskyard.errors.NoSpace: says how much is needed and how much there is.
    """
    item = work.engine.host.files.look(source.path)
    if item is None:
        return  # said by who opens it
    left_bytes = max(0, min(item.allocated_bytes, image.size_bytes) - filled_bytes(work.opened, image))
    copy_bytes = 0 if source.format == "raw" else item.allocated_bytes
    require_room(work.opened, copy_bytes + left_bytes, "The import")


def copy_file(work: Work, source: FileSource, size_bytes: int, target: Chain, start_bytes: int) -> None:
    """Copy a file's bytes into a volume, resumably.

    Any format but raw is copied privately first: what is checked is then what is read.

    :raises diskyard.errors.UnsafeImage: the file is not, or no longer, what was committed.
    """
    waits_for = file_waits_for(work.engine.host, source)
    if waits_for is not None:
        raise errors.UnsafeImage(
            f"{source.path} cannot be imported: {waits_for}.",
            advice="Put the file back as it was and run the fix again, or remove the image.",
        )
    host = work.engine.host
    # Opened here, once: whatever gets its name or its folder's from now on, this file is read.
    fd = open_untrusted(host, source.path, block_device=source.format == "raw")
    try:
        if host.files.fingerprint_of(fd) != source.fingerprint:
            raise _changed(source)
        if source.format == "raw":
            _copy_layer(work, source.path, source, size_bytes, target, start_bytes, source_fd=fd)
        else:
            _copy_privately(work, source, fd, size_bytes, target, start_bytes)
        if host.files.fingerprint_of(fd) != source.fingerprint:
            raise _changed(source)
    except errors.StorageError as error:
        if host.files.fingerprint_of(fd) != source.fingerprint:
            raise _changed(source) from error  # as one that is cut short while it is read
        raise
    finally:
        os.close(fd)
    if file_waits_for(host, source) is not None:
        raise _changed(source)


def _changed(source: FileSource) -> errors.UnsafeImage:
    return errors.UnsafeImage(
        f"{source.path} changed while it was imported.",
        advice="Remove the image and import the file again when nothing writes to it.",
    )


def _copy_privately(
    work: Work, source: FileSource, source_fd: int, size_bytes: int, target: Chain, start_bytes: int
) -> None:
    path = work.opened.storage.private_path()
    if path is None:
        raise errors.Unsupported(f"{work.opened.storage.place} has no room for a private copy.")
    work.stage = "1/2"
    try:
        private_copy(work.engine.host, source_fd, path, work)
        if inspect_import(work.engine.host, path, source.format) != size_bytes:
            raise _changed(source)
        work.stage = "2/2"
        _copy_layer(work, path, source, size_bytes, target, start_bytes)
    finally:
        work.engine.host.files.discard(path)


def _copy_layer(
    work: Work,
    path: str,
    source: FileSource,
    size_bytes: int,
    target: Chain,
    start_bytes: int,
    *,
    source_fd: int | None = None,
) -> None:
    copy_view(
        work.engine.host,
        (import_layer(path, source.format, size_bytes, fd=source_fd),),
        target,
        size_bytes,
        start_bytes=start_bytes,
        monitor=work,
        target_zeroed=True,
        source_limits=IMPORT_LIMITS,
        source_blocks=blocks_held(work.engine.host, path, source.format),
        source_fds=() if source_fd is None else (source_fd,),
    )
