"""Stories of hosts that are processes: verbs, fixes, stops and kills, interleaved."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from diskyard.testing import pathless, rounded
from diskyard.testing.effort import Effort
from tests.conftest import Tally
from tests.stateful.parts import parts
from tests.stateful.process_rules import StoryMachine
from tests.stateful.processes import Counts

STEPS = 40
STORIES, STORIES_THOROUGH = 34, 40
#: Which part of the stories is told, and how many operations they have at least. On storage without files, or
#: with volumes that are not zero, it is a small one: what differs there is where the bytes go.
FORMATS = {"localfs-1.0": (1.0, 1000), pathless.FORMAT: (0.15, 80), rounded.FORMAT: (0.1, 30)}
#: A thorough run tells stories in parts that can run side by side.
PARTS = parts(12)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("format", FORMATS)
def test_stories_of_processes(
    format: str, part: int, quick_folder: Path, effort: Effort, tally: Tally
) -> None:
    """A story that fails is told again in its shortest form; ``DISKYARD_SEED`` tells others."""
    tally("stories")
    Counts.operations = Counts.held = Counts.kills = Counts.bytes_compared = 0
    machine = type("Story", (StoryMachine,), {"format": format, "place": quick_folder})
    run_state_machine_as_test(
        seed(effort.random("stories", format, part).getrandbits(64))(machine),
        settings=settings(
            max_examples=round((STORIES_THOROUGH if effort.thorough else STORIES) * FORMATS[format][0]),
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
            print_blob=True,
        ),
    )
    tally(
        "stories",
        operations=Counts.operations,
        held=Counts.held,
        kills=Counts.kills,
        bytes_compared=Counts.bytes_compared,
    )
    assert Counts.operations >= FORMATS[format][1]
