"""Actions that change no image, but use storage a lot: connecting, reading, exporting, serving."""

from __future__ import annotations

from typing import Any

from diskyard import errors
from diskyard.service import Service, call
from diskyard.testing.scenarios import shapes
from diskyard.testing.scenarios.base import Scenario, same
from diskyard.testing.world import World


def connect(world: World, service: Service) -> None:
    """Disconnect a repository and connect it again."""
    asked = {"repoFormat": world.format, "connectionParameters": world.parameters("a")}
    call(service, "disconnectStorageRepository", {"repoId": "a"})
    call(service, "connectStorageRepository", {"repoId": "a", **asked})


def look_at_all(world: World, service: Service) -> None:
    """Call every verb that only reads."""
    image = {"repositoryId": "a", "imageId": world.names["d"]}
    call(service, "listStorageRepositories", {})
    call(service, "listImages", {"repositoryId": "a"})
    call(service, "getImageStatus", image)
    call(service, "getImageInfo", image)
    call(service, "checkStorageRepository", {"repositoryId": "a", "options": {"deep": True}})


def create_and_remove(world: World, service: Service) -> None:
    """Make a repository, connect it and remove it."""
    asked = {"repoFormat": world.format, "connectionParameters": world.parameters("c")}
    call(service, "createStorageRepository", asked)
    call(service, "connectStorageRepository", {"repoId": "c", **asked})
    call(service, "removeStorageRepository", {"repositoryId": "c"})


def export(world: World, service: Service) -> None:
    """Export a disk and wait. The file has all of the disk's bytes, or does not exist."""
    path = world.folder / "exported"
    asked = {"repositoryId": "a", "imageId": world.names["d"], "path": str(path), "format": "raw"}
    try:
        _await(service, call(service, "exportImage", asked)["taskId"])
    finally:
        if path.exists():
            assert path.read_bytes() == world.images["a", world.names["d"]]


def _await(service: Service, task_id: str) -> None:
    service.tasks.wait([task_id])
    try:
        task = service.records.get(task_id)
    except OSError as error:  # this host's directory of tasks fails
        raise errors.from_os_error(error, "looking at a task") from error
    if task.error is not None:
        kind = errors.CODES[str(task.error["code"])]
        raise kind(str(task.error["message"]), advice=str(task.error["advice"]))


def serve(world: World, service: Service) -> Any:
    """Serve a disk over NBD, and stop."""
    image = {"repositoryId": "a", "imageId": world.names["d"]}
    call(service, "prepareImage", {**image, "options": {"serve": "nbd"}})
    call(service, "teardownImage", image)


MORE = [
    Scenario("connect", shapes.chain, connect, same),
    Scenario("look", shapes.chain, look_at_all, same),
    Scenario("create and remove", shapes.chain, create_and_remove, same),
    Scenario("export and wait", shapes.chain, export, same),
    Scenario("serve", shapes.chain, serve, same),
]
