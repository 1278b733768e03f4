"""Creating and removing a repository, killed at every step: doing it again completes it."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from diskyard import errors
from diskyard.fixes.runner import run_fix
from diskyard.model.fix import Fix
from diskyard.service import Service, call
from diskyard.testing.crash import run_scenario
from diskyard.testing.steps import Side
from diskyard.testing.world import SIZE_BYTES, World, host_named
from tests.conftest import Tally

SIDES: tuple[Side, ...] = ("before", "after")


def where(world: World) -> dict[str, Any]:
    return {"repoFormat": world.format, "connectionParameters": {"path": str(world.folder / "c")}}


def connect(world: World, service: Service) -> None:
    call(service, "connectStorageRepository", {"repoId": "c", **where(world)})


def require_whole_and_empty(world: World, service: Service) -> None:
    """It can be connected, holds nothing, and works."""
    connect(world, service)
    assert call(service, "listImages", {"repositoryId": "c"})["images"] == ()
    repository = service.connections.get("c")
    for fix in call(service, "checkStorageRepository", {"repositoryId": "c"}):
        assert fix["type"] == "clean"
        run_fix(service.engine, repository, msgspec.convert(fix, Fix).data.action)
    assert not call(service, "checkStorageRepository", {"repositoryId": "c"})
    made = call(service, "createVirtualDisk", {"targetRepoId": "c", "size": SIZE_BYTES})
    assert [image["imageId"] for image in call(service, "listImages", {"repositoryId": "c"})["images"]] == [
        made
    ]
    assert not list((world.folder / "c").rglob("tmp.*"))


def create_again(world: World, service: Service) -> None:
    with contextlib.suppress(errors.NotEmpty):  # it may have been made: it must be whole then
        call(service, "createStorageRepository", where(world))


def remove_again(world: World, service: Service) -> None:
    """By the same verb while it is a repository; what is left otherwise, by creating one there."""
    try:
        connect(world, service)
    except errors.NotARepository:
        pass
    else:
        call(service, "removeStorageRepository", {"repositoryId": "c"})
        assert not list((world.folder / "c").iterdir())
    call(service, "createStorageRepository", where(world))


@pytest.mark.parametrize(
    ("name", "again"), [("create repository", create_again), ("remove repository", remove_again)]
)
def test_killed_at_every_step(name: str, again: Any, quick_folder: Path, tally: Tally) -> None:
    tally("crash")
    worlds = (World(quick_folder / f"run-{number}") for number in itertools.count())

    def prepare() -> World:
        world = next(worlds)
        world.create()
        if name == "remove repository":
            service = world.service(host_named("builder"))
            call(service, "createStorageRepository", where(world))
            connect(world, service)
            gone = call(service, "createVirtualDisk", {"targetRepoId": "c", "size": SIZE_BYTES})
            options = {"AutoFix": False}
            call(service, "removeImage", {"repositoryId": "c", "imageId": gone, "options": options})
            service.close()
        return world

    steps = run_scenario(name, prepare()).names
    assert len(steps) > 10
    tally("crash", steps=len(steps))
    for index, side in itertools.product(range(len(steps)), SIDES):
        world = prepare()
        ran = run_scenario(name, world, kill_at=index, side=side)
        assert ran.killed or ran.answered
        service = world.service(host_named("survivor"))
        again(world, service)
        require_whole_and_empty(world, service)
        service.close()
        shutil.rmtree(world.folder)
        tally("crash", runs=1)
