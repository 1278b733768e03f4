"""The verbs that create, connect, list, disconnect and remove repositories."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial

from diskyard import errors
from diskyard.caller import CALLER, may_use
from diskyard.model import requests as ask
from diskyard.model.records import Attachment, ImageSource
from diskyard.model.results import RepositoryInfo, Task
from diskyard.operations.engine import Engine
from diskyard.operations.new_marker import give_new_marker, is_done
from diskyard.operations.remove_repository import require_nothing_kept
from diskyard.planner.close import close, require_empty
from diskyard.queries import repository_info
from diskyard.repository.connections import require_may_use
from diskyard.repository.repository import Repository
from diskyard.storage.interface import Storage
from diskyard.storage.registry import find_format

_MARKERS_GIVEN = 3  # a copy that was made while its original was being given a marker needs two


def create_storage_repository(engine: Engine, request: ask.CreateStorageRepository) -> None:
    """Create an empty repository."""
    _require_unbound()
    found, parameters = find_format(request.repo_format), request.connection_parameters
    if found.folder_of is None or found.create_in is None:
        found.create(parameters, engine.host)
        return
    folder = found.folder_of(parameters, engine.host)
    _require_inside(engine, folder)
    found.create_in(folder, parameters, engine.host)


def connect_storage_repository(engine: Engine, request: ask.ConnectStorageRepository) -> None:
    """Connect a repository. If its format allows it, the next process remembers the connection."""
    _require_unbound()
    repo_id, parameters = request.repo_id, dict(request.connection_parameters)
    wants_new_marker = parameters.pop("newMarker", False)
    if not isinstance(wants_new_marker, bool):
        raise errors.InvalidParameter("newMarker must be true or false.")
    _require_allowed(engine, request.repo_format, parameters)
    _connect_others(engine, repo_id)
    if wants_new_marker:
        _give_new_marker(engine, request.repo_format, parameters)
    is_new = engine.connections.connect(repo_id, request.repo_format, parameters)
    if find_format(request.repo_format).folder_of is not None:
        _require_connected_inside(engine, repo_id, is_new=is_new)
    if is_new:
        engine.events.tell("repository", repo_id, {"change": "connected", "repoFormat": request.repo_format})
    if find_format(request.repo_format).remembered:
        engine.settings.remember(repo_id, request.repo_format, parameters)


def _give_new_marker(engine: Engine, format_name: str, parameters: Mapping[str, object]) -> None:
    """Give a copy of a repository its own marker, unless it has one already.

    :raises diskyard.errors.CorruptRecord: the copy still has no marker of its own afterwards.
    """
    found = find_format(format_name)
    if found.set_marker is None:
        raise errors.InvalidParameter(f"{format_name} takes no newMarker: its repositories are never copied.")
    for _ in range(_MARKERS_GIVEN):
        storage = found.connect(parameters, engine.host)
        try:
            if found.folder_of is not None:
                _require_inside(engine, storage.place)
            cloned = _require_unconnected(engine, storage)
            if is_done(storage) and not cloned:
                return
            actor = engine.author("connectStorageRepository").actor
            with engine.host.files.no_links_to(storage.place):
                give_new_marker(storage, found.set_marker, actor, engine.host, cloned=cloned)
        finally:
            storage.close()
    raise errors.CorruptRecord(
        "The location could not be given a marker of its own: afterwards its record had another one.",
        advice="Check whether another program writes to it, then try again.",
    )


def _require_unconnected(engine: Engine, storage: Storage) -> bool:
    """Refuse storage that is connected already, unless it has its own marker and nothing is left to do.

    :returns: whether a connected repository is the same except for its device.
    """
    cloned = False
    for repo_id, known_repo in engine.connections.connected().items():
        known_storage = known_repo.storage
        if storage.place == known_storage.place or storage.identity == known_storage.identity:
            if is_done(storage):
                continue
            raise errors.RepositoryInUse(
                f"{storage.place} is connected as {repo_id}.",
                advice="Disconnect it first: work that is under way in it would be interrupted.",
            )
        cloned |= (storage.marker, storage.place_identity) == (
            known_storage.marker,
            known_storage.place_identity,
        )
    return cloned


def _connect_others(engine: Engine, repo_id: str) -> None:
    """Connect what was connected before, so that a copy of one of them is refused now, not at its first use.

    A repository that does not answer is left out, as it is in every search for an image.
    """
    connected = engine.connections.connected()
    for other in engine.connections.remembered():
        if other != repo_id and other not in connected:
            with contextlib.suppress(errors.DiskyardError, OSError):
                engine.supervisor.run(partial(engine.connections.get, other))


def _require_unbound() -> None:
    """Refuse to connect or create repositories for a caller that may use only some of them.

    Otherwise the caller could give any storage the name of a repository that it may use.
    """
    caller = CALLER.get()
    if caller is not None and caller.repositories is not None:
        raise errors.Forbidden(
            "The token is bound to repositories: it neither connects nor creates any.",
            advice="Use a token that is bound to none.",
        )


def _require_allowed(engine: Engine, format_name: str, parameters: Mapping[str, object]) -> None:
    """Refuse a location outside the directories in which the caller may have repositories. Follows links.

    :raises diskyard.errors.PathNotAllowed: the location is outside.
    """
    folder_of, caller = find_format(format_name).folder_of, CALLER.get()
    if folder_of is not None and caller is not None and caller.repository_folders is not None:
        _require_inside(engine, folder_of(parameters, engine.host))


def _require_connected_inside(engine: Engine, repo_id: str, *, is_new: bool) -> None:
    """Like :func:`_require_allowed`, for what was connected: a directory in the path may be a link by now."""
    try:
        _require_inside(engine, engine.connections.get(repo_id).storage.place)
    except errors.PathNotAllowed:
        if is_new:
            engine.connections.disconnect(repo_id)
        raise


def _require_inside(engine: Engine, folder: str) -> None:
    caller = CALLER.get()
    if caller is None or caller.repository_folders is None:
        return
    if not engine.host.files.is_inside(folder, caller.repository_folders):
        folders = ", ".join(caller.repository_folders) or "there are none"
        raise errors.PathNotAllowed(
            f"{folder!r:.200} is outside the directories for repositories over TCP ({folders}).",
            advice="Use a directory inside one of them, have another one added to [repositories] folders in "
            "the daemon's configuration, or do it on the daemon's own host, over its Unix socket.",
        )


def disconnect_storage_repository(engine: Engine, request: ask.DisconnectStorageRepository) -> None:
    """Forget a connection. Refused while this host uses the repository."""
    require_may_use(request.repo_id)
    _require_idle(engine, request.repo_id)
    _forget(engine, request.repo_id)


def _forget(engine: Engine, repo_id: str) -> None:
    engine.connections.disconnect(repo_id)
    engine.settings.forget(repo_id)
    engine.events.tell("repository", repo_id, {"change": "disconnected"})


def _require_idle(engine: Engine, repo_id: str) -> None:
    """Refuse while this host uses the repository, unless another repoId names it too."""
    if not engine.connections.is_reachable(repo_id):
        return
    repo = engine.connections.get(repo_id)
    other_repos = [
        other_repo for key, other_repo in engine.connections.named(to_anybody=True).items() if key != repo_id
    ]
    if any(other_repo.marker == repo.marker for other_repo in other_repos):
        return
    names = [f"task {task.task_id}" for task in engine.records.unended() if _works_with(engine, task, repo)]
    names += [
        f"attachment of image {found.image_id} for {found.owner}"
        for found in _attachments(repo)
        if found.host == engine.host.identity
    ]
    if names:
        raise errors.RepositoryInUse(f"{repo_id} is in use: {', '.join(names)}.", repositoryId=repo_id)


def _works_with(engine: Engine, task: Task, repo: Repository) -> bool:
    """Whether a task works in a repository, or copies from it."""
    if task.repository_id == repo.repo_id:
        return True
    task_repo = engine.connections.named(to_anybody=True).get(task.repository_id or "")
    image = None if task_repo is None else task_repo.state().images.get(task.image_id or "")
    source = None if image is None or image.pending is None else image.pending.source
    return isinstance(source, ImageSource) and source.marker == repo.marker


def _attachments(repo: Repository) -> list[Attachment]:
    """The attachments of a repository; none if it does not answer, or cannot be read."""
    try:
        return list(repo.state().attachments.values())
    except (errors.RepositoryUnavailable, errors.CorruptRecord):
        return []


def remove_storage_repository(engine: Engine, request: ask.RemoveStorageRepository) -> None:
    """Remove a repository that holds no image, and every connection to it.

    :raises diskyard.errors.NotEmpty: it holds an image, or something that is not its own.
    :raises diskyard.errors.RepositoryInUse: somebody works in it, or uses something of it.
    """
    repo = engine.connections.get(request.repository_id)
    found = find_format(repo.format)
    if found.folder_of is not None:
        _require_inside(engine, repo.storage.place)
    state = repo.state()
    if not state.closed:  # an earlier removal that was interrupted has closed it
        require_empty(state)
        _require_idle(engine, request.repository_id)
        require_nothing_kept(repo)
        if found.require_removable is not None:
            found.require_removable(repo.storage, engine.host)
        repo.commit(lambda draft: close(draft, repo.is_locked), engine.author("removeStorageRepository"))
    repo.log.require_writable()
    found.remove(repo.storage, engine.host)
    for repo_id, other_repo in engine.connections.named(to_anybody=True).items():
        if other_repo.marker == repo.marker:
            _forget(engine, repo_id)


def list_storage_repositories(engine: Engine, request: ask.ListStorageRepositories) -> list[RepositoryInfo]:
    """List all known repositories. One that does not answer is listed with the reason."""
    answer = []
    for repo_id, (format_name, parameters) in engine.connections.remembered().items():
        if not may_use(repo_id):
            continue
        try:
            # On a thread of its own, so that one that does not answer does not keep the others from the list.
            answer.append(engine.supervisor.run(partial(_info, engine, repo_id, parameters)))
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


def _info(engine: Engine, repo_id: str, parameters: Mapping[str, object]) -> RepositoryInfo:
    return repository_info(engine.connections.get(repo_id), repo_id, parameters)
