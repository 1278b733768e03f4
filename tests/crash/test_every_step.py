"""Each operation and fix is cut before each of its steps; another host must mend it all."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from diskyard.testing.scenarios import SCENARIOS, Scenario
from diskyard.testing.steps import Died, Steps, stepping_host
from diskyard.testing.world import World, host_named, judge_outcome
from tests.conftest import Tally


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_cut_at_every_step(scenario: Scenario, tmp_path: Path, tally: Tally) -> None:
    """Whatever was answered is there, what was not may be, and nothing else is left."""
    tally("crash")
    prepared = World(tmp_path / "prepared")
    prepared.create()
    builder = prepared.service(host_named("builder"))
    scenario.prepare(prepared, builder)
    builder.close()
    total = len(_run(scenario, prepared, tmp_path / "whole", None))
    assert total > 2
    for index in range(total):
        _run(scenario, prepared, tmp_path / f"cut-{index}", index)
    tally("crash", steps=total, runs=total)


def _run(scenario: Scenario, prepared: World, folder: Path, die_at: int | None) -> list[str]:
    """Do it on a copy of the world, dying before a step; then judge. The steps that were done."""
    world, steps = prepared.copied(folder), Steps()
    dying = world.service(stepping_host(steps))
    before, after = dict(world.images), scenario.after(world)
    steps.begin(die_at)
    answered = False
    try:
        scenario.act(world, dying)
        answered = True
    except Died:
        assert die_at is not None
    names = list(steps.names)
    steps.begin(None)
    dying.close()
    judge_outcome(world, before, after, answered=answered, order=random.Random(die_at or 0))
    shutil.rmtree(folder)
    return names
