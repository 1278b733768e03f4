"""Storage calls of every operation and fix fail; the answer is clear, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskyard.errors import DiskyardError
from diskyard.testing.effort import Effort
from diskyard.testing.fault_injection import Injector
from diskyard.testing.fault_runs import FaultRuns, faults_to_try
from diskyard.testing.scenarios import SCENARIOS, Scenario
from diskyard.testing.scenarios.more import MORE
from tests.conftest import Tally

_FAULTS = 5


@pytest.mark.parametrize("scenario", [*SCENARIOS, *MORE], ids=lambda scenario: scenario.name)
def test_every_call_fails(scenario: Scenario, quick_folder: Path, effort: Effort, tally: Tally) -> None:
    tally("faults")
    runs = FaultRuns(scenario, quick_folder)
    calls = runs.calls()
    faults = faults_to_try(calls, effort, _FAULTS, scenario.name)
    failed, refused, wrong = 0, 0, []
    for fault in faults:
        injector = Injector()
        try:
            error = runs.run(injector, fault)
        except (AssertionError, OSError, StopIteration, DiskyardError) as found:
            found.add_note(f"{scenario.name}: {fault}, {calls[fault.at]}")
            wrong.append(found)
            continue
        failed += injector.failed
        refused += error is not None
    tally("faults", calls=len(calls), runs=len(faults), faults=failed, errors=refused)
    if wrong:
        raise ExceptionGroup(f"{len(wrong)} of {len(faults)} faults", wrong)
