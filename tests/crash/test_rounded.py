"""Operations are killed where lengths are in units and new volumes hold garbage; others complete them."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskyard.testing import rounded
from diskyard.testing.crash import run_scenario
from diskyard.testing.effort import Effort
from diskyard.testing.scenarios import RAW_COPIES, SCENARIOS, find_scenario
from tests.conftest import Tally
from tests.crash.bench import Bench

#: In these a guest makes the file of a new disk longer: here that is a qcow2 file, whose length says nothing.
OF_A_RAW_DISK = ("tear down a disk that grew", "take over a size")
NAMES = [name for name in (s.name for s in (*RAW_COPIES, *SCENARIOS)) if name not in OF_A_RAW_DISK]
#: In a quick run these, which make a raw volume, or change the length of one.
QUICK = (*(scenario.name for scenario in RAW_COPIES), "mend a copy")
KILLS = 3


@pytest.mark.parametrize("name", NAMES if Effort.of_environment().thorough else QUICK)
def test_killed(name: str, quick_folder: Path, effort: Effort, tally: Tally) -> None:
    """Before some of its steps."""
    bench = Bench(find_scenario(name), quick_folder, rounded.FORMAT)
    tally("crash", steps=len(bench.steps))
    for index in effort.sample(range(len(bench.steps)), KILLS, name, rounded.FORMAT):
        world = bench.copy()
        ran = run_scenario(name, world, kill_at=index)
        assert ran.killed or ran.answered, ran
        bench.judge(world, answered=ran.answered, effort=effort, purpose=("killed", index))
        tally("crash", runs=1)
