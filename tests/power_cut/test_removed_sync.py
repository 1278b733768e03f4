"""Each kind of sync is left out of a recorded run: the suite must then see that something is lost.

A program without it does the same in the same order, so its disk is the recorded one on which
these syncs have done nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard.testing.effort import Effort
from diskyard.testing.recording import Recording, record
from diskyard.testing.scenarios import SCENARIOS
from diskyard.testing.scenarios.durable import DURABLE_SCENARIOS
from tests.conftest import Tally, folder_in_memory
from tests.power_cut.syncs import NEEDED, Removal, of_kinds

ALL = {scenario.name: scenario for scenario in (*SCENARIOS, *DURABLE_SCENARIOS)}
IN_ROW = sorted(NEEDED, key=lambda removal: removal.scenario)
TORN = 2
MOST = 150


class Recorder:
    """Records scenarios; several removals in a row of one scenario have the same recording."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "recorded"
        self._last: Recording | None = None

    def record(self, scenario: str, seed: int) -> Recording:
        """A scenario's recording, which is there until another one is recorded."""
        if self._last is None or self._last.scenario.name != scenario:
            self._last = None
            if self._folder.exists():
                shutil.rmtree(self._folder)
            self._last = record(ALL[scenario], self._folder, seed)
        return self._last


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    for folder in folder_in_memory(tmp_path_factory.mktemp("recorder")):
        yield Recorder(folder)


@pytest.mark.parametrize("removal", IN_ROW, ids=lambda removal: f"{removal.scenario}: {removal.kinds[0]}")
def test_a_removed_sync_is_seen(
    removal: Removal, place: Path, recorder: Recorder, effort: Effort, tally: Tally
) -> None:
    recording = recorder.record(removal.scenario, effort.seed)
    removed = of_kinds(recording.disk.kinds_of_sync(), removal.kinds)
    for pattern in removal.kinds:
        assert of_kinds(removed, [pattern]), f"no such sync: {pattern}"
    assert recording.failure(removed, place / "cut", TORN, MOST) is not None
    tally("power cut", **{"removed syncs": len(removed)})
