"""Each kind of sync is left out of a recorded run: the suite must then see that something is lost.

A program without it does the same in the same order, so its disk is the recorded one on which
these syncs have done nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from diskyard.testing.effort import Effort
from diskyard.testing.recording import record
from diskyard.testing.scenarios import SCENARIOS
from diskyard.testing.scenarios.durable import DURABLE_SCENARIOS
from tests.conftest import Tally
from tests.power_cut.syncs import NEEDED, Removal, of_kinds

ALL = {scenario.name: scenario for scenario in (*SCENARIOS, *DURABLE_SCENARIOS)}
TORN = 2
MOST = 150


@pytest.mark.parametrize("removal", NEEDED, ids=lambda removal: f"{removal.scenario}: {removal.kinds[0]}")
def test_a_removed_sync_is_seen(removal: Removal, place: Path, effort: Effort, tally: Tally) -> None:
    recording = record(ALL[removal.scenario], place / "recorded", effort.seed)
    removed = of_kinds(recording.disk.kinds_of_sync(), removal.kinds)
    for pattern in removal.kinds:
        assert of_kinds(removed, [pattern]), f"no such sync: {pattern}"
    assert recording.failure(removed, place / "cut", TORN, MOST) is not None
    tally("power cut", **{"removed syncs": len(removed)})
