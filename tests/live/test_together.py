"""Two processes of one host at once on a running guest's disk: either may be refused, neither does harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskyard import errors
from diskyard.testing.crash import held_scenario
from diskyard.testing.effort import Effort
from diskyard.testing.live_runs import THEN, require_described
from diskyard.testing.scenarios import LIVE
from diskyard.testing.scenarios.live import BESIDE, LiveScenario
from tests.conftest import Tally
from tests.live.benches import live_bench

HELD = ("live create snapshot with an id", "live copy onto the running disk", "live difference")
MOST = 2  # steps of each pair that are tried in a quick run
PAIRS = [(scenario, name) for scenario in LIVE if scenario.name in HELD for name in BESIDE]
TRIED = Effort.of_environment().sample(PAIRS, 4, "live together")


@pytest.mark.parametrize(("scenario", "beside"), TRIED, ids=lambda value: getattr(value, "name", value))
def test_two_at_once(
    scenario: LiveScenario, beside: str, quick_folder: Path, effort: Effort, tally: Tally
) -> None:
    """While one waits at a step, the other is done or refused; then the first is done or refused."""
    tally("live")
    bench, wrong = live_bench(scenario, quick_folder), list[Exception]()
    chance = effort.random(scenario.name, beside)
    for step in effort.sample_of_kinds(bench.steps, MOST, scenario.name, beside):
        then = chance.choice(THEN)
        try:
            with bench.run() as run:
                with held_scenario(scenario.name, run.world, hold_at=step) as held:
                    tally("live", refused=run.beside(beside))
                    ran = held.go_on()
                require_described(scenario, ran)
                run.go_on(then, chance)
                run.judge(chance, answered=ran.answered)
        except (AssertionError, errors.DiskyardError) as error:
            error.add_note(
                f"{scenario.name} at step {step}, {bench.steps[step]}, beside {beside}, then {then}"
            )
            wrong.append(error)
        tally("live", runs=1)
    if wrong:
        raise ExceptionGroup(f"{len(wrong)} runs", wrong)
