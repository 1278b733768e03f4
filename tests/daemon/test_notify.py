"""What systemd is told, with a socket in its place."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard.daemon.notify import Manager


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The manager's side, and how its address is given."""
    name = f"diskyard-{os.getpid()}-{tmp_path.name}"
    path = str(tmp_path / "notify") if request.param == "path" else f"@{name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path if request.param == "path" else f"\0{name}")
        listener.settimeout(30)
        yield listener, path


def test_it_is_told_what_the_daemon_does(systemd: tuple[socket.socket, str]) -> None:
    listener, address = systemd
    environment = {"NOTIFY_SOCKET": address, "OTHER": "x"}
    manager = Manager(environment)
    assert environment == {"OTHER": "x"}
    manager.ready("answers at /run/x\nREADY=0")
    manager.status("5 tasks")
    manager.reloading()
    manager.stopping("ending")
    manager.alive()
    told = [listener.recv(4096).decode() for _ in range(5)]
    monotonic = told.pop(2)
    assert told == [
        "READY=1\nSTATUS=answers at /run/x READY=0",
        "STATUS=5 tasks",
        "STOPPING=1\nSTATUS=ending",
        "WATCHDOG=1",
    ]
    first, second = monotonic.split("\n")
    assert first == "RELOADING=1"
    assert second.removeprefix("MONOTONIC_USEC=").isdigit()


def test_without_a_manager_nothing_is_told(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}):
        manager = Manager(dict(environment))
        manager.ready("x")
        assert manager.alive_every_s is None
        asyncio.run(manager.stay_alive())


def test_a_manager_that_is_gone_is_no_reason_to_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Manager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("x")
    assert "cannot be told" in caplog.text


def test_the_watchdog_is_fed_if_it_is_this_processes(systemd: tuple[socket.socket, str]) -> None:
    listener, address = systemd
    given = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000"}
    assert Manager({**given, "WATCHDOG_PID": str(os.getpid())}).alive_every_s == 0.01
    for other in ({"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}):
        assert Manager({**given, **other}).alive_every_s is None

    async def feed() -> None:
        feeding = asyncio.create_task(Manager(dict(given)).stay_alive())
        for _ in range(3):
            assert await asyncio.to_thread(listener.recv, 4096) == b"WATCHDOG=1"
        feeding.cancel()

    asyncio.run(feed())
