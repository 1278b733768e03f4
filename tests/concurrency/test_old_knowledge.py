"""A host that knows a log only as it was long ago: what it does is right all the same.

Where to look, and what to lease, is taken from what a host knows already; the plan, or a look with
the leases taken, must tell where that is not so any more (docs/decisions/0039).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from diskyard.fixes.runner import run_fix
from diskyard.model.fix import Fix
from diskyard.service import Service
from diskyard.testing.fault_runs import tear_down
from diskyard.testing.scenarios import Scenario
from diskyard.testing.scenarios.fixing import FIXES
from diskyard.testing.scenarios.operations import OPERATIONS
from diskyard.testing.world import World, host_named, judge_outcome

CHOSEN = [
    scenario
    for scenario in (*OPERATIONS, *FIXES)
    if not scenario.is_slow
    and scenario.name.startswith(
        (
            "clean", "copy disk", "create disk from", "create snapshot of", "extend lone", "mend a", "merge",
            "optimize", "prepare", "reserve", "restore", "revert", "take", "tear down",
        )
    )
]  # fmt: skip


@pytest.mark.parametrize("scenario", CHOSEN, ids=lambda scenario: scenario.name)
def test_what_was_done_since_by_others_counts(scenario: Scenario, quick_folder: Path) -> None:
    world = World(quick_folder / "world")
    world.create()
    service = world.service(host_named("acting"))  # it has read both logs: there is nothing in them
    builder = world.service(host_named("builder"))
    scenario.prepare(world, builder)
    before, after, fixes = dict(world.images), scenario.after(world), World.fixes

    def listed_by_another(world: World, _service: Service, place: str) -> list[Fix]:
        return fixes(world, builder, place)

    changed: list[bool] = []

    def noted(*words: Any, **more: Any) -> None:
        changed.append(run_fix(*words, **more))

    with (
        mock.patch.object(World, "fixes", listed_by_another),
        mock.patch("diskyard.testing.scenarios.base.run_fix", noted),
    ):
        scenario.act(world, service)
    assert changed == [True] * (scenario in FIXES)
    assert service.tasks.wait(timeout_s=60)
    tear_down(world, service)
    service.close()
    builder.close()
    judge_outcome(world, before, after, answered=True, order=random.Random(0))
    scenario.look(world, world.service(host_named("looker")), answered=True)
