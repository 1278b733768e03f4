"""A daemon for the tests of HTTP: one for each test, and one for those that share it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard.testing.daemon_process import DaemonProcess
from tests.http.wire import EVENT_STREAMS, LIMIT_BYTES, Canary, require_well


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
    with DaemonProcess(short_folder, tables, forked=True) as running:
        yield running


@pytest.fixture(scope="module")
def _shared() -> Iterator[DaemonProcess]:
    """A daemon with one repository, ``a``, beside files that nobody may touch."""
    with tempfile.TemporaryDirectory(prefix="diskyard-") as name:
        folder = Path(name)
        canary = Canary(folder / "canary")
        (folder / "transfer").mkdir()
        tables = {
            "transfer": {"folders": [str(folder / "transfer")]},
            "limits": {
                "request_bytes": LIMIT_BYTES,
                "event_streams": EVENT_STREAMS,
                "requests_per_s": 0,
            },
        }
        with DaemonProcess(folder, tables) as running:
            asked = {"repoFormat": "localfs-1.0", "connectionParameters": running.place("a")}
            running.call("createStorageRepository", **asked)
            running.call("connectStorageRepository", repoId="a", **asked)
            yield running
            require_well(running)
        canary.require_untouched()


@pytest.fixture
def attacked(_shared: DaemonProcess) -> Iterator[DaemonProcess]:
    """The daemon that the tests of a file attack, one after the other; it must be well after each."""
    yield _shared
    require_well(_shared)
