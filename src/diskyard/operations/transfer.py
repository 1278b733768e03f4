"""importImage."""

from __future__ import annotations

import contextlib
import os

from msgspec.structs import replace

from diskyard import errors
from diskyard.caller import CALLER, handed
from diskyard.host import Host
from diskyard.host.identity import new_uuid
from diskyard.model.fix import Mend, Optimize
from diskyard.model.records import (
    IMAGE_SIZE_LIMIT_BYTES,
    SECTOR_BYTES,
    FileSource,
    Image,
)
from diskyard.model.requests import ImportImage
from diskyard.mover.untrusted import open_untrusted, parse_import
from diskyard.operations.building import new_ids
from diskyard.operations.engine import (
    Engine,
    FollowUp,
    Outcome,
    request_digest,
    require_new_id,
    require_user_data,
)
from diskyard.operations.writers import require_file_unwritten
from diskyard.planner import copy as planner
from diskyard.planner.common import already_made
from diskyard.planner.copy import PendingImage
from diskyard.repository.repository import Repository

# A file must have been left alone for this long: within one tick of its file system's clock, it can be
# written again without a change of its times. The kernel's tick is at most 10 ms; the rest of the time makes
# it likely that a file which is written piece by piece is noticed. Some file systems keep only whole seconds,
# and FAT only every other one.
QUIET_S, _QUIET_WHOLE_S = 0.1, 2.0
_NS = 1_000_000_000


def transfer_path(host: Host, path: str) -> str:
    """Check a path of this host that a caller gave, and return it.

    :raises diskyard.errors.InvalidParameter: the path is not absolute.
    :raises diskyard.errors.PathNotAllowed: the path leads out of the directories that the caller may use.
    """
    if not os.path.isabs(path) or "\0" in path:
        raise errors.InvalidParameter("path must be an absolute path on this host.")
    require_transfer_folder(host, os.path.dirname(path), path)
    return path


def require_transfer_folder(host: Host, folder: str, path: str) -> None:
    """Refuse a directory that is not one of the caller's transfer directories, or inside one. Follows links.

    There is no check if the caller opened the file or directory itself and handed it over: then that is
    used.

    :param path: the path as the caller gave it.
    :raises diskyard.errors.PathNotAllowed: the directory is outside.
    """
    caller = CALLER.get()
    if (
        caller is None
        or caller.handed is not None
        or caller.transfer_folders is None
        or host.files.is_inside(folder, caller.transfer_folders)
    ):
        return
    folders = ", ".join(caller.transfer_folders) or "there are none"
    raise errors.PathNotAllowed(
        f"{path!r:.200} is outside the transfer directories ({folders}).",
        advice="Use a path inside one of them, or allow another ([transfer] folders, or those of the token). "
        "Root on the daemon's host may use any path, with the command diskyard on the Unix socket.",
    )


def why_not_asked(engine: Engine, repo: Repository, image: Image, source: FileSource) -> str | None:
    """Why a mend may not even look at the file that a record names; None if it may.

    Anyone who can write to the repository's storage may have written the record. It counts only if this host
    remembers the request, or if the file is in a directory from which whoever runs the mend may import.
    """
    if engine.asked_imports.remembers(repo, image) or _is_in_own_folder(engine, source.path):
        return None
    return (
        f"this host does not remember that it was asked to import {source.path!r:.200}, which is in none "
        f"of the transfer folders: import it again as before, with newImageId {image.id}, or remove the "
        "image and import the file from a transfer folder"
    )


def require_asked(engine: Engine, repo: Repository, image: Image, source: FileSource, fd: int) -> None:
    """Like :func:`why_not_asked`, for the opened file: a directory in its path may be a link by now.

    :raises diskyard.errors.PathNotAllowed: the file may not be read.
    """
    told = os.readlink(f"/proc/self/fd/{fd}")
    if not engine.asked_imports.remembers(repo, image) and not _is_in_own_folder(engine, told):
        raise errors.PathNotAllowed(
            f"{source.path!r:.200} leads out of the transfer directories.",
            advice="Remove the image, and import the file by its own path.",
        )


