"""A verb on a running guest's disk is killed at each of its steps, and the guest lives on or dies too."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskyard.testing.effort import Effort
from diskyard.testing.live_runs import FATES, THEN, LiveBench
from diskyard.testing.scenarios import LIVE
from diskyard.testing.scenarios.live import LiveScenario
from diskyard.testing.steps import Side
from tests.conftest import Tally

SIDES: tuple[Side, ...] = ("before", "after")
MOST = 5  # of the runs of a scenario, in a quick run


@pytest.mark.parametrize("scenario", LIVE, ids=lambda scenario: scenario.name)
def test_killed_at_every_step(
    scenario: LiveScenario, quick_folder: Path, effort: Effort, tally: Tally
) -> None:
    """No write that the guest had acknowledged is lost, whatever is interrupted and whoever dies."""
    tally("live")
    bench = LiveBench(scenario, quick_folder)
    tally("live", steps=len(bench.steps))
    kinds = [(step, side, fate) for step in range(len(bench.steps)) for side in SIDES for fate in FATES]
    names = [f"{bench.steps[step]} {side} {fate}" for step, side, fate in kinds]
    for index in effort.sample_of_kinds(names, MOST, scenario.name, "live"):
        step, side, fate = kinds[index]
        chance = effort.random(scenario.name, "live", step, side, fate)
        then = chance.choice(THEN)
        try:
            with bench.run() as run:
                ran = run.kill_at(step, side, fate)
                run.go_on(then, chance)
                run.judge(chance, answered=ran.answered)
        except BaseException as error:
            error.add_note(f"{side} step {step}, {bench.steps[step]}: the guest {fate}, then {then}")
            raise
        tally("live", runs=1)
