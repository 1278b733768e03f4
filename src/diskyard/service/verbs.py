"""The table of verbs: each is a request's struct and a function here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from diskyard import errors
from diskyard.attachments.attach import DEFAULT_OWNER, prepare_image, teardown_image
from diskyard.fixes.exporting import export_image
from diskyard.fixes.look import look
from diskyard.model import requests as ask
from diskyard.model.fix import Fix, fix_id
from diskyard.model.options import TeardownOptions, wire_name
from diskyard.model.records import Attachment, ImageSource
from diskyard.model.results import (
    Attached,
    FormatInfo,
    HostInfo,
    ImageInfo,
    ImagePage,
    ImageStatus,
    RepositoryInfo,
    Task,
)
from diskyard.opened import Opened
from diskyard.operations import change, create, transfer
from diskyard.operations.copy import copy_image
from diskyard.operations.engine import FollowUp
from diskyard.planner.close import close, require_empty
from diskyard.planner.find_fixes import find_fixes
from diskyard.queries import image_info, list_images, repository_info, status_of
from diskyard.repositories.registry import FORMATS, find_format
from diskyard.service.service import Service
from diskyard.tasks.runner import Job
from diskyard.version import version

# -- repositories ----------------------------------------------------------------------


def _create_repository(service: Service, request: ask.CreateStorageRepository) -> None:
    find_format(request.repo_format).create(request.connection_parameters, service.host)


def _connect(service: Service, request: ask.ConnectStorageRepository) -> None:
    repo_id, parameters = request.repo_id, request.connection_parameters
    service.connections.connect(repo_id, request.repo_format, parameters)
    if find_format(request.repo_format).remembered:
        service.settings.remember(repo_id, request.repo_format, parameters)


def _disconnect(service: Service, request: ask.DisconnectStorageRepository) -> None:
    _require_idle(service, request.repo_id)
    service.connections.disconnect(request.repo_id)
    service.settings.forget(request.repo_id)


def _require_idle(service: Service, repo_id: str) -> None:
    """Refuse while this host uses the repository, unless another repoId names it too."""
    if not service.connections.is_reachable(repo_id):
        return
    opened = service.connections.get(repo_id)
    others = [o for key, o in service.connections.named().items() if key != repo_id]
    if any(other.marker == opened.marker for other in others):
        return
    names = [
        f"task {task.task_id}"
        for task in service.records.all()
        if task.state in ("queued", "running") and _works_with(service, task, opened)
    ]
    names += [
        f"attachment of image {found.image_id} for {found.owner}"
        for found in _attachments(opened)
        if found.host == service.host.identity
    ]
    if names:
        raise errors.RepositoryInUse(f"{repo_id} is in use: {', '.join(names)}.", repositoryId=repo_id)


def _works_with(service: Service, task: Task, opened: Opened) -> bool:
    """Whether a task works in a repository, or copies from it."""
    if task.repository_id == opened.repo_id:
        return True
    place = service.connections.named().get(task.repository_id or "")
    image = None if place is None else place.state().images.get(task.image_id or "")
    source = None if image is None or image.pending is None else image.pending.source
    return isinstance(source, ImageSource) and source.marker == opened.marker


def _attachments(opened: Opened) -> list[Attachment]:
    """The attachments there are; none can be told of a place that does not answer."""
    try:
        return list(opened.state().attachments.values())
    except errors.RepositoryUnavailable:
        return []


def _remove_repository(service: Service, request: ask.RemoveStorageRepository) -> None:
    opened = service.connections.get(request.repository_id)
    if not opened.state().closed:  # it is after a removal that was cut short
        require_empty(opened.state())
        _require_idle(service, request.repository_id)
        opened.commit(
            lambda draft: close(draft, opened.is_locked), service.engine.author("removeStorageRepository")
        )
    opened.log.require_writable()
    find_format(opened.format).remove(opened.storage, service.host)
    for repo_id, other in service.connections.named().items():
        if other.marker == opened.marker:
            service.connections.disconnect(repo_id)
            service.settings.forget(repo_id)


def _list_repositories(service: Service, request: ask.ListStorageRepositories) -> list[RepositoryInfo]:
    answer = []
    for repo_id, (format_name, parameters) in service.connections.remembered().items():
        try:
            opened = service.connections.get(repo_id)
            answer.append(repository_info(opened, repo_id, parameters))
        except (errors.DiskyardError, OSError) as error:
            answer.append(
                RepositoryInfo(
                    repo_id=repo_id,
                    repo_format=format_name,
                    capacity_bytes=None,
                    used_bytes=None,
                    free_bytes=None,
                    provisioned_bytes=None,
                    reclaimable_bytes=None,
                    mergeable_bytes=None,
                    retained_bytes=None,
                    strong_bytes=None,
                    building_bytes=None,
                    health=str(error),
                    connection_parameters=parameters,
                )
            )
    return answer


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
    run = export_image(service.engine, request)
    job = Job("exportImage", request.repository_id, request.image_id, run)
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
    return service.tasks.start([service.job(follow_up, places, force=options.force)])[0]


# -- tasks and host ---------------------------------------------------------------------------


def _list_tasks(service: Service, request: ask.ListTasks) -> list[Task]:
    wanted = request.image_id
    return [task for task in service.records.all() if wanted in (None, task.image_id)]


def _get_task(service: Service, request: ask.GetTask) -> Task:
    return service.records.get(request.task_id)


def _stop_task(service: Service, request: ask.StopTask) -> None:
    task = service.records.get(request.task_id)
    if task.state in ("queued", "running"):
        service.records.ask_to_stop(task.task_id)


def _host_info(service: Service, request: ask.GetHostInfo) -> HostInfo:
    formats = tuple(
        FormatInfo(
            name=found.name,
            parameters=dict(found.parameters),
            capabilities={wire_name(key): can for key, can in found.capabilities.items()},
        )
        for found in FORMATS.values()
    )
    return HostInfo(host_id=service.host.identity.host_id, version=version(), formats=formats)


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb of the API.

    :param request: its parameters; its docstring is the verb's one sentence for people.
    :param run: takes a :class:`Service` and the request.
    :param only_looks: it changes nothing that a caller sees.
    """

    request: type[ask.Request]
    run: Callable[[Service, Any], Any]
    only_looks: bool = False

    @property
    def name(self) -> str:
        """The name on the wire: that of the request, with a small first letter."""
        return self.request.__name__[0].lower() + self.request.__name__[1:]


