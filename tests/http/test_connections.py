"""Connections that are held open by who has nothing to say on them."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from uvicorn.server import ServerState

from diskyard.daemon import listeners

_PATIENCE_S = 20.0
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
        server = await loop.create_unix_server(lambda: listeners.Connection(config, state, {}), path)
        try:
            await asyncio.wait_for(_drip(path, begin), _PATIENCE_S)
        finally:
            server.close()

    asyncio.run(attempt())
