"""How every story of processes ends: all goes on, all is fixed, and everything is judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diskyard.testing import verb_meanings as mean
from diskyard.testing.world import PLACES

if TYPE_CHECKING:
    from tests.stateful.processes import ProcessMachine

_ROUNDS = 60


def settle(machine: ProcessMachine) -> None:
    """Detach, fix until nothing is listed, and compare everything."""
    from tests.stateful.processes import Asked, Counts

    for actor in machine.held():
        actor.process.go_on()
        machine.hear(actor)
    for actor in machine.actors:
        for repo in PLACES:
            if repo not in actor.connected:
                place = {"repoFormat": machine.format, "connectionParameters": machine.world.parameters(repo)}
                machine.ask(actor, Asked("connectStorageRepository", {"repoId": repo, **place}, None))
        actor.connected = set(PLACES)
    first, last = machine.actors[0], machine.actors[-1]
    for key in machine.having(attached=True):
        machine.ask(first, machine.detach_asked(first, key))
    fix_all(machine)
    for key in machine.having(kind="virtual_disk"):
        words = {"repositoryId": key[0], "imageId": key[1]}
        machine.ask(first, Asked("untrackChanges", words, mean.untrack(key)))
    fix_all(machine)
    # What still waits has a base or source that never came; taking it back must leave nothing. A base that is
    # waited for stays until what waits for it is gone.
    while waiting := machine.having(complete=False):
        for key in waiting:
            words = {"repositoryId": key[0], "imageId": key[1]}
            machine.ask(last, Asked("removeImage", words, mean.remove(key), allowed=["ImageInUse"]))
        assert len(machine.having(complete=False)) < len(waiting), "what waits cannot be taken back"
    fix_all(machine)
    left = [fix for repo in PLACES for fix in check(machine, 0, repo)]
    assert left == [], machine.in_short_names(f"left: {left}")
    _judge(machine)
    Counts.bytes_compared += sum(len(data) for data in machine.world.images.values())


def check(machine: ProcessMachine, turn: int, repo: str) -> list[Any]:
    """What a deep check lists."""
    actor = machine.actors[turn % len(machine.actors)]
    heard = actor.process.run("checkStorageRepository", {"repositoryId": repo, "options": {"deep": True}})
    assert heard.answer is not None, heard.error
    fixes: list[Any] = heard.answer[0]
    return fixes


def fix_all(machine: ProcessMachine) -> None:
    """Run whatever can be run, by the hosts in turn, until nothing can."""
    from tests.stateful.processes import Asked

    fixes: list[tuple[str, Any]] = []
    for turn in range(_ROUNDS):
        fixes = [(repo, fix) for repo in PLACES for fix in check(machine, turn, repo) if fix["runnable"]]
        if not fixes:
            return
        for repo, fix in fixes:
            actor = machine.actors[turn % len(machine.actors)]
            machine.ask(actor, Asked("fixStorageRepository", {"repositoryId": repo, "fix": fix}, None))
    raise AssertionError(machine.in_short_names(f"fixes are listed again and again: {fixes}"))


def _judge(machine: ProcessMachine) -> None:
    """Bytes by other code than QEMU's; no garbage of any kind."""
    world, possible = machine.world, machine.possible
    for key in machine.having():
        data = world.read(machine.observer, *key) if len(possible.states) > 1 else machine.image(key).data
        possible.see_bytes(key, data)
    assert all(image.complete for image in possible.images.values())
    world.images = {key: image.data for key, image in possible.images.items()}
    world.user_data = {key: image.user_data for key, image in possible.images.items()}
    try:
        world.judge(machine.observer)
    except AssertionError as error:
        raise AssertionError(machine.in_short_names(str(error))) from None
    for repo in PLACES:
        state = machine.observer.connections.get(repo).state()
        weak = [image for image in state.images.values() if not image.is_strong]
        assert all(len(state.dependents(image.id)) > 1 for image in weak), f"weak images are left: {weak}"
