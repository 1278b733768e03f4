"""Running an export: an image's bytes in a new file of this host."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial

from diskyard import errors
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
from diskyard.operations.change import cleaning
from diskyard.operations.engine import Engine, Export, FollowUp
from diskyard.operations.export import folder_of_new
from diskyard.operations.freeze import (
    copy_hold,
    freeze_disk,
    hold_snapshot,
    release_hold,
    require_held,
    require_unchanged,
)
from diskyard.operations.transfer import require_transfer_folder
from diskyard.operations.writers import nobody_writes
from diskyard.planner import copy as planner
from diskyard.planner.common import strong_image
from diskyard.repository.settled import Opening, look_at, open_chains, volumes_below, volumes_of


def run_export(engine: Engine, export: Export, watcher: Watcher, rate_limit_bytes_per_s: int) -> bool:
    """Write an image to a new file, which gets its name once it is durable.

    The file gets the bytes that a VirtualDisk has when this begins. The disk can be used meanwhile.

    :returns: True: something was changed.
    :raises diskyard.errors.NotEmpty: the path has come into use meanwhile.
    """
    repo, request, path = export.repo, export.request, export.path
    author = engine.author("exportImage")
    work = Work(engine, repo, author, watcher, rate_limit_bytes_per_s, fix="export")
    if repo.is_read_only:
        sight = look_at(repo, volumes_below(request.image_id))
        image = planner.copy_source(sight, request.image_id)
        _write_file(work, request, image, partial(require_unchanged, repo, image), path)
        return True
    export_id, work_id = new_uuid(), new_uuid()
    hold = copy_hold(repo, export_id, work_id)
    with repo.work_on([export_id]) as leases:
        work.hold(leases)
        # The task may have waited long for its turn, and a disk's size is judged by its current record.
        state = repo.state()
        image = strong_image(state, request.image_id)
        if image.kind == "snapshot":
            image = hold_snapshot(repo, image, hold, author).result
        else:
            image, _ = freeze_disk(engine, repo, state, image.id, hold, author)
        try:
            _write_file(work, request, image, partial(require_held, repo, image.id, hold), path)
        finally:
            _let_go(work, image, hold)
    return True


def _let_go(work: Work, image: Image, hold: CopyHold) -> None:
    """End the hold, then merge or delete what only the export needed, if that is quick."""
    repo = work.repo
    released = release_hold(repo, image.id, hold, work.author)
    if released is None:
        return  # check lists the hold once something can be written
    follow_ups = [
        FollowUp(repo, Merge(image_id=image.id)),
        *cleaning(repo, released.before, released.state),
    ]
    # The caller is told how the export ended, and nothing else. Check lists what fails here.
    with contextlib.suppress(errors.DiskyardError):
        run_follow_ups(work.engine, follow_ups)


def _write_file(
    work: Work, request: ExportImage, image: Image, require_same: Callable[[], None], path: str
) -> None:
    """Write a file beside the path, then give it its name, which must still be free.

    :param require_same: the check after reading. It raises if the bytes that were read must not be used.

    The directory is opened once, and everything is done in what was opened: anyone who may change the
    directories on the way can replace one by a link at any moment, and that link must not be followed. A
    crash leaves a temporary file beside the path, never half an image under its name; the next export
    into that directory removes it.
    """
    host = work.engine.host
    try:
        folder_fd = host.files.open_folder(folder_of_new(path))
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
    """Like :func:`_write_file`, in a directory that is open."""
    host = work.engine.host
    folder = f"/proc/self/fd/{folder_fd}"
    temporary = host.files.temporary_path(folder)

    def export(source: Opening) -> None:
        host.files.discard(temporary)  # left by an attempt during which the source's volumes were merged
        with nobody_writes(work.repo, source.volumes, image.id):
            export_view(host, source.chain, image.size_bytes, temporary, request.format, work)

    try:
        open_chains([(work.repo, volumes_of(image))], export)
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
    """Remove temporary files in a directory that exports of provably gone processes left."""
    with contextlib.suppress(OSError):  # the directory may be writable and not readable
        for item in files.list(folder):
            owner = temporary_owner(item.name)
            if item.is_file and owner is not None and provably_gone(owner, host):
                files.discard(os.path.join(folder, item.name))
