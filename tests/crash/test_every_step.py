"""Each operation and fix is killed before and after each of its steps; other hosts must mend it all."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.fixes.runner import run_fix
from diskyard.service import Service, call
from diskyard.testing.crash import held_scenario, run_scenario
from diskyard.testing.effort import Effort
from diskyard.testing.scenarios import GROUPED, SCENARIOS, Scenario
from diskyard.testing.steps import Side
from diskyard.testing.world import PLACES, SIZE_BYTES, World, host_named, judge_outcome
from tests.conftest import Tally

MOST = 40  # steps of a scenario tried in a quick run
SLOW = 12  # steps tried of a slow scenario
SUSPENDED = 3  # of the steps of a scenario, in a quick run
#: What a fix may end with while another host works on the same image.
WAITS = (errors.LeaseHeld, errors.ImageInUse, errors.ImageBroken)


class Bench:
    """A world made ready for a scenario, copied for each run."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self._prepared = World(folder / "prepared")
        self._prepared.create()
        builder = self._prepared.service(host_named("builder"))
        scenario.prepare(self._prepared, builder)
        builder.close()
        self._folders = (folder / f"run-{number}" for number in itertools.count())
        whole = self.copy()
        ran = run_scenario(scenario.name, whole)
        assert ran.answered, ran
        self.judge(whole, answered=True, effort=Effort(), purpose=())
        self.steps = ran.names
        assert self.steps

    def copy(self) -> World:
        """The prepared world anew."""
        return self._prepared.copied(next(self._folders))

    def judge(self, world: World, *, answered: bool, effort: Effort, purpose: tuple[object, ...]) -> None:
        """All must be right, and the world goes."""
        order = effort.random(self.scenario.name, *purpose)
        after = self.scenario.after(world)
        judge_outcome(world, dict(world.images), after, answered=answered, order=order)
        looker = world.service(host_named("looker"))
        self.scenario.look(world, looker, answered=answered)
        looker.close()
        shutil.rmtree(world.folder)


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
    kills: list[tuple[int, Side]] = [(index, "before") for index in effort.sample(indexes, most, name)]
    kills += [(index, "after") for index in effort.sample(indexes, most // 8, name, "after")]
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
