"""A verb on a running guest's disk is killed at each of its steps, and the guest lives on or dies too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from diskyard.errors import DiskyardError
from diskyard.host.identity import new_nonce
from diskyard.testing.effort import Effort
from diskyard.testing.live_restarts import judge_refused, start_as_before
from diskyard.testing.live_runs import FATES, THEN, Fate
from diskyard.testing.scenarios import LIVE
from diskyard.testing.scenarios.live import LiveScenario, interrupted
from diskyard.testing.steps import Side
from tests.conftest import Tally
from tests.live.benches import live_bench

SIDES: tuple[Side, ...] = ("before", "after")
REBOOTED = Effort.of_environment().sample(LIVE, 1, "reboot")
AS_BEFORE = 3  # restarts with the first graph, in a quick run
MOST = 2  # of the runs of a scenario, in a quick run


@pytest.mark.parametrize("scenario", LIVE, ids=lambda scenario: scenario.name)
def test_killed_at_every_step(
    scenario: LiveScenario, quick_folder: Path, effort: Effort, tally: Tally
) -> None:
    """No write that the guest had acknowledged is lost, whatever is interrupted and whoever dies."""
    tally("live")
    bench = live_bench(scenario, quick_folder)
    tally("live", steps=len(bench.steps))
    wrong: list[Exception] = []
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
        except (AssertionError, DiskyardError) as error:
            error.add_note(f"{side} step {step}, {bench.steps[step]}: the guest {fate}, then {then}")
            wrong.append(error)
        tally("live", runs=1)
    if wrong:
        raise ExceptionGroup(f"{len(wrong)} runs", wrong)


@pytest.mark.parametrize("scenario", REBOOTED, ids=lambda scenario: scenario.name)
def test_the_host_goes_down(scenario: LiveScenario, quick_folder: Path, effort: Effort, tally: Tally) -> None:
    """With the guest: then any host may end the attachment, and the log is right."""
    tally("live")
    bench = live_bench(scenario, quick_folder)
    for step in effort.sample_of_kinds(bench.steps, MOST, scenario.name, "reboot"):
        chance = effort.random(scenario.name, "reboot", step)
        with bench.run(new_nonce()) as run:
            ran = run.kill_at(step, "before", "dies")
            run.go_on("reboot", chance)
            run.judge(chance, answered=ran.answered)
        tally("live", runs=1)


def test_started_again_as_before(quick_folder: Path, effort: Effort, tally: Tally) -> None:
    """The guest dies with the verb, and whoever runs it does not ask where its disk is now.

    Where it would write to what is frozen, it is refused; what it has spoilt until then is not read as if
    nothing had happened.
    """
    tally("live")
    bench = live_bench(SNAPSHOT_WITH_ID, quick_folder)
    fates: tuple[Fate, ...] = ("dies", "dies later")
    kinds = [(step, fate) for step in range(len(bench.steps)) for fate in fates]
    names = [f"{bench.steps[step]} {fate}" for step, fate in kinds]
    for index in effort.sample_of_kinds(names, AS_BEFORE, "as before"):
        step, fate = kinds[index]
        chance = effort.random("as before", step, fate)
        try:
            with bench.run() as run:
                ran = run.kill_at(step, "before", fate)
                if start_as_before(run):
                    tally("live", refused=1, broken=judge_refused(run, chance))
                else:
                    run.go_on("verb", chance)
                    run.judge(chance, answered=ran.answered)
        except (AssertionError, DiskyardError) as error:
            error.add_note(f"before step {step}, {bench.steps[step]}: the guest {fate}")
            raise
        tally("live", runs=1)


@pytest.mark.parametrize("side", SIDES)
def test_killed_around_the_switch(side: Side, quick_folder: Path, effort: Effort) -> None:
    """The guest has the overlay open, and has not followed; or it has, and nobody knows."""
    bench = live_bench(SNAPSHOT_WITH_ID, quick_folder)
    chance = effort.random("around the switch", side)
    with bench.run() as run:
        ran = run.kill_at(bench.steps.index("qmp transaction"), side, "lives on")
        run.go_on("fix", chance)
        run.judge(chance, answered=ran.answered)


SNAPSHOT_WITH_ID = next(scenario for scenario in LIVE if scenario.name == "live create snapshot with an id")


@pytest.mark.parametrize("followed", [False, True])
def test_a_repeated_request_ends_what_it_began(followed: bool, quick_folder: Path, effort: Effort) -> None:
    """It has the lease of the Snapshot already that the interrupted one would have made."""
    bench = live_bench(replace(SNAPSHOT_WITH_ID, begin=interrupted(followed=followed)), quick_folder)
    chance = effort.random("repeated", followed)
    with bench.run() as run:
        run.go_on("retry", chance)
        run.judge(chance, answered=True)


def test_a_repeated_request_once_the_guest_has_ended(quick_folder: Path, effort: Effort) -> None:
    """What was done is answered, though nothing more could be done."""
    bench = live_bench(SNAPSHOT_WITH_ID, quick_folder)
    chance = effort.random("repeated, and ended")
    with bench.run() as run:
        service = run.service()
        run.retry(service)
        run.meet("ends")
        run.retry(service)
        service.close()
        run.go_on("teardown", chance)
        run.judge(chance, answered=True)