def _is_in_own_folder(engine: Engine, path: str) -> bool:
    """Whether a record's path is in a directory that the caller may use. No other directory is touched."""
    caller = CALLER.get()
    of_caller = None if caller is None else caller.transfer_folders
    folders = engine.transfer_folders if of_caller is None else of_caller
    if not os.path.isabs(path) or "\0" in path:
        return False
    named = os.path.normpath(os.path.dirname(path))
    resolved = [*folders, *map(engine.host.files.resolve, folders)]
    if not any(os.path.commonpath((named, folder)) == os.path.normpath(folder) for folder in resolved):
        return False
    return engine.host.files.is_inside(os.path.dirname(path), folders)


def import_image(engine: Engine, request: ImportImage) -> Outcome:
    """Make an image from a file. On return the image is recorded durably; a mend completes it.

    The file's headers are read before anything is committed. The mend checks the file's tables, in a copy
    that the file's owner cannot change. The file must not change until the mend is done. A repeated call
    makes this host remember the request, if it did not.

    :raises diskyard.errors.UnsafeImage: the file refers to other files, lies about itself, is changing, or
        its image is too small or too large.
    :raises diskyard.errors.ImageInUse: a running QEMU has the file open for writing, and ``force`` is not
        given.
    :raises diskyard.errors.InvalidParameter: the file is absent or may not be read.
    :raises diskyard.errors.PathNotAllowed: the file is in no directory that the caller may use.
    :raises diskyard.errors.Unsupported: the format needs a private copy, and the repository has no files.
    """
    require_user_data(request.user_data)
    path = transfer_path(engine.host, request.path)
    if request.format == "raw":
        path = transfer_path(engine.host, engine.host.files.device_behind(path))
    repo = engine.connections.get(request.target_repo_id)
    image_id = request.options.new_image_id or new_uuid()
    state = repo.state()
    digest = _digest(state.images.get(image_id), request)
    if already_made(state, image_id, digest):
        _remember_again(engine, repo, state.images[image_id], request, path)
    else:
        require_new_id(engine, repo, request.options.new_image_id, {})
        _begin(engine, repo, image_id, digest, request, path)
    rate_limit = request.options.rate_limit
    follow_ups = [FollowUp(repo, Mend(image_id=image_id), image_id, rate_limit)]
    if request.options.optimize_now:
        follow_ups.append(FollowUp(repo, Optimize(image_id=image_id), image_id, rate_limit))
    return Outcome(image_id, follow_ups)


def private_path(repo: Repository) -> str:
    """The path for a private copy of a file to import, so that the bytes that are checked are then read.

    :raises diskyard.errors.Unsupported: the repository has no files.
    """
    path = repo.storage.private_path()
    if path is None:
        raise errors.Unsupported(
            "A file of any format but raw is copied privately before it is imported, and in "
            f"{repo.storage.place} there is no place for that.",
            advice="Import it into a repository that has files and copy the image from there, or convert it "
            "to raw (qemu-img convert -O raw) and import that.",
        )
    return path


def _digest(image: Image | None, request: ImportImage) -> str:
    """The request's digest.

    If the request repeats one without newImageId, with the id that the image got, that one's digest.
    """
    if image is not None and image.pending is not None:
        nameless = replace(request, options=replace(request.options, new_image_id=None))
        if (digest := request_digest("importImage", nameless)) == image.request_digest:
            return digest
    return request_digest("importImage", request)


def _begin(
    engine: Engine, repo: Repository, image_id: str, digest: str, request: ImportImage, path: str
) -> None:
    if request.format != "raw":
        private_path(repo)
    source, size_bytes = _look_into(engine, request, path)
    now = engine.host.clock.now()
    asked = PendingImage(
        image_id=image_id,
        ids=new_ids(),
        kind="snapshot" if request.options.as_ == "snapshot" else "virtual_disk",
        size_bytes=size_bytes,
        source=source,
        base_image_id=None,
        strategy=request.options.strategy or "space",
        user_data=request.user_data,
        request_digest=digest,
        now=now,
        captured_at=now,
        rate_limit_bytes_per_s=request.options.rate_limit,
    )
    with repo.work_on([image_id]):
        engine.asked_imports.remember(repo, image_id, source, digest)
        repo.commit(
            lambda draft: planner.begin(draft, asked, repo.storage.capabilities),
            engine.author("importImage", digest),
        )


