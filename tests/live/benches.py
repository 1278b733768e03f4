"""Benches for scenarios with a running guest. The worlds in which they begin are made once in a process."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from diskyard.testing.live_runs import LiveBench, prepared_world
from diskyard.testing.scenarios.base import Act
from diskyard.testing.scenarios.live import LiveScenario
from diskyard.testing.world import World


class _Prepared:
    """A prepared world, which goes with this process."""

    def __init__(self, prepare: Act) -> None:
        self._folder = TemporaryDirectory(prefix="diskyard-test-")
        self.world: World = prepared_world(prepare, Path(self._folder.name) / "world")


_prepared = cache(_Prepared)


def live_bench(scenario: LiveScenario, folder: Path) -> LiveBench:
    """The bench for a scenario.

    :param folder: where its runs are made.
    """
    return LiveBench(scenario, _prepared(scenario.prepare).world, folder)
