"""What the tests of running guests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from diskyard.testing.live_runs import LiveBench, prepared_world
from diskyard.testing.running_guest.machine import CannotBoot, Machine
from diskyard.testing.running_guest.machine import machine as built
from diskyard.testing.scenarios.base import Act
from diskyard.testing.scenarios.live import LiveScenario
from diskyard.testing.world import World

Bench = Callable[[LiveScenario], LiveBench]
_CHECKOUT = Path(__file__).resolve().parent.parent.parent
_CACHE = _CHECKOUT / ".cache"


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """What emulated guests boot; built once for all runs in a checkout that this user may write to."""
    is_ours = os.access(_CHECKOUT, os.W_OK) and (not _CACHE.exists() or os.access(_CACHE, os.W_OK))
    cache = _CACHE if is_ours else tmp_path_factory.getbasetemp()
    try:
        return built(cache / "emulated-guest", [_CACHE / "guest-kernel", Path("/")])
    except CannotBoot as reason:
        pytest.skip(f"no emulated guest: {reason}")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Act], World]:
    """The world that some scenarios begin with, made once for all of them."""
    made: dict[Act, World] = {}

    def world(prepare: Act) -> World:
        if prepare not in made:
            made[prepare] = prepared_world(prepare, tmp_path_factory.mktemp("p") / "world")
        return made[prepare]

    return world


@pytest.fixture
def live_bench(prepared: Callable[[Act], World], quick_folder: Path) -> Bench:
    """The bench for a scenario."""
    return lambda scenario: LiveBench(scenario, prepared(scenario.prepare), quick_folder)
