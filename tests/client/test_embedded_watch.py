"""Waiting in this process is told of what happens here, and need not look by itself."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from diskyard import Diskyard
from diskyard.client.embedded import Embedded


def test_who_waits_is_woken_by_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diskyard.client.embedded._POLL_S", 3600.0)
    with Diskyard(state_folder=str(tmp_path)) as yard:
        transport = yard.transport
        assert isinstance(transport, Embedded)
        events = transport.service.events
        with closing(transport.watch(("task",), None)) as changes:
            later = threading.Timer(0.1, lambda: events.tell("task", None, {}))
            later.start()
            next(changes)
            later.join()
        assert not events.has_listeners()


def test_who_waits_looks_by_itself_too(tmp_path: Path) -> None:
    """What other processes do is told nowhere."""
    with Diskyard(state_folder=str(tmp_path)) as yard:
        begin_s = time.monotonic()
        assert list(yard.transport.watch(("task",), 0.3))
        assert time.monotonic() - begin_s >= 0.3
