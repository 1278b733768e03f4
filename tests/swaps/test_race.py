"""Names that change places with links, at any moment, while all that opens them goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskyard.testing.attackers.swaps import swap_race
from diskyard.testing.effort import Effort
from diskyard.testing.mounted import mounted, why_not_mounted
from tests.conftest import Tally

QUICK_S, THOROUGH_MINUTES = 2.0, 3.0


def test_nothing_outside_is_touched(quick_folder: Path, effort: Effort, tally: Tally) -> None:
    """In memory; with ``--file-system``, on file systems of these kinds, one after the other."""
    seconds = effort.seconds(QUICK_S, THOROUGH_MINUTES)
    for kind in effort.file_systems or ("",):
        folder = quick_folder / (kind or "memory")
        if not kind:
            folder.mkdir()
            told, flips = swap_race(folder, {place: folder / place for place in "ab"}, seconds, effort.seed)
        elif reason := why_not_mounted(kind):
            pytest.skip(reason)
        else:
            with mounted(kind, folder) as disk:
                places = {place: disk.place / "race" / place for place in "ab"}
                (disk.place / "race").mkdir()
                told, flips = swap_race(disk.place / "race", places, seconds, effort.seed)
        tally("swaps", **told.tallied(), flips=flips)
        told.require_none()
        assert flips, "nothing was swapped"
