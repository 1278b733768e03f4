"""A world made ready for a scenario, to be run and interrupted many times."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from diskyard.testing.crash import run_scenario
from diskyard.testing.effort import Effort
from diskyard.testing.scenarios import Scenario
from diskyard.testing.world import World, host_named, judge_outcome


class Bench:
    """A world made ready for a scenario, copied for each run."""

    def __init__(self, scenario: Scenario, folder: Path, format: str = "localfs-1.0") -> None:
        self.scenario = scenario
        self._prepared = World(folder / "prepared", format=format)
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

    def copy(self, world: World | None = None) -> World:
        """The prepared world anew, or another one once more."""
        return (world or self._prepared).copied(next(self._folders))

    def judge(self, world: World, *, answered: bool, effort: Effort, purpose: tuple[object, ...]) -> None:
        """All must be right, and the world goes."""
        order = effort.random(self.scenario.name, *purpose)
        after = self.scenario.after(world)
        judge_outcome(world, dict(world.images), after, answered=answered, order=order)
        self.scenario.look_at(world, answered=answered)
        shutil.rmtree(world.folder)
