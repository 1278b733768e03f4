"""What shares blocks, killed at every step on a real file system that has reflinks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard.testing.crash import run_scenario
from diskyard.testing.effort import Effort
from diskyard.testing.real_disk import real_disk, why_no_real_disk
from diskyard.testing.scenarios import SCENARIOS, SHARING, Scenario
from diskyard.testing.scenarios.sharing import CLONE
from diskyard.testing.steps import Side
from tests.conftest import Tally
from tests.crash.bench import Bench

KILLS = 4
TRIED = Effort.of_environment().sample(SHARING, 5, "crash with reflinks")


@pytest.fixture
def folder(quick_folder: Path) -> Iterator[Path]:
    """A folder on XFS with reflinks."""
    if reason := why_no_real_disk("xfs"):
        pytest.skip(reason)
    with real_disk("xfs", quick_folder) as disk:
        yield disk.place


@pytest.mark.parametrize("scenario", TRIED, ids=lambda scenario: scenario.name)
def test_killed_at_every_step(scenario: Scenario, folder: Path, effort: Effort, tally: Tally) -> None:
    """The clone is the step that matters most, so that a quick run is killed around it always."""
    tally("crash with reflinks")
    bench = Bench(scenario, folder)
    indexes, name = range(len(bench.steps)), scenario.name
    cloned = bench.steps.index(CLONE)
    kills: list[tuple[int, Side]] = [(index, "before") for index in effort.sample(indexes, KILLS, name)]
    kills += [(index, "after") for index in effort.sample(indexes, 1, name, "after")]
    kills += [kill for kill in ((cloned, "before"), (cloned, "after")) if kill not in kills]
    for index, side in kills:
        world = bench.copy()
        ran = run_scenario(name, world, kill_at=index, side=side)
        assert ran.killed or ran.answered, ran
        bench.judge(world, answered=ran.answered, effort=effort, purpose=("reflinks", index, side))
    tally("crash with reflinks", steps=len(indexes), runs=len(kills))


@pytest.mark.skipif(not Effort.of_environment().thorough, reason="a minute, and about the tests only")
def test_all_that_share_are_tried(folder: Path) -> None:
    """No other scenario has a clone among its steps."""
    for number, scenario in enumerate(SCENARIOS):
        place = folder / str(number)
        place.mkdir()
        shares = CLONE in Bench(scenario, place).steps
        assert shares == (scenario in SHARING), scenario.name
        shutil.rmtree(place)  # the disk is small
