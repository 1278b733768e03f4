"""The power fails at every moment of each operation and fix; another host must mend what is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskyard.testing.effort import Effort
from diskyard.testing.power_cut import CutState
from diskyard.testing.recording import record
from diskyard.testing.scenarios import GROUPED, SCENARIOS, Scenario
from diskyard.testing.scenarios.durable import DURABLE_SCENARIOS
from tests.conftest import Tally
from tests.power_cut.syncs import known, of_kinds

#: The file of the other export would not be on the disk that fails.
ALL = [
    *(scenario for scenario in SCENARIOS if scenario.name != "export"),
    *GROUPED,
    *DURABLE_SCENARIOS,
]
STATES = 4
TORN, TORN_THOROUGH = 2, 8
#: Of how many states of how many scenarios the fixes are cut too, and how many states of that are judged.
AGAIN, AGAIN_THOROUGH = 2, 6
STATES_AGAIN = 3
FIXED = Effort.of_environment().sample(ALL, 6, "cut again")


@pytest.mark.parametrize("scenario", ALL, ids=lambda scenario: scenario.name)
def test_power_cut(scenario: Scenario, place: Path, effort: Effort, tally: Tally) -> None:
    """Whatever was answered is there, what was not may be, and nothing else is left."""
    recording = record(scenario, place / "recorded", effort.seed)
    disk = recording.disk
    # Each is in a table, with where its absence is seen, or why it cannot be.
    kinds = disk.kinds_of_sync()
    assert known(kinds) == kinds
    # What QEMU still has to write when it is told to end it loses without a word if it cannot.
    assert of_kinds(kinds, ["QEMU since qmp quit"]) == []
    states = disk.states(TORN_THOROUGH if effort.thorough else TORN)
    assert disk.length
    assert any(state.answered for state in states)
    chosen = effort.sample(states, STATES, "power cut", scenario.name)
    chosen += [state for state in states if state.answered and state not in chosen]
    for state in chosen:
        recording.judge(disk, state, place / "cut")
    tally("power cut", steps=disk.length, states=len(states), runs=len(chosen))


@pytest.mark.parametrize("scenario", FIXED, ids=lambda scenario: scenario.name)
def test_power_cut_again(scenario: Scenario, place: Path, effort: Effort, tally: Tally) -> None:
    """The power fails once more while whoever came after fixes what the first cut has left."""
    tally("power cut again")
    recording = record(scenario, place / "recorded", effort.seed)
    chance = effort.random("cut again", scenario.name)
    states = recording.disk.states(TORN)
    count = min(len(states), AGAIN_THOROUGH if effort.thorough else AGAIN)

    def choose(second: list[CutState]) -> list[CutState]:
        return chance.sample(second, min(len(second), STATES_AGAIN))

    for state in chance.sample(states, count):
        steps, runs = recording.judge_again(recording.disk, state, place / "again", choose)
        tally("power cut again", steps=steps, runs=runs)
