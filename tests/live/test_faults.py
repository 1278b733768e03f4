"""Storage fails or hangs, or the guest's monitor does, in the midst of a verb on a running guest's disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskyard.errors import DiskyardError
from diskyard.host.calls import TIMEOUT_VARIABLE
from diskyard.testing.effort import Effort
from diskyard.testing.fault_injection import Injector
from diskyard.testing.fault_runs import faults_to_try
from diskyard.testing.live_faults import (
    TROUBLES,
    in_trouble,
    while_storage_hangs,
    with_failing_storage,
)
from diskyard.testing.live_runs import THEN
from diskyard.testing.scenarios import LIVE
from diskyard.testing.scenarios.live import LiveScenario
from tests.conftest import Tally
from tests.live.benches import live_bench

FAULTS, TROUBLED, HANGS = 2, 3, 1  # of each scenario that is tried
EFFORT = Effort.of_environment()
NAMES = [scenario.name for scenario in LIVE]


def some(count: int, purpose: str) -> pytest.MarkDecorator:
    """Some of the scenarios; another seed tries others."""
    tried = EFFORT.sample(LIVE, count, "live", purpose)
    return pytest.mark.parametrize("scenario", tried, ids=lambda scenario: scenario.name)


@some(4, "faults")
def test_storage_fails(scenario: LiveScenario, quick_folder: Path, effort: Effort, tally: Tally) -> None:
    """Each call to the storage, and each request to the guest's QEMU, fails once; then it is done again."""
    tally("live")
    bench, injector, wrong = live_bench(scenario, quick_folder), Injector(), list[Exception]()
    chance = effort.random(scenario.name, "live faults")
    with bench.run() as run:
        assert with_failing_storage(run, injector, None)
        run.go_on("fix", chance)
        run.judge(chance, answered=True)
    calls = injector.calls
    faults = faults_to_try(calls, effort, 2 * FAULTS, "live", scenario.name)
    faults = [fault for fault in faults if not fault.lasting]
    for fault in faults:
        injector = Injector()
        try:
            with bench.run() as run:
                answered = with_failing_storage(run, injector, fault)
                run.go_on("retry", chance)
                run.judge(chance, answered=answered)
        except (AssertionError, DiskyardError, OSError) as error:
            error.add_note(f"{scenario.name}: {fault}, {calls[fault.at]}")
            wrong.append(error)
        tally("live", faults=injector.failed, runs=1)
    tally("live", calls=len(calls))
    if wrong:
        raise ExceptionGroup(f"{len(wrong)} of {len(faults)} faults", wrong)


@some(4, "trouble")
def test_the_monitor_is_in_trouble(
    scenario: LiveScenario, quick_folder: Path, effort: Effort, tally: Tally
) -> None:
    """A request to the guest's QEMU is refused, is lost, or gets no answer: nothing is decided on that."""
    tally("live")
    bench, wrong = live_bench(scenario, quick_folder), list[Exception]()
    chance = effort.random(scenario.name, "live trouble")
    with bench.run() as run:
        asked, answered = in_trouble(run, None, "refused")
        run.go_on("fix", chance)
        run.judge(chance, answered=answered)
    kinds = [(at, trouble) for at in range(len(asked)) for trouble in TROUBLES]
    names = [f"{asked[at]} {trouble}" for at, trouble in kinds]
    for index in effort.sample_of_kinds(names, TROUBLED, scenario.name, "live trouble"):
        at, trouble = kinds[index]
        then = chance.choice(THEN)
        try:
            with bench.run() as run:
                _, answered = in_trouble(run, at, trouble)
                run.go_on(then, chance)
                run.judge(chance, answered=answered)
        except (AssertionError, DiskyardError, OSError) as error:
            error.add_note(f"{scenario.name}: {trouble}, request {at}, {asked[at]}, then {then}")
            wrong.append(error)
        tally("live", requests=1, runs=1)
    if wrong:
        raise ExceptionGroup(f"{len(wrong)} runs", wrong)


@some(3, "hangs")
def test_storage_hangs(
    scenario: LiveScenario, quick_folder: Path, effort: Effort, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest does not notice, nor does anybody whose repository answers."""
    tally("live")
    bench, injector, wrong = live_bench(scenario, quick_folder), Injector(), list[Exception]()
    chance = effort.random(scenario.name, "live hangs")
    with bench.run() as run:
        assert with_failing_storage(run, injector, None)
        run.go_on("fix", chance)
        run.judge(chance, answered=True)
    calls = injector.calls
    for at in effort.sample(range(len(calls)), HANGS, scenario.name, "live hangs"):
        then = chance.choice(THEN)
        try:
            with bench.run() as run:
                with monkeypatch.context() as patched:
                    patched.setenv(TIMEOUT_VARIABLE, "0.3")
                    hung, answered = while_storage_hangs(run, at)
                run.go_on(then, chance)
                run.judge(chance, answered=answered)
        except (AssertionError, DiskyardError, OSError) as error:
            error.add_note(f"{scenario.name}: call {at}, {calls[at]}, hangs, then {then}")
            wrong.append(error)
            continue
        tally("live", hangs=hung, runs=1)
    if wrong:
        raise ExceptionGroup(f"{len(wrong)} runs", wrong)


def test_teardown_while_somebody_has_the_monitor(quick_folder: Path, effort: Effort) -> None:
    """Of a guest that died in the midst of a switch, on whose socket another one may answer by now."""
    name = "live teardown of a guest that died after it followed"
    chance = effort.random(name, "no greeting")
    scenario = next(scenario for scenario in LIVE if scenario.name == name)
    with live_bench(scenario, quick_folder).run() as run:
        asked, answered = in_trouble(run, 0, "silent before")
        assert (asked, answered) == (["qmp connect"], False)
        run.go_on("retry", chance)
        run.judge(chance, answered=False)
