"""Several requests at the same moment, whose changes share an entry of the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diskyard.log.codec import decode
from diskyard.model.transaction import Entry
from diskyard.service import Service, call
from diskyard.testing.scenarios import shapes
from diskyard.testing.scenarios.base import LATER, NEW_ID, Scenario, bytes_of, new, verb, with_new, without
from diskyard.testing.together import at_once
from diskyard.testing.world import SIZE_BYTES, Images, World

_REQUESTS: dict[str, Callable[[World, Service], Any]] = {
    "create": new("createVirtualDisk", targetRepoId="a", size=SIZE_BYTES, baseSnapshotId="@s1"),
    "remove": verb("removeImage", repositoryId="a", imageId="@e", options=LATER),
    "write": verb("setUserData", repositoryId="a", imageId="@f", userData={"by": "act"}),
}


def prepare(world: World, service: Service) -> None:
    """Disks "d", "e" and "f" on one chain."""
    shapes.branching(world, service)
    del world.user_data["a", world.names["f"]]


def act(world: World, service: Service) -> None:
    """Make all requests at once. Each answer is recorded where a crash does not lose it."""

    def noted(name: str) -> Callable[[], None]:
        def ask() -> None:
            _REQUESTS[name](world, service)
            with (world.folder / "answers").open("a") as file:
                file.write(f"{name}\n")

        return ask

    log = service.connections.get("a").log
    for answer in at_once(log, *(noted(name) for name in _REQUESTS)):
        if isinstance(answer, BaseException):
            raise answer


def after(world: World) -> Images:
    """There is one image more and one less."""
    made = with_new("a", bytes_of("s1"))(world)
    gone = without("e")(world)
    return {key: data for key, data in made.items() if key in gone or key == ("a", NEW_ID)}


def look(world: World, service: Service, *, answered: bool) -> None:
    """What was answered is done, even if the others were not; and the changes share an entry."""
    path = world.folder / "answers"
    names = list(_REQUESTS) if answered else path.read_text().split() if path.exists() else []
    strong = {image["imageId"] for image in call(service, "listImages", {"repositoryId": "a"})["images"]}
    asked = {"repositoryId": "a", "imageId": world.names["f"]}
    user_data = call(service, "getImageInfo", asked)["userData"]
    assert "create" not in names or NEW_ID in strong
    assert "remove" not in names or world.names["e"] not in strong
    assert user_data == {"by": "act"} or ("write" not in names and user_data == {"made as": "f"})
    if answered:
        assert max(_authors(service)) == len(_REQUESTS)


def _authors(service: Service) -> list[int]:
    """How many authors each entry has."""
    storage = service.connections.get("a").storage
    found = []
    for number in storage.numbers("entry"):
        data = storage.get("entry", number)[0]
        assert data is not None
        found.append(len(decode(data, Entry)[0].parts()))
    return found


GROUPED = [Scenario("three requests at once", prepare, act, after, look)]
