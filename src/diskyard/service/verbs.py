"""The table of verbs: each is a request's struct and a function here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec.structs import replace

from diskyard import errors
from diskyard.attachments.attach import DEFAULT_OWNER, prepare_image, teardown_image
from diskyard.caller import may_use
from diskyard.fixes.exporting import export_image
from diskyard.fixes.look import look
from diskyard.model import requests as ask
from diskyard.model.fix import Fix, fix_id
from diskyard.model.options import TeardownOptions, wire_name
from diskyard.model.results import (
    Attached,
    ConnectionInfo,
    FormatInfo,
    HostInfo,
    ImageInfo,
    ImagePage,
    ImageStatus,
    Task,
)
from diskyard.model.verbs import FORMS, Access, Form
from diskyard.operations import change, create, transfer
from diskyard.operations.copy import copy_image
from diskyard.operations.engine import FollowUp
from diskyard.planner.find_fixes import find_fixes
from diskyard.queries import image_info, list_images, status_of
from diskyard.repositories.registry import FORMATS
from diskyard.service import repositories
from diskyard.service.service import Service
from diskyard.tasks.limits import Urgency
from diskyard.tasks.runner import Job
from diskyard.version import version

__all__ = ["BY_REQUEST", "VERBS", "Access", "Verb", "call", "outcome_details", "run", "run_unwatched"]

# -- images ------------------------------------------------------------------------------


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


def _status(service: Service, request: ask.GetImageStatus) -> ImageStatus:
    opened = service.connections.get(request.repository_id)
    return status_of(opened, request.image_id, service.task_on(request.image_id))


def _list_images(service: Service, request: ask.ListImages) -> ImagePage:
    return list_images(service.connections.get(request.repository_id), request)


def _info(service: Service, request: ask.GetImageInfo) -> ImageInfo:
    return image_info(service.connections.get(request.repository_id), request.image_id)


def _set_user_data(service: Service, request: ask.SetUserData) -> None:
    change.set_user_data(service.engine, request)


def _set_strategy(service: Service, request: ask.SetStrategy) -> None:
    change.set_strategy(service.engine, request)


def _extend(service: Service, request: ask.ExtendVirtualDisk) -> None:
    change.extend_virtual_disk(service.engine, request)


def _revert(service: Service, request: ask.RevertVirtualDisk) -> None:
    outcome = change.revert_virtual_disk(service.engine, request)
    service.finish(outcome, auto_fix=request.options.auto_fix)


def _untrack(service: Service, request: ask.UntrackChanges) -> None:
    service.finish(change.untrack_changes(service.engine, request), auto_fix=True)


def _prepare(service: Service, request: ask.PrepareImage) -> Attached:
    opened = service.connections.get(request.repository_id)
    before = opened.state().attachments
    attached, chain = prepare_image(service.engine, request)
    if request.options.serve is None:
        return attached
    try:
        return service.servers.serve(opened, attached, chain)
    except BaseException:
        key = (attached.image_id, service.host.identity, attached.owner)
        if key not in {(found.image_id, found.host, found.owner) for found in before.values()}:
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


# -- fixes ----------------------------------------------------------------------------------


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
    opened.log.require_writable()
    options = request.options
    places = None
    if options.participating_repositories is not None:
        places = [service.connections.get(key) for key in options.participating_repositories]
    follow_up = FollowUp(opened, data.action, request.fix.image_id, options.rate_limit)
    urgency = Urgency.FIRST if options.run_first else Urgency.ASKED
    return service.tasks.start([service.job(follow_up, places, force=options.force)], urgency)[0]


# -- tasks and host ---------------------------------------------------------------------------


def _list_tasks(service: Service, request: ask.ListTasks) -> list[Task]:
    wanted = request.image_id
    tasks = [task for task in service.records.all() if wanted in (None, task.image_id)]
    return [task for task in tasks if may_use(task.repository_id)]


def _get_task(service: Service, request: ask.GetTask) -> Task:
    task = service.records.get(request.task_id)
    if not may_use(task.repository_id):
        raise errors.Forbidden(
            f"Task {request.task_id} works in a repository that the token is not bound to."
        )
    return task


def _stop_task(service: Service, request: ask.StopTask) -> None:
    task = _get_task(service, ask.GetTask(task_id=request.task_id))
    if task.state in ("queued", "running"):
        service.tasks.stop(task.task_id)


def _host_info(service: Service, request: ask.GetHostInfo) -> HostInfo:
    formats = tuple(
        FormatInfo(
            name=found.name,
            parameters=dict(found.parameters),
            capabilities={wire_name(key): can for key, can in found.capabilities.items()},
        )
        for found in FORMATS.values()
    )
    connections = tuple(
        ConnectionInfo(repo_id=repo_id, repo_format=format_name, connection_parameters=parameters)
        for repo_id, (format_name, parameters) in service.connections.remembered().items()
        if may_use(repo_id)
    )
    return HostInfo(
        host_id=service.host.identity.host_id,
        version=version(),
        formats=formats,
        connections=connections,
    )


_RUN: dict[type[ask.Request], Callable[[Service, Any], Any]] = {
    ask.ConnectStorageRepository: repositories.connect,
    ask.DisconnectStorageRepository: repositories.disconnect,
    ask.CreateVirtualDisk: _create_disk,
    ask.CreateSnapshot: _create_snapshot,
    ask.CopyImage: _copy,
    ask.RemoveImage: _remove_image,
    ask.GetImageStatus: _status,
    ask.CheckStorageRepository: _check,
    ask.FixStorageRepository: _fix,
    ask.CreateStorageRepository: repositories.create_repository,
    ask.RemoveStorageRepository: repositories.remove_repository,
    ask.ListStorageRepositories: repositories.list_repositories,
    ask.ListImages: _list_images,
    ask.GetImageInfo: _info,
    ask.SetUserData: _set_user_data,
    ask.SetStrategy: _set_strategy,
    ask.ExtendVirtualDisk: _extend,
    ask.RevertVirtualDisk: _revert,
    ask.UntrackChanges: _untrack,
    ask.PrepareImage: _prepare,
    ask.TeardownImage: _teardown,
    ask.ImportImage: _import,
    ask.ExportImage: _export,
    ask.ListTasks: _list_tasks,
    ask.GetTask: _get_task,
    ask.StopTask: _stop_task,
    ask.GetHostInfo: _host_info,
}


@dataclass(frozen=True, slots=True)
class Verb(Form):
    """One verb of the API: its form, and what it does.

    :param run: takes a :class:`Service` and the request.
    """

    run: Callable[[Service, Any], Any] = field(kw_only=True)


BY_REQUEST: dict[type[ask.Request], Verb] = {
    request: Verb(form.request, form.access, form.result, run=_RUN[request])
    for request, form in FORMS.items()
}
VERBS: dict[str, Verb] = {verb.name: verb for verb in BY_REQUEST.values()}


def run(service: Service, request: ask.Request) -> Any:
    """Run a decoded request.

    :raises diskyard.errors.DiskyardError: of the table; errors of the system become such too,
        and what nobody expected is an InternalError that has it as its cause.
    """
    verb = BY_REQUEST[type(request)]
    return service.supervisor.run(lambda: run_unwatched(service, request), **outcome_details(verb))


def outcome_details(verb: Verb) -> dict[str, str]:
    """What an error says of a verb that was left behind, as its storage does not answer."""
    return {} if verb.only_looks else {"outcome": "unknown"}


def run_unwatched(service: Service, request: ask.Request) -> Any:
    """Run a decoded request in this thread, however long the storage takes.

    :raises diskyard.errors.DiskyardError: as :func:`run` says.
    """
    verb = BY_REQUEST[type(request)]
    try:
        return verb.run(service, request)
    except errors.DiskyardError:
        raise
    except OSError as error:
        raise errors.from_os_error(error, f"running {verb.name}") from error
    except Exception as error:
        raise errors.unexpected(error) from error


def call(service: Service, name: str, parameters: Any) -> Any:
    """Run a verb by its name with JSON-like parameters; a JSON-like answer.

    :raises diskyard.errors.DiskyardError: of the table; it raises nothing else.
    """
    verb = VERBS.get(name)
    if verb is None:
        raise errors.InvalidParameter(
            f"There is no verb {name!r:.80}.", advice=f"The verbs are: {', '.join(VERBS)}."
        )
    try:
        request = msgspec.convert(parameters, verb.request)
    except (msgspec.ValidationError, RecursionError) as error:
        raise errors.InvalidParameter(f"{name}: {error}.") from error
    return msgspec.to_builtins(run(service, request))
