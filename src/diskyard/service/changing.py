"""The verbs that change images, and the check that opens them: what moves bytes, and all it needs.

It is half of all there is, so it is imported when the first of these verbs is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from diskyard import errors
from diskyard.attachments.attach import DEFAULT_OWNER, prepare_image, teardown_image
from diskyard.fixes.exporting import export_image
from diskyard.fixes.look import look
from diskyard.fixes.runner import require_fixable
from diskyard.model import requests as ask
from diskyard.model.fix import Fix, fix_id
from diskyard.model.options import TeardownOptions
from diskyard.model.results import Attached, Task
from diskyard.operations import change, create, sizes, transfer
from diskyard.operations.copy import copy_image
from diskyard.operations.engine import FollowUp
from diskyard.planner.find_fixes import find_fixes
from diskyard.service.service import Service
from diskyard.tasks.limits import Urgency
from diskyard.tasks.runner import Job


def _create_disk(service: Service, request: ask.CreateVirtualDisk) -> str:
    outcome = create.create_virtual_disk(service.engine, request)
    return service.finish(outcome, auto_fix=request.options.auto_fix)


def _create_snapshot(service: Service, request: ask.CreateSnapshot) -> str:
    outcome = create.create_snapshot(service.engine, request)
    return service.finish(outcome, auto_fix=request.options.auto_fix)


def _copy(service: Service, request: ask.CopyImage) -> str:
    outcome = copy_image(service.engine, request)
    return service.finish(outcome, auto_fix=request.options.auto_fix)


def _remove_image(service: Service, request: ask.RemoveImage) -> None:
    outcome = change.remove_image(service.engine, request)
    service.finish(outcome, auto_fix=request.options.auto_fix)


def _set_user_data(service: Service, request: ask.SetUserData) -> None:
    change.set_user_data(service.engine, request)


def _set_strategy(service: Service, request: ask.SetStrategy) -> None:
    change.set_strategy(service.engine, request)


def _extend(service: Service, request: ask.ExtendVirtualDisk) -> None:
    sizes.extend_virtual_disk(service.engine, request)


def _revert(service: Service, request: ask.RevertVirtualDisk) -> None:
    outcome = change.revert_virtual_disk(service.engine, request)
    service.finish(outcome, auto_fix=request.options.auto_fix)


def _untrack(service: Service, request: ask.UntrackChanges) -> None:
    service.finish(change.untrack_changes(service.engine, request), auto_fix=True)


def _prepare(service: Service, request: ask.PrepareImage) -> Attached:
    opened = service.connections.get(request.repository_id)
    attached, chain, is_new = prepare_image(service.engine, request)
    if request.options.serve is None:
        return attached
    try:
        return service.servers.serve(opened, attached, chain)
    except BaseException:
        if is_new:
            options = TeardownOptions(owner=attached.owner)
            again = ask.TeardownImage(
                repository_id=request.repository_id, image_id=request.image_id, options=options
            )
            teardown_image(service.engine, again)
        raise


def _teardown(service: Service, request: ask.TeardownImage) -> None:
    # The server goes first: what it has open is the attachment's.
    if request.options.host_id in (None, service.host.identity.host_id):
        marker = service.connections.get(request.repository_id).marker
        service.servers.stop(marker, request.image_id, request.options.owner or DEFAULT_OWNER)
    outcome = teardown_image(service.engine, request)
    service.finish(outcome, auto_fix=request.options.auto_fix)


def _import(service: Service, request: ask.ImportImage) -> str:
    outcome = transfer.import_image(service.engine, request)
    return service.finish(outcome, auto_fix=request.options.auto_fix)


def _export(service: Service, request: ask.ExportImage) -> Task:
    rate_limit = request.options.rate_limit or service.limits.rate_limit_bytes_per_s
    request = replace(request, options=replace(request.options, rate_limit=rate_limit))
    run = export_image(service.engine, request)
    place = service.connections.get(request.repository_id).marker
    job = Job("exportImage", request.repository_id, request.image_id, run, place)
    return service.tasks.start([job])[0]


def _check(service: Service, request: ask.CheckStorageRepository) -> list[Fix]:
    options = request.options
    opened = service.connections.get(request.repository_id)
    places = None
    if options.participating_repositories is not None:
        places = [service.connections.get(key) for key in options.participating_repositories]
    fixes = find_fixes(look(service.engine, opened, deep=options.deep, places=places))
    return [
        fix
        for fix in fixes
        if (options.types is None or fix.type in options.types)
        and (options.image_ids is None or fix.image_id in options.image_ids)
    ]


def _fix(service: Service, request: ask.FixStorageRepository) -> Task:
    opened = service.connections.get(request.repository_id)
    data = request.fix.data
    if data.marker != opened.marker:
        raise errors.InvalidParameter(
            f"The fix was listed for another repository than {request.repository_id}.",
            advice="Send each fix to the repository whose check listed it.",
        )
    if request.fix.fix_id != fix_id(data):
        raise errors.InvalidParameter(
            "The fix is not as it was received.", advice="Send the whole fix back unchanged."
        )
    opened.state()  # what could not be read before may be whole again
    require_fixable(opened, data.action)
    options = request.options
    places = None
    if options.participating_repositories is not None:
        places = [service.connections.get(key) for key in options.participating_repositories]
    follow_up = FollowUp(opened, data.action, request.fix.image_id, options.rate_limit)
    urgency = Urgency.FIRST if options.run_first else Urgency.ASKED
    return service.tasks.start([service.job(follow_up, places, force=options.force)], urgency)[0]


RUN: dict[type[ask.Request], Callable[[Service, Any], Any]] = {
    ask.CreateVirtualDisk: _create_disk,
    ask.CreateSnapshot: _create_snapshot,
    ask.CopyImage: _copy,
    ask.RemoveImage: _remove_image,
    ask.CheckStorageRepository: _check,
    ask.FixStorageRepository: _fix,
    ask.SetUserData: _set_user_data,
    ask.SetStrategy: _set_strategy,
    ask.ExtendVirtualDisk: _extend,
    ask.RevertVirtualDisk: _revert,
    ask.UntrackChanges: _untrack,
    ask.PrepareImage: _prepare,
    ask.TeardownImage: _teardown,
    ask.ImportImage: _import,
    ask.ExportImage: _export,
}
