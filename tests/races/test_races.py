"""Copies, differences and exports of disks that others change meanwhile: right, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskyard.testing.attackers.races import RACE_KINDS, RaceKind, race
from diskyard.testing.effort import Effort
from diskyard.testing.mounted import REFLINK_KINDS, mounted, why_not_mounted
from tests.conftest import Tally

QUICK_S, THOROUGH_MINUTES = 2.0, 3.0
FILE_SYSTEMS = Effort.of_environment().kinds(REFLINK_KINDS)


@pytest.mark.parametrize("kind", RACE_KINDS)
@pytest.mark.parametrize("file_system", FILE_SYSTEMS)
def test_a_copy_is_right_or_refused(
    file_system: str, kind: RaceKind, quick_folder: Path, effort: Effort, tally: Tally
) -> None:
    """Where disks are cloned, which is where a clone of the wrong file would be taken for the disk."""
    tally("races")
    if reason := why_not_mounted(file_system):
        pytest.skip(reason)
    seconds = effort.seconds(QUICK_S, THOROUGH_MINUTES)
    with mounted(file_system, quick_folder / "fs") as disk:
        places = {place: disk.place / place for place in "ab"}
        told = race(kind, quick_folder, places, seconds, effort.seed)
    tally("races", **told.tallied())
    told.require_none()
