"""Two hosts at the same fix: one works, the other is told so or finds nothing to do."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from diskyard.testing.effort import Effort
from diskyard.testing.scenarios import Scenario
from diskyard.testing.scenarios.fixing import FIXES
from diskyard.testing.story_host import StoryHost, identity
from diskyard.testing.world import World, host_named
from tests.conftest import Tally

TYPES = {"restore": "mend", "reserve": "optimize", "shorten": "optimize", "take": "clean"}
MOST_STEPS = 80
EVERY = 4  # other ones with another seed
SAMPLE = 2


@pytest.mark.parametrize("scenario", FIXES, ids=lambda scenario: scenario.name)
def test_two_hosts_run_one_fix(scenario: Scenario, quick_folder: Path, effort: Effort, tally: Tally) -> None:
    """The one is held before a step of it: it keeps the other out, or is left nothing to do."""
    tally("concurrency")
    held = 0
    world = World(quick_folder / "world")
    world.create()
    builder = world.service(host_named("builder"))
    scenario.prepare(world, builder)
    builder.close()
    steps = range(1 + effort.seed % EVERY, MOST_STEPS, EVERY)
    tried = effort.sample(steps, SAMPLE, scenario.name)
    for held_at in tried:
        held += _both(world.copied(quick_folder / f"held-{held_at}"), scenario, held_at, effort)
    tally("concurrency", operations=2 * len(tried), held=held)


def _both(world: World, scenario: Scenario, held_at: int, effort: Effort) -> bool:
    """The first is held, the second runs the fix too, the first goes on; whether it was held."""
    boot_id = host_named("").identity.boot_id
    first, second = (StoryHost(world, identity(name, boot_id), "fix") for name in ("first", "second"))
    service = world.service(host_named("looking"))
    first_word = scenario.name.split()[0]
    wanted = TYPES.get(first_word, first_word)
    place, fix = next(found for found in world.runnable(service) if found[1].type == wanted)
    asked = {"repositoryId": place, "fix": msgspec.to_builtins(fix)}
    first.start()
    second.start()
    was_held = first.run("fixStorageRepository", asked, held_at).held_before is not None
    ended = list(second.run("fixStorageRepository", asked).ended or [])
    ended += (first.go_on() if was_held else first.heard).ended or []
    assert len(ended) == 2
    assert any(state == "done" for _, state, _ in ended), ended
    assert all(state == "done" or code == "LeaseHeld" for _, state, code in ended), ended
    first.close()
    second.close()
    world.images = scenario.after(world)
    world.fix_all([service], effort.random("after", scenario.name))
    world.judge(service)
    service.close()
    return was_held
