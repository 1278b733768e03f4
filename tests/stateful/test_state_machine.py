"""Random stories of two hosts in one process, in memory; processes have stories of their own."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from diskyard.testing.effort import Effort
from tests.conftest import Tally
from tests.stateful.machine import Counts, ImageMachine

STEPS = 40
FORMATS = ("memory-1.0",)


@pytest.mark.parametrize("format", FORMATS)
def test_stories(format: str, effort: Effort, tally: Tally) -> None:
    """One verb at a time; a story that fails is told again in its shortest form."""
    tally("stories in memory")
    Counts.steps = Counts.compared_bytes = 0
    run_state_machine_as_test(
        seed(effort.seed)(type("Story", (ImageMachine,), {"format": format})),
        settings=settings(
            max_examples=200 if effort.thorough else 25,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
            print_blob=True,
        ),
    )
    tally("stories in memory", operations=Counts.steps, bytes_compared=Counts.compared_bytes)
    assert Counts.steps >= 500
