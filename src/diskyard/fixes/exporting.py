"""exportImage: an image's bytes in a new file of this host."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from functools import partial

from diskyard import errors
from diskyard.caller import handed
from diskyard.fixes.runner import run_follow_ups
from diskyard.fixes.work import Watcher, Work
from diskyard.host import Files, HostIdentity, provably_gone
from diskyard.host.identity import new_uuid
from diskyard.host.renaming import move_to_new
from diskyard.host.temporary import temporary_owner
from diskyard.model.fix import Merge
from diskyard.model.records import CopyHold, Image
from diskyard.model.requests import ExportImage
from diskyard.mover.transfer import export_view
from diskyard.opened import Opened
from diskyard.operations.change import cleaning
from diskyard.operations.engine import Engine, FollowUp
from diskyard.operations.freeze import (
    copy_hold,
    freeze_disk,
    hold_snapshot,
    release_hold,
    require_held,
    require_unchanged,
)
from diskyard.operations.transfer import require_transfer_folder, transfer_path
from diskyard.operations.writers import nobody_writes
from diskyard.planner import copy as planner
from diskyard.planner.common import strong_image
from diskyard.settled import Opening, look_at, open_chains, volumes_below, volumes_of


def export_image(engine: Engine, request: ExportImage) -> Callable[[Watcher], bool]:
    """Prepare to write an image to a new file: the work, to be run as a task.

    Refused at once are a path that exists, and an image that cannot be read. What is
    exported is what a VirtualDisk holds when the work starts; it can be used meanwhile.

    :raises diskyard.errors.NotEmpty: something has the path's name.
    :raises diskyard.errors.PathNotAllowed: it is in no folder that the caller may use.
    :raises diskyard.errors.InvalidParameter: its folder is not there, or no file can have its name.
    """
    path = transfer_path(engine.host, request.path)
    opened = engine.connections.get(request.repository_id)
    sight = look_at(opened, volumes_below(request.image_id))
    planner.copy_source(sight.state, request.image_id, sight.missing)
    longest_bytes = sight.state.images[request.image_id].size_bytes if request.format == "raw" else 0
    _require_possible(engine.host.files, path, longest_bytes)
    return lambda watcher: _export(engine, opened, request, path, watcher)


def _folder_of(path: str) -> str:
    """The folder of the new file: that which came with the request, or that of the path."""
    given = handed()
    return os.path.dirname(path) if given is None else f"/proc/self/fd/{given.fd}/."


def _require_possible(files: Files, path: str, size_bytes: int) -> None:
    """Refuse a new file that cannot be made there.

    :param size_bytes: how long it must be able to be.
    """
    folder = _folder_of(path)
    try:
        # What was handed over may have a path that leads to nothing here.
        has_folder = files.is_folder(files.resolve(folder) if handed() is None else folder)
        taken = has_folder and files.exists(os.path.join(folder, os.path.basename(path)))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise errors.InvalidParameter(f"No file can be named {path}: {error.strerror or error}.") from error
    if not has_folder:
        raise errors.InvalidParameter(f"There is no directory {os.path.dirname(path)}.")
    if taken:
        raise errors.NotEmpty(f"{path} exists.", advice="Choose another path; nothing is overwritten.")
    _require_writable(files, folder, path)
    if size_bytes:
        _require_long_files(files, folder, path, size_bytes)


def _require_writable(files: Files, folder: str, path: str) -> None:
    """Refuse a folder in which no file can be made, before anything is read."""
    if files.may_write(folder):
        return
    if files.is_read_only(folder):
        raise errors.InvalidParameter(
            f"{path} cannot be written: its file system is mounted read-only.",
            advice="Use a directory of another file system, or mount this one so that it can be written to.",
        )
    raise errors.InvalidParameter(
        f"{path} cannot be written: this user may not make files in {os.path.dirname(path)}.",
        advice="Use another directory, or change its permissions.",
    )


def _require_long_files(files: Files, folder: str, path: str, size_bytes: int) -> None:
    """Refuse a raw file that the file system cannot hold; what it can is asked of an empty one."""
    probe = files.temporary_path(folder)
    try:
        os.close(files.create(probe))
        longest_bytes = files.longest_file_bytes(probe, size_bytes)
    except OSError as error:
        raise errors.from_os_error(error, f"making a file beside {path}") from error
    finally:
        files.discard(probe)
    if longest_bytes < size_bytes:
        raise errors.InvalidParameter(
            f"{path} would have {size_bytes} bytes; the longest file there has {longest_bytes}.",
            advice="Export it as qcow2, which stores only what was written, or to another file system.",
        )


def _export(engine: Engine, opened: Opened, request: ExportImage, path: str, watcher: Watcher) -> bool:
    author = engine.author("exportImage")
    work = Work(engine, opened, author, watcher, request.options.rate_limit, fix="export")
    if opened.is_read_only:
        image = planner.copy_source(
            opened.state(), request.image_id, opened.missing_below(opened.state(), request.image_id)
        )
        _write_file(work, request, image, partial(require_unchanged, opened, image), path)
        return True
    export_id, work_id = new_uuid(), new_uuid()
    hold = copy_hold(opened, export_id, work_id)
    with opened.work_on([export_id]) as leases:
        work.hold(leases)
        image = strong_image(opened.state(), request.image_id)
        if image.kind == "snapshot":
            image = hold_snapshot(opened, image, hold, author)
        else:
            image = freeze_disk(opened, image.id, hold, author)
        try:
            _write_file(work, request, image, partial(require_held, opened, image.id, hold), path)
        finally:
            _let_go(work, image, hold)
    return True


def _let_go(work: Work, image: Image, hold: CopyHold) -> None:
    """End the hold, then merge or delete what only the export needed, as far as that is quick."""
    opened = work.opened
    before = opened.state()
    release_hold(opened, image.id, hold, work.author)
    follow_ups = [FollowUp(opened, Merge(image_id=image.id)), *cleaning(opened, before)]
    # The export has ended, well or not, and that is to be told: check lists what this leaves.
    with contextlib.suppress(errors.DiskyardError):
        run_follow_ups(work.engine, follow_ups)


def _write_file(
    work: Work, request: ExportImage, image: Image, require_same: Callable[[], None], path: str
) -> None:
    """Write beside the path, then give the file its name, which must still be free.

    :param require_same: the check after reading: it raises if what was read must not be used.

    The directory is opened once, and everything is done in what was opened: anyone who may change the
    directories on the way can replace one by a link at any moment, and that link must not be followed. A
    crash leaves a temporary file beside the path, never half an image under its name; the next export
    into that directory removes it.
    """
    host = work.engine.host
    try:
        folder_fd = host.files.open_folder(_folder_of(path))
        try:
            folder = f"/proc/self/fd/{folder_fd}"
            require_transfer_folder(host, os.readlink(folder), path)
            _remove_leftovers(host.files, host.identity, folder)
            _write_in(work, request, image, require_same, path, folder_fd)
        finally:
            os.close(folder_fd)
    except errors.NoSpace as error:
        raise _no_room(path, error.message) from error
    except OSError as error:
        told = errors.from_os_error(error, f"exporting to {path}")
        raise _no_room(path, told.message) if isinstance(told, errors.NoSpace) else told from error


def _no_room(path: str, message: str) -> errors.NoSpace:
    return errors.NoSpace(
        message,
        advice=f"Free space for {os.path.dirname(path)}, or choose another directory, and export it again.",
    )


def _write_in(
    work: Work,
    request: ExportImage,
    image: Image,
    require_same: Callable[[], None],
    path: str,
    folder_fd: int,
) -> None:
    """The same, in a folder that is open."""
    host = work.engine.host
    folder = f"/proc/self/fd/{folder_fd}"
    temporary = host.files.temporary_path(folder)

    def export(source: Opening) -> None:
        host.files.discard(temporary)  # what was written before the source's volumes were merged
        with nobody_writes(work.opened, source.volumes, image.id):
            export_view(host, source.chain, image.size_bytes, temporary, request.format, work)

    try:
        open_chains([(work.opened, volumes_of(image))], export)
        require_same()
        try:
            move_to_new(host.files, temporary, os.path.join(folder, os.path.basename(path)))
        except FileExistsError:
            raise errors.NotEmpty(
                f"Another program has made {path} meanwhile.",
                advice="Choose another path; nothing is overwritten.",
            ) from None
        host.files.sync_folder(folder)
    finally:
        host.files.discard(temporary)


def _remove_leftovers(files: Files, host: HostIdentity, folder: str) -> None:
    """Remove what exports of processes that are provably gone left in a folder."""
    with contextlib.suppress(OSError):  # a folder that may be written and not listed
        for item in files.list(folder):
            owner = temporary_owner(item.name)
            if item.is_file and owner is not None and provably_gone(owner, host):
                files.discard(os.path.join(folder, item.name))
