"""Operations that move bytes are killed where volumes are no files of this host; others complete them."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskyard.testing import pathless
from diskyard.testing.crash import run_scenario
from diskyard.testing.effort import Effort
from diskyard.testing.scenarios import SCENARIOS, find_scenario
from tests.conftest import Tally
from tests.crash.bench import Bench

#: In a quick run these, of which each changes a volume's bytes or its length by other means than a file's.
QUICK = ("extend lone disk", "merge down into raw", "merge up", "mend a copy")
KILLS = 3


@pytest.mark.parametrize("name", [s.name for s in SCENARIOS] if Effort.of_environment().thorough else QUICK)
def test_killed(name: str, quick_folder: Path, effort: Effort, tally: Tally) -> None:
    """Before some of its steps."""
    bench = Bench(find_scenario(name), quick_folder, pathless.FORMAT)
    tally("crash", steps=len(bench.steps))
    for index in effort.sample(range(len(bench.steps)), KILLS, name, pathless.FORMAT):
        world = bench.copy()
        ran = run_scenario(name, world, kill_at=index)
        assert ran.killed or ran.answered, ran
        bench.judge(world, answered=ran.answered, effort=effort, purpose=("killed", index))
        tally("crash", runs=1)