def _remember_again(engine: Engine, repo: Repository, image: Image, request: ImportImage, path: str) -> None:
    """Remember a request that an earlier version, or one with another state directory, has committed."""
    source = None if image.pending is None else image.pending.source
    if not isinstance(source, FileSource):
        return
    if source.machine_id != engine.host.identity.machine_id or engine.asked_imports.remembers(repo, image):
        return
    same, _ = _look_into(engine, request, path)
    # If somebody has the lease, the image is being completed. If the file is another one, check says that it
    # has changed.
    with contextlib.suppress(errors.LeaseHeld), repo.work_on([image.id]):
        if same == source and repo.state().images.get(image.id) == image:
            engine.asked_imports.remember(repo, image.id, source, image.request_digest or "")


def _look_into(engine: Engine, request: ImportImage, path: str) -> tuple[FileSource, int]:
    """Read a file's headers: the record that names the file, and the size of its image."""
    fd = open_given(engine.host, path, block_device=request.format == "raw")
    try:
        # The opened file is what counts: a directory in the path may have become a link meanwhile.
        found = os.readlink(f"/proc/self/fd/{fd}")
        require_transfer_folder(engine.host, os.path.dirname(found), path)
        if not request.options.force:
            require_file_unwritten(engine.host, fd, path)
        fingerprint = _settled_fingerprint(engine.host, fd, path)
        size_bytes = parse_import(engine.host, fd, request.format)
        _require_same(engine.host, fd, path, fingerprint)
    finally:
        os.close(fd)
    if not SECTOR_BYTES <= size_bytes <= IMAGE_SIZE_LIMIT_BYTES:
        raise errors.UnsafeImage(
            f"{path} is an image of {size_bytes} bytes.", advice=_size_advice(size_bytes)
        )
    source = FileSource(
        machine_id=engine.host.identity.machine_id,
        path=path,
        format=request.format,
        fingerprint=fingerprint,
        force=request.options.force,
    )
    return source, size_bytes


def open_given(host: Host, path: str, *, block_device: bool) -> int:
    """Open the file that a request names, for reading: the file that came with it, or else its path.

    Raises the errors of :func:`diskyard.mover.untrusted.open_untrusted`.

    :returns: a descriptor.
    """
    given = handed()
    given_fd = None if given is None else given.fd
    return open_untrusted(host, path, block_device=block_device, given_fd=given_fd)


def _size_advice(size_bytes: int) -> str:
    if size_bytes < SECTOR_BYTES:
        return "It is empty. Fetch it again from where it was made; an empty disk is for createVirtualDisk."
    return f"An image has at most {IMAGE_SIZE_LIMIT_BYTES} bytes."


def _settled_fingerprint(host: Host, fd: int, path: str) -> str:
    """A fingerprint that every later write will change. Waits for a moment if the file was just written.

    :raises diskyard.errors.UnsafeImage: the file changes meanwhile.
    """
    fingerprint = host.files.fingerprint_of(fd)
    changed_ns = int(fingerprint.rpartition(":")[2])
    quiet_s = QUIET_S if changed_ns % _NS else _QUIET_WHOLE_S
    age_s = max(0.0, host.clock.wall_s() - changed_ns / _NS)  # this clock may be behind the storage's
    if age_s < quiet_s:
        host.clock.sleep(quiet_s - age_s)
        _require_same(host, fd, path, fingerprint)
    return fingerprint


def _require_same(host: Host, fd: int, path: str, fingerprint: str) -> None:
    if host.files.fingerprint_of(fd) != fingerprint:
        raise changed_file(path)


def changed_file(path: str) -> errors.UnsafeImage:
    """The error for a file that is not, or no longer, the one that was looked at first."""
    return errors.UnsafeImage(
        f"{path} changed while it was imported.",
        advice="Remove the image, if there is one, and import the file again when nothing writes to it.",
    )
