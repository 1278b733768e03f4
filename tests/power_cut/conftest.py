"""A place for simulated disks, where they can be had."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard.testing.simulated_disk import why_not
from tests.conftest import Tally

MEMORY = Path("/dev/shm")


@pytest.fixture
def place(tmp_path: Path, tally: Tally) -> Iterator[Path]:
    """A folder in memory, where syncing costs nothing; the disk that fails is simulated anyway."""
    tally("power cut")
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path / "disks"
    if MEMORY.is_dir():
        folder = Path(tempfile.mkdtemp(prefix="diskyard-power-cut-", dir=MEMORY))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
