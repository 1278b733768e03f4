"""A daemon for the tests of HTTP: one for each test, and one for those that share it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard.testing.daemon_process import DaemonProcess


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short name: sockets in it must not be longer than the kernel takes."""
    with tempfile.TemporaryDirectory(prefix="diskyard-") as folder:
        yield Path(folder)


@pytest.fixture
def daemon(short_folder: Path) -> Iterator[DaemonProcess]:
    """A daemon with a transfer folder and no repositories."""
    (short_folder / "transfer").mkdir()
    tables = {"transfer": {"folders": [str(short_folder / "transfer")]}}
    with DaemonProcess(short_folder, tables) as running:
        yield running
