"""importImage and exportImage."""

from __future__ import annotations

import os
from collections.abc import Callable

from diskyard import errors
from diskyard.fixes.runner import run_follow_ups
from diskyard.fixes.work import Watcher, Work
from diskyard.host.identity import new_uuid
from diskyard.model.fix import Mend, Merge, Optimize
from diskyard.model.records import (
    IMAGE_SIZE_LIMIT_BYTES,
    SECTOR_BYTES,
    CopyHold,
    FileSource,
    Image,
)
from diskyard.model.requests import ExportImage, ImportImage
from diskyard.mover.transfer import export_view
from diskyard.mover.untrusted import inspect_import
from diskyard.opened import Opened
from diskyard.operations.engine import (
    Engine,
    FollowUp,
    Outcome,
    request_digest,
    require_user_data,
)
from diskyard.operations.freeze import freeze_disk, hold_snapshot, release_hold
from diskyard.planner import copy as planner
from diskyard.planner.common import already_made
from diskyard.planner.copy import PendingImage


def _absolute(path: str) -> str:
    if not os.path.isabs(path) or "\0" in path:
        raise errors.InvalidParameter("path must be an absolute path on this host.")
    return path


def import_image(engine: Engine, request: ImportImage) -> Outcome:
    """Make an image from a file; durable on return, and completed by a mend.

    The file is looked into before anything is committed, and must not change until the mend
    is done.

    :raises diskyard.errors.UnsafeImage: it refers to other files, or lies about itself.
    """
    require_user_data(request.user_data)
    path = _absolute(request.path)
    target = engine.connections.get(request.target_repo_id)
    image_id = request.options.new_image_id or new_uuid()
    digest = request_digest("importImage", request)
    if not already_made(target.state(), image_id, digest):
        try:
            fingerprint = engine.host.files.fingerprint(path)
        except OSError as error:
            raise errors.InvalidParameter(f"{path} cannot be read: {error.strerror}.") from error
        size_bytes = inspect_import(engine.host, path, request.format)
        if not SECTOR_BYTES <= size_bytes <= IMAGE_SIZE_LIMIT_BYTES:
            raise errors.UnsafeImage(f"{path} is an image of {size_bytes} bytes.")
        now = engine.host.clock.now()
        asked = PendingImage(
            image_id=image_id,
            volume_id=new_uuid(),
            work_id=new_uuid(),
            kind="snapshot" if request.options.as_ == "snapshot" else "virtual_disk",
            size_bytes=size_bytes,
            source=FileSource(
                machine_id=engine.host.identity.machine_id,
                path=path,
                format=request.format,
                fingerprint=fingerprint,
            ),
            base_image_id=None,
            strategy=request.options.strategy or "space",
            user_data=request.user_data,
            request_digest=digest,
            now=now,
            captured_at=now,
            rate_limit_bytes_per_s=request.options.rate_limit,
        )
        with target.work_on([image_id]):
            target.commit(lambda draft: planner.begin(draft, asked), engine.author("importImage", digest))
    rate_limit = request.options.rate_limit
    follow_ups = [FollowUp(target, Mend(image_id=image_id), image_id, rate_limit)]
    if request.options.optimize_now:
        follow_ups.append(FollowUp(target, Optimize(image_id=image_id), image_id, rate_limit))
    return Outcome(image_id, follow_ups)


def export_image(engine: Engine, request: ExportImage) -> Callable[[Watcher], bool]:
    """Prepare to write an image to a new file: the work, to be run as a task.

    Refused at once are a path that exists, and an image that cannot be read. What is
    exported is what a VirtualDisk holds when the work starts; it can be used meanwhile.

    :raises diskyard.errors.NotEmpty: something has the path's name.
    """
    path = _absolute(request.path)
    opened = engine.connections.get(request.repository_id)
    state = opened.state()
    missing = opened.missing_below(state, request.image_id)
    planner.copy_source(state, request.image_id, missing)
    if engine.host.files.exists(path):
        raise errors.NotEmpty(f"{path} exists.", advice="Choose another path; nothing is overwritten.")
    if not os.path.isdir(os.path.dirname(path)):
        raise errors.InvalidParameter(f"There is no folder {os.path.dirname(path)}.")
    return lambda watcher: _export(engine, opened, request, path, watcher)


def _export(engine: Engine, opened: Opened, request: ExportImage, path: str, watcher: Watcher) -> bool:
    author = engine.author("exportImage")
    export_id, work_id = new_uuid(), new_uuid()
    work = Work(engine, opened, author, watcher, request.options.rate_limit, fix="export")
    hold = CopyHold(target_marker=opened.marker, copy_id=export_id, work_id=work_id)
    with opened.work_on([export_id]) as leases:
        work.hold(leases)
        state = opened.state()
        image = planner.copy_source(state, request.image_id, opened.missing_below(state, request.image_id))
        if image.kind == "snapshot":
            hold_snapshot(opened, image.id, opened, export_id, work_id, author)
        else:
            image = freeze_disk(opened, image.id, hold, author)
        try:
            _write_file(work, request, image, path)
        finally:
            release_hold(opened, image.id, hold, author)
    run_follow_ups(engine, [FollowUp(opened, Merge(image_id=image.id))])
    return True


def _write_file(work: Work, request: ExportImage, image: Image, path: str) -> None:
    """Write beside the path, then give the file its name, which must still be free.

    A crash leaves a temporary file beside the path, never half an image under its name.
    """
    files = work.engine.host.files
    state = work.opened.state()
    chain = work.opened.chain(state, state.images[image.id])
    temporary = files.temporary_path(os.path.dirname(path))
    try:
        export_view(work.engine.host, chain, image.size_bytes, temporary, request.format, work)
        try:
            files.link(temporary, path)
        except FileExistsError:
            raise errors.NotEmpty(
                f"{path} was made by somebody else meanwhile.",
                advice="Choose another path; nothing is overwritten.",
            ) from None
        files.unlink(temporary)
        files.sync_folder(os.path.dirname(path))
    except OSError as error:
        raise errors.from_os_error(error, f"exporting to {path}") from error
    finally:
        files.discard(temporary)
