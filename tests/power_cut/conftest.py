"""A place for simulated disks, where they can be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskyard.testing.simulated_disk import why_not
from tests.conftest import Tally


@pytest.fixture
def place(quick_folder: Path, tally: Tally) -> Path:
    """A folder in memory, where syncing costs nothing: the disk that fails is simulated anyway."""
    tally("power cut")
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    return quick_folder
