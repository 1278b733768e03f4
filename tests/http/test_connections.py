"""Connections that are held open by who has nothing to say on them."""

from __future__ import annotations

import asyncio
import itertools
import resource
import socket
import ssl
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from uvicorn.server import ServerState

from diskyard.daemon import listeners
from diskyard.http.connections import Connections
from diskyard.http.limits import Limits
from diskyard.testing.daemon_process import DaemonProcess
from tests.http.wire import tcp_address

_PATIENCE_S = 20.0
_MANY = 1300
_BEGINS = {
    "headers": b"POST /v1/x HTTP/1.1\r\nHost: d\r\nX-Slow: ",
    # Nobody is let in, or there is no such path: it is answered before its body has come.
    "refused body": b"POST /v1/x HTTP/1.1\r\nHost: d\r\nContent-Length: 1000000\r\n\r\n",
}


async def _drip(path: Path, begin: bytes) -> int:
    """Send a byte after the other on a connection until it ends; how many that were."""
    reader, writer = await asyncio.open_unix_connection(path)
    ended = asyncio.create_task(reader.read())
    writer.write(begin)
    for count in itertools.count():
        done, _ = await asyncio.wait({ended}, timeout=0.02)
        if done:
            writer.close()
            return count
        writer.write(b"x")
    raise AssertionError


@pytest.mark.parametrize("begin", _BEGINS.values(), ids=_BEGINS)
def test_a_request_that_does_not_end_ends_its_connection(
    begin: bytes, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "_SILENT_MOST_S", 0.2)

    async def attempt() -> None:
        config = uvicorn.Config(Starlette(), ws="none", lifespan="off", log_config=None)
        config.load()
        state, path = ServerState(), short_folder / "s"
        loop = asyncio.get_running_loop()
        kept = listeners.kept_by(listeners.Keeper(Connections(Limits())))
        server = await loop.create_unix_server(lambda: kept(config, state, {}), path)
        try:
            await asyncio.wait_for(_drip(path, begin), _PATIENCE_S)
        finally:
            server.close()

    asyncio.run(attempt())


def test_who_only_connects_does_not_take_the_files_from_the_work(daemon: DaemonProcess) -> None:
    """Nobody has said anything yet, not even who they are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    place = {"repoFormat": "localfs-1.0", "connectionParameters": daemon.place("a")}
    daemon.call("createStorageRepository", **place)
    daemon.call("connectStorageRepository", repoId="a", **place)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (_MANY - 100, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with ExitStack() as held:
            for _ in range(_MANY):
                held.enter_context(socket.create_connection(tcp_address(daemon), _PATIENCE_S))
            assert daemon.call("createVirtualDisk", targetRepoId="a", size=1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_may_open_more_files_than_it_was_started_with(short_folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with DaemonProcess(short_folder) as daemon:
            allowed, _ = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert allowed > 256


def test_an_idle_connection_does_not_keep_it_from_ending(short_folder: Path) -> None:
    """Its caller says nothing, not even goodbye: nothing is waited for that will not come."""
    daemon = DaemonProcess(short_folder / "d").start()
    context = ssl.create_default_context(cafile=str(daemon.ca_file))
    with (
        socket.create_connection(tcp_address(daemon)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as idle,
    ):
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: d\r\n\r\n")
        assert idle.recv(12) == b"HTTP/1.1 200"
        assert daemon.stop() == 0
    assert "graceful shutdown exceeded" not in daemon.log_path.read_text()
