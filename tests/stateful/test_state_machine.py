"""Random stories of two hosts in one process, mostly in memory; processes have stories of their own."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from diskyard.testing import rounded
from diskyard.testing.effort import Effort
from tests.conftest import Tally
from tests.stateful.machine import Counts, ImageMachine
from tests.stateful.parts import parts

STEPS = 40
#: How many stories are told, and how many operations they have at least.
FORMATS = {"memory-1.0": (25, 500), rounded.FORMAT: (3, 40)}
#: A thorough run tells as many stories again in each part; parts can run side by side.
PARTS = parts(100)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("format", FORMATS)
def test_stories(format: str, part: int, effort: Effort, tally: Tally) -> None:
    """One verb at a time; a story that fails is told again in its shortest form."""
    tally("stories in memory")
    Counts.steps = Counts.compared_bytes = 0
    run_state_machine_as_test(
        seed(effort.random("stories", format, part).getrandbits(64))(
            type("Story", (ImageMachine,), {"format": format})
        ),
        settings=settings(
            max_examples=FORMATS[format][0],
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
            print_blob=True,
        ),
    )
    tally("stories in memory", operations=Counts.steps, bytes_compared=Counts.compared_bytes)
    assert Counts.steps >= FORMATS[format][1]
