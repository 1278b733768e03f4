"""exportImage: an image's bytes in a new file of this host."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable

from diskyard import errors
from diskyard.fixes.runner import run_follow_ups
from diskyard.fixes.work import Watcher, Work
from diskyard.host import Files, HostIdentity, provably_gone
from diskyard.host.files import temporary_owner
from diskyard.host.identity import new_uuid
from diskyard.model.fix import Merge
from diskyard.model.records import CopyHold, Image
from diskyard.model.requests import ExportImage
from diskyard.mover.transfer import export_view
from diskyard.opened import Opened
from diskyard.operations.change import cleaning
from diskyard.operations.engine import Engine, FollowUp
from diskyard.operations.freeze import copy_hold, freeze_disk, hold_snapshot, release_hold, require_held
from diskyard.operations.transfer import require_transfer_folder, transfer_path
from diskyard.planner import copy as planner


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
    state = opened.state()
    missing = opened.missing_below(state, request.image_id)
    planner.copy_source(state, request.image_id, missing)
    files, folder = engine.host.files, os.path.dirname(path)
    try:
        has_folder = files.is_folder(files.resolve(folder))
        taken = has_folder and files.exists(path)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise errors.InvalidParameter(f"There can be no file {path}: {error.strerror}.") from error
    if not has_folder:
        raise errors.InvalidParameter(f"There is no folder {folder}.")
    if taken:
        raise errors.NotEmpty(f"{path} exists.", advice="Choose another path; nothing is overwritten.")
    return lambda watcher: _export(engine, opened, request, path, watcher)


def _export(engine: Engine, opened: Opened, request: ExportImage, path: str, watcher: Watcher) -> bool:
    author = engine.author("exportImage")
    export_id, work_id = new_uuid(), new_uuid()
    work = Work(engine, opened, author, watcher, request.options.rate_limit, fix="export")
    hold = copy_hold(opened, export_id, work_id)
    with opened.work_on([export_id]) as leases:
        work.hold(leases)
        state = opened.state()
        image = planner.copy_source(state, request.image_id, opened.missing_below(state, request.image_id))
        if image.kind == "snapshot":
            hold_snapshot(opened, image.id, hold, author)
        else:
            image = freeze_disk(opened, image.id, hold, author)
        try:
            _write_file(work, request, image, hold, path)
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


def _write_file(work: Work, request: ExportImage, image: Image, hold: CopyHold, path: str) -> None:
    """Write beside the path, then give the file its name, which must still be free.

    The folder is opened once, and all is done in what was opened: whoever may change the folders on
    the way can make a link of one at any moment, which must lead nothing anywhere else. A crash
    leaves a temporary file beside the path, never half an image under its name; the next export
    into that folder removes it.
    """
    host = work.engine.host
    try:
        folder_fd = host.files.open_folder(os.path.dirname(path))
        try:
            folder = f"/proc/self/fd/{folder_fd}"
            require_transfer_folder(host, os.readlink(folder), path)
            _remove_leftovers(host.files, host.identity, folder)
            _write_in(work, request, image, hold, path, folder_fd)
        finally:
            os.close(folder_fd)
    except OSError as error:
        raise errors.from_os_error(error, f"exporting to {path}") from error


def _write_in(
    work: Work, request: ExportImage, image: Image, hold: CopyHold, path: str, folder_fd: int
) -> None:
    """The same, in a folder that is open: its path here is the same in the programs that inherit it."""
    host, state = work.engine.host, work.opened.state()
    folder = f"/proc/self/fd/{folder_fd}"
    temporary = host.files.temporary_path(folder)
    try:
        with work.opened.reading(state, state.images[image.id]) as chain:
            export_view(host, chain, image.size_bytes, temporary, request.format, work, [folder_fd])
        require_held(work.opened, image.id, hold)
        try:
            host.files.link(temporary, os.path.join(folder, os.path.basename(path)))
        except FileExistsError:
            raise errors.NotEmpty(
                f"{path} was made by somebody else meanwhile.",
                advice="Choose another path; nothing is overwritten.",
            ) from None
        host.files.unlink(temporary)
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
