"""Each operation and fix is killed before and after each of its steps; other hosts must mend it all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.fixes.runner import run_fix
from diskyard.service import Service, call
from diskyard.testing.crash import held_scenario, run_scenario
from diskyard.testing.effort import Effort
from diskyard.testing.scenarios import FIX_ALL, GROUPED, SCENARIOS
from diskyard.testing.steps import Side
from diskyard.testing.world import PLACES, SIZE_BYTES, host_named
from tests.conftest import Tally
from tests.crash.bench import Bench

SIDES: tuple[Side, ...] = ("before", "after")
MOST = 12  # steps of a scenario tried in a quick run: of each kind of step one, before a second of any
SLOW = 8  # steps tried of a slow scenario
AFTER = 2  # steps after which it is killed in a quick run
SUSPENDED = 2  # of the steps of a scenario, in a quick run
#: How often a scenario is killed, and then its fixes too; of all pairs of steps always a sample.
AGAIN, AGAIN_THOROUGH = 2, 12
#: The scenarios whose fixes are killed.
FIXED = Effort.of_environment().sample(SCENARIOS, 8, "killed again")
#: What a fix may end with while another host works on the same image.
WAITS = (errors.LeaseHeld, errors.ImageInUse, errors.ImageBroken)


def tear_down_all(service: Service, place: str) -> None:
    """End the attachments of a host that lives, but whose guests are no more."""
    for attachment in service.connections.get(place).state().attachments.values():
        options = {"owner": attachment.owner, "hostID": attachment.host.host_id, "force": True}
        asked = {"repositoryId": place, "imageId": attachment.image_id, "options": options}
        call(service, "teardownImage", asked)


@pytest.fixture(params=[*SCENARIOS, *GROUPED], ids=lambda scenario: scenario.name)
def bench(request: pytest.FixtureRequest, quick_folder: Path) -> Bench:
    return Bench(request.param, quick_folder)


def test_killed_at_every_step(bench: Bench, effort: Effort, tally: Tally) -> None:
    """Whatever was answered is there, what was not may be, and nothing else is left.

    Just after a step and just before the next one the storage is mostly the same, so that a
    quick run kills after only some of them, and of long scenarios before only some.
    """
    indexes, name = range(len(bench.steps)), bench.scenario.name
    tally("crash", steps=len(indexes))
    most = SLOW if bench.scenario.is_slow else MOST
    before = effort.sample_of_kinds(bench.steps, most, name)
    kills: list[tuple[int, Side]] = [(index, "before") for index in before]
    kills += [(index, "after") for index in effort.sample(indexes, AFTER, name, "after")]
    for index, side in kills:
        world = bench.copy()
        ran = run_scenario(bench.scenario.name, world, kill_at=index, side=side)
        # Threads make the steps of a copy vary: the last ones may not be reached.
        assert ran.killed or ran.answered, ran
        bench.judge(world, answered=ran.answered, effort=effort, purpose=("killed", index, side))
        tally("crash", runs=1)


def test_suspended_at_every_step(bench: Bench, effort: Effort, tally: Tally) -> None:
    """While it waits in the middle, another host runs all that is listed, and makes a disk."""
    tally("suspended", steps=len(bench.steps))
    for index in effort.sample(range(len(bench.steps)), SUSPENDED, bench.scenario.name, "suspended"):
        world = bench.copy()
        order = effort.random(bench.scenario.name, "suspended", index)
        with held_scenario(bench.scenario.name, world, hold_at=index) as held:
            other = world.service(host_named("other-host"))
            listed = world.runnable(other)
            order.shuffle(listed)
            for place, fix in listed * 2:
                try:
                    run_fix(other.engine, other.connections.get(place), fix.data.action)
                except WAITS:
                    tally("suspended", fixes_that_wait=1)
            made = call(other, "createVirtualDisk", {"targetRepoId": "a", "size": SIZE_BYTES})
            world.images["a", made] = bytes(SIZE_BYTES)
            ran = held.go_on()
            for place in PLACES:
                tear_down_all(other, place)
            other.close()
        bench.judge(world, answered=ran.answered, effort=effort, purpose=("suspended", index))
        tally("suspended", runs=1)


@pytest.mark.parametrize("bench", FIXED, ids=lambda scenario: scenario.name, indirect=True)
def test_killed_again_while_fixing(bench: Bench, effort: Effort, tally: Tally) -> None:
    """It is killed, then whoever fixes what it has left is; others must mend that."""
    name = bench.scenario.name
    chance = effort.random("again", name)
    tally("killed again")
    for number in range(AGAIN_THOROUGH if effort.thorough else AGAIN):
        first, sides = chance.randrange(len(bench.steps)), chance.choices(SIDES, k=2)
        world = bench.copy()
        ran = run_scenario(name, world, kill_at=first, side=sides[0])
        whole = bench.copy(world)
        steps = run_scenario(FIX_ALL.name, whole).names
        shutil.rmtree(whole.folder)
        tally("killed again", steps=len(steps))
        if steps:
            second = chance.randrange(len(steps))
            fixed = run_scenario(FIX_ALL.name, world, kill_at=second, side=sides[1])
            assert fixed.killed or fixed.answered, fixed
            tally("killed again", runs=1)
        bench.judge(world, answered=ran.answered, effort=effort, purpose=("again", number))
