"""The table of verbs: each is a request's struct and a function here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from diskyard import errors
from diskyard.caller import may_use
from diskyard.model import requests as ask
from diskyard.model.options import wire_name
from diskyard.model.results import (
    ConnectionInfo,
    FormatInfo,
    HostInfo,
    ImageInfo,
    ImagePage,
    ImageStatus,
    Task,
)
from diskyard.model.verbs import FORMS, Access, Form
from diskyard.queries import image_info, list_images, status_of
from diskyard.repositories.registry import FORMATS
from diskyard.service import repositories
from diskyard.service.service import Service
from diskyard.version import version

__all__ = [
    "BY_REQUEST",
    "VERBS",
    "Access",
    "Verb",
    "call",
    "outcome_details",
    "run",
    "run_unwatched",
    "translated",
]

# -- images ------------------------------------------------------------------------------


def _status(service: Service, request: ask.GetImageStatus) -> ImageStatus:
    opened = service.connections.get(request.repository_id)
    return status_of(opened, request.image_id, service.task_on(request.image_id))


def _list_images(service: Service, request: ask.ListImages) -> ImagePage:
    return list_images(service.connections.get(request.repository_id), request)


def _info(service: Service, request: ask.GetImageInfo) -> ImageInfo:
    return image_info(service.connections.get(request.repository_id), request.image_id)


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


def _change(service: Service, request: ask.Request) -> Any:
    # Imported when it is called: who only looks, such as a command that lists, needs none of it.
    from diskyard.service import changing

    if _starts_tasks(request):
        service.tasks.require_room()
    return changing.RUN[type(request)](service, request)


_OF_GUESTS = (ask.PrepareImage, ask.TeardownImage, ask.SetUserData)


def _starts_tasks(request: ask.Request) -> bool:
    """Whether a call may add to what waits; that a guest begins and ends can be said at any time."""
    if isinstance(request, ask.FixStorageRepository | ask.ExportImage):
        return True
    auto_fix = getattr(getattr(request, "options", None), "auto_fix", False)
    return bool(auto_fix) and not isinstance(request, _OF_GUESTS)


_RUN: dict[type[ask.Request], Callable[[Service, Any], Any]] = {
    ask.ConnectStorageRepository: repositories.connect,
    ask.DisconnectStorageRepository: repositories.disconnect,
    ask.CreateStorageRepository: repositories.create_repository,
    ask.RemoveStorageRepository: repositories.remove_repository,
    ask.ListStorageRepositories: repositories.list_repositories,
    ask.GetImageStatus: _status,
    ask.ListImages: _list_images,
    ask.GetImageInfo: _info,
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

    @property
    def is_of_guests(self) -> bool:
        """Whether guests wait for it: it is not refused for what else its caller has asked for."""
        return self.request in _OF_GUESTS


BY_REQUEST: dict[type[ask.Request], Verb] = {
    request: Verb(form.request, form.access, form.result, run=_RUN.get(request, _change))
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
    with translated(verb):
        return verb.run(service, request)


@contextmanager
def translated(verb: Verb) -> Iterator[None]:
    """While a verb runs: what it raises becomes an error of the table.

    :raises diskyard.errors.DiskyardError: as :func:`run` says.
    """
    try:
        yield
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
