"""What a scenario is, and the functions from which scenarios are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diskyard.fixes.runner import run_fix
from diskyard.model.fix import AnyAction
from diskyard.service import Service, call
from diskyard.testing.world import SIZE_BYTES, Images, World, host_named

LATER = {"AutoFix": False}
NEW_ID = "11111111-2222-4333-8444-555555555555"
NEW = {**LATER, "newImageId": NEW_ID}
NEW_USER_DATA = {"made as": "new"}

Act = Callable[[World, Service], Any]
After = Callable[[World], Images]


def nothing_more(world: World, service: Service, *, answered: bool) -> None:
    """The judge of a scenario that needs nothing but the comparison of its images' bytes."""


@dataclass(frozen=True)
class Scenario:
    """One operation or fix.

    :param prepare: builds what it works on.
    :param act: does it, on the host that is interrupted.
    :param after: what must exist once it is done: bytes by repository and image id.
    :param look: what else must be true in the end, whether it was answered or not.
    :param is_slow: judging it takes seconds, so that a quick run tries only some of its steps.
    """

    name: str
    prepare: Act
    act: Act
    after: After
    look: Callable[..., None] = nothing_more
    is_slow: bool = False

    def look_at(self, world: World, *, answered: bool) -> None:
        """Start a host for its look, if it has one: the hosts of the judge have already seen all the rest."""
        if self.look is nothing_more:
            return
        looker = world.service(host_named("looker"))
        self.look(world, looker, answered=answered)
        looker.close()


# -- actions ---------------------------------------------------------------------------


def verb(name: str, **parameters: Any) -> Act:
    """Call a verb. Values that begin with @ are names in the world."""

    def act(world: World, service: Service) -> Any:
        resolved = {
            key: world.names[value[1:]] if isinstance(value, str) and value.startswith("@") else value
            for key, value in parameters.items()
        }
        return call(service, name, resolved)

    return act


def new(name: str, **parameters: Any) -> Act:
    """Call a verb that makes the image with :data:`NEW_ID`, with userData of its own."""
    options = {**NEW, **parameters.pop("options", {})}
    return verb(name, **parameters, userData=NEW_USER_DATA, options=options)


def fix_first(place: str, kind: str | type[AnyAction]) -> Act:
    """Run the first listed fix of a type, or with a certain action, in this thread."""

    def act(world: World, service: Service) -> None:
        fix = next(
            fix
            for fix in world.fixes(service, place)
            if fix.runnable and (fix.type == kind or type(fix.data.action) is kind)
        )
        run_fix(service.engine, service.connections.get(place), fix.data.action)

    return act


def both(*acts: Act) -> Act:
    """Do one action after the other."""

    def act(world: World, service: Service) -> None:
        for each in acts:
            each(world, service)

    return act


def removed(name: str, place: str = "a") -> Act:
    """Remove an image, which the world then no longer has. What it leaves is not cleaned yet."""

    def act(world: World, service: Service) -> None:
        image_id = world.names[name]
        call(service, "removeImage", {"repositoryId": place, "imageId": image_id, "options": LATER})
        del world.images[place, image_id]

    return act


# -- results ---------------------------------------------------------------------------


def same(world: World) -> Images:
    """Nothing changes that a caller sees."""
    return dict(world.images)


def with_new(place: str, data: Callable[[World], bytes]) -> After:
    """There is one more image, with the userData of :func:`new`."""

    def after(world: World) -> Images:
        world.user_data[place, NEW_ID] = NEW_USER_DATA
        return {**world.images, (place, NEW_ID): data(world)}

    return after


def with_bytes(name: str, data: Callable[[World], bytes], place: str = "a") -> After:
    """An image has other bytes."""
    return lambda world: {**world.images, (place, world.names[name]): data(world)}


def without(name: str, place: str = "a") -> After:
    """There is one image less."""
    return lambda world: {k: v for k, v in world.images.items() if k != (place, world.names[name])}


def zeros(world: World) -> bytes:
    """The bytes of an empty disk."""
    return bytes(SIZE_BYTES)


def bytes_of(name: str, place: str = "a") -> Callable[[World], bytes]:
    """The bytes of an image."""
    return lambda world: world.images[place, world.names[name]]
