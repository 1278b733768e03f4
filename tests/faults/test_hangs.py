"""A storage call never returns: callers get an error, others go on, and later all is well."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskyard.host.calls import TIMEOUT_VARIABLE
from diskyard.testing.effort import Effort
from diskyard.testing.hang_runs import HangRuns, hangs_to_try
from diskyard.testing.scenarios import SCENARIOS, Scenario
from tests.conftest import Tally

_HANGS = 1
#: Two verbs at once: where one is left behind and goes on later, either of them may come first, and what
#: must be true then differs.
_OF_TWO_VERBS = ("extend within create snapshot", "extend beside a refused snapshot")
TRIED = [
    scenario
    for scenario in Effort.of_environment().sample(SCENARIOS, 24, "hangs")
    if scenario.name not in _OF_TWO_VERBS
]


@pytest.mark.parametrize("scenario", TRIED, ids=lambda scenario: scenario.name)
def test_a_call_hangs(
    scenario: Scenario, quick_folder: Path, effort: Effort, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    tally("hangs")
    runs = HangRuns(scenario, quick_folder)
    calls = runs.calls()
    monkeypatch.setenv(TIMEOUT_VARIABLE, "0.3")
    chosen = hangs_to_try(calls, effort, _HANGS, scenario.name)
    hung = 0
    for at in chosen:
        try:
            hung += runs.run_hung(at)
        except AssertionError as error:
            error.add_note(f"call {at}, {calls[at]}")
            raise
    tally("hangs", calls=len(calls), runs=len(chosen), hangs=hung)
    assert hung or not chosen
