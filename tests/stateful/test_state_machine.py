"""Random stories on both formats; DISKYARD_TORTURE_HOURS tells them for hours."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.stateful.machine import Counts, ImageMachine

TORTURE_HOURS = float(os.environ.get("DISKYARD_TORTURE_HOURS", "0"))
STEPS = 40
STORIES = 25
FORMATS = ("memory-1.0", "localfs-1.0")
ALL_CHECKS = list(HealthCheck)


def tell_stories(format: str, *, stories: int, derandomize: bool) -> None:
    """Run a number of stories; a failing one is told again in its shortest form."""
    machine = type(f"Machine of {format}", (ImageMachine,), {"format": format})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=stories,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=derandomize,
            database=None,
            suppress_health_check=ALL_CHECKS,
            phases=(Phase.generate, Phase.shrink),
            print_blob=True,
        ),
    )


@pytest.mark.parametrize("format", FORMATS)
def test_stories(format: str, capsys: pytest.CaptureFixture[str]) -> None:
    Counts.steps = Counts.compared_bytes = 0
    began_s = time.monotonic()
    if TORTURE_HOURS:
        while time.monotonic() - began_s < TORTURE_HOURS * 3600 / len(FORMATS):
            tell_stories(format, stories=50, derandomize=False)
    else:
        tell_stories(format, stories=STORIES, derandomize=True)
    with capsys.disabled():
        print(
            f"\n{format}: {Counts.steps} steps, {Counts.compared_bytes >> 20} MiB compared, "
            f"{time.monotonic() - began_s:.0f} s"
        )
    assert Counts.steps >= 500