BY_REQUEST: dict[type[ask.Request], Verb] = {
    verb.request: verb
    for verb in (
        Verb(ask.ConnectStorageRepository, _connect),
        Verb(ask.DisconnectStorageRepository, _disconnect),
        Verb(ask.CreateVirtualDisk, _create_disk),
        Verb(ask.CreateSnapshot, _create_snapshot),
        Verb(ask.CopyImage, _copy),
        Verb(ask.RemoveImage, _remove_image),
        Verb(ask.GetImageStatus, _status, only_looks=True),
        Verb(ask.CheckStorageRepository, _check, only_looks=True),
        Verb(ask.FixStorageRepository, _fix),
        Verb(ask.CreateStorageRepository, _create_repository),
        Verb(ask.RemoveStorageRepository, _remove_repository),
        Verb(ask.ListStorageRepositories, _list_repositories, only_looks=True),
        Verb(ask.ListImages, _list_images, only_looks=True),
        Verb(ask.GetImageInfo, _info, only_looks=True),
        Verb(ask.SetUserData, _set_user_data),
        Verb(ask.SetStrategy, _set_strategy),
        Verb(ask.ExtendVirtualDisk, _extend),
        Verb(ask.RevertVirtualDisk, _revert),
        Verb(ask.UntrackChanges, _untrack),
        Verb(ask.PrepareImage, _prepare),
        Verb(ask.TeardownImage, _teardown),
        Verb(ask.ImportImage, _import),
        Verb(ask.ExportImage, _export),
        Verb(ask.ListTasks, _list_tasks, only_looks=True),
        Verb(ask.GetTask, _get_task, only_looks=True),
        Verb(ask.StopTask, _stop_task),
        Verb(ask.GetHostInfo, _host_info, only_looks=True),
    )
}
VERBS: dict[str, Verb] = {verb.name: verb for verb in BY_REQUEST.values()}


def run(service: Service, request: ask.Request) -> Any:
    """Run a decoded request.

    :raises diskyard.errors.DiskyardError: of the table; errors of the system become such too,
        and what nobody expected is an InternalError that has it as its cause.
    """
    verb = BY_REQUEST[type(request)]
    outcome = {} if verb.only_looks else {"outcome": "unknown"}
    return service.supervisor.run(lambda: _run(service, verb, request), **outcome)


def _run(service: Service, verb: Verb, request: ask.Request) -> Any:
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
