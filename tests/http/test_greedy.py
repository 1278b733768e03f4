"""Callers who want more than their part: what they get, and that the others get theirs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.server import ServerState

from diskyard import errors
from diskyard.caller import Caller, Share
from diskyard.daemon import listeners
from diskyard.http.bulkheads import Bulkheads
from diskyard.http.connections import Connections, Held
from diskyard.http.limits import Limits
from diskyard.http.pieces import PIECE_BYTES, pieces
from diskyard.http.running import Asked, Verbs
from diskyard.http.sending import Sending, streamed
from diskyard.model import requests as ask
from diskyard.queries import list_images
from diskyard.service import Service
from diskyard.service.verbs import run
from diskyard.testing.daemon_process import DaemonProcess
from tests.http.wire import connected_tls, parsed, request, tcp_address

_PATIENCE_S = 60.0
_IMAGES, _NOTE_BYTES = 100, 16_000
_CONNECTIONS, _SILENT = 6, 8
_ANSWER_BYTES = 1 << 20
_LIMITS = {
    "answer_bytes": _ANSWER_BYTES,
    "connections_per_token": _CONNECTIONS,
    "handshakes_per_address": _SILENT,
    "unread_timeout_s": 2,
}
_LIST = {"repositoryId": "long", "limit": 10_000}


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    """A daemon with little room, and a repository of which a list is longer than the kernel takes."""
    with (
        tempfile.TemporaryDirectory(prefix="diskyard-") as name,
        DaemonProcess(Path(name), {"limits": _LIMITS}) as running,
    ):
        asked = {"repoFormat": "memory-1.0", "connectionParameters": {"name": "long"}}
        running.call("createStorageRepository", **asked)
        running.call("connectStorageRepository", repoId="long", **asked)
        given = {"targetRepoId": "long", "size": 1 << 20, "userData": "x" * _NOTE_BYTES}
        for _ in range(_IMAGES):
            running.call("createVirtualDisk", **given)
        yield running


def token(daemon: DaemonProcess, name: str) -> str:
    words = [sys.executable, "-m", "diskyard.cli", "token", "create", name, "--scope", "read"]
    place = {**os.environ, "DISKYARD_STATE_DIR": str(daemon.state_folder)}
    said = subprocess.run(words, env=place, capture_output=True, text=True, check=True).stdout
    found = re.search(r"dy_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", said)
    assert found is not None
    return found[0]


def asking(of: str, verb: str, words: dict[str, Any]) -> bytes:
    headers = {"Authorization": f"Bearer {of}", "Connection": "keep-alive"}
    return request(f"/v1/{verb}", json.dumps(words).encode(), headers=headers)


def figure(daemon: DaemonProcess, name: str) -> float:
    with daemon.client() as client:
        text = client.get("/metrics").text
    found = re.search(rf"(?m)^{re.escape(name)} (\S+)$", text)
    assert found is not None, name
    return float(found[1])


def until(daemon: DaemonProcess, name: str, least: float) -> float:
    """Wait until a figure is so large."""
    end_s = time.monotonic() + _PATIENCE_S
    while (now := figure(daemon, name)) < least:
        assert time.monotonic() < end_s, (name, now)
        time.sleep(0.02)
    return now


def narrow(daemon: DaemonProcess) -> ssl.SSLSocket:
    """A connection of which the kernel takes little that is not read."""
    plain = socket.create_connection(tcp_address(daemon), _PATIENCE_S)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    context = ssl.create_default_context(cafile=str(daemon.ca_file))
    return context.wrap_socket(plain, server_hostname="localhost")


def test_answers_that_nobody_reads_are_made_a_piece_at_a_time_and_then_cut(daemon: DaemonProcess) -> None:
    cut = 'diskyard_connections_refused_total{why="unread"}'
    before = figure(daemon, cut)
    words = asking(token(daemon, "reads-nothing"), "listImages", _LIST)
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(narrow(daemon)).sendall(words)
        assert until(daemon, "diskyard_answer_bytes_unsent", 1) <= 4 * PIECE_BYTES
        assert figure(daemon, "diskyard_requests_in_progress") > 0
        # The operator, and another caller, get all of the same list meanwhile.
        assert len(daemon.call("listImages", **_LIST)["images"]) == _IMAGES
        with connected_tls(daemon) as other:
            other.sendall(asking(token(daemon, "reads-all"), "listImages", _LIST))
            assert len(json.loads(whole(other))["images"]) == _IMAGES
        until(daemon, cut, before + 4)
    end_s = time.monotonic() + _PATIENCE_S
    while figure(daemon, "diskyard_answer_bytes_unsent"):
        assert time.monotonic() < end_s
    assert "token:reads-nothing" in daemon.log_path.read_text()


def whole(connection: socket.socket) -> bytes:
    """The body of an answer in chunks, which must be whole."""
    received = bytearray()
    while not received.endswith(b"\r\n0\r\n\r\n"):
        part = connection.recv(1 << 16)
        assert part, "the connection was cut"
        received += part
    (answer,) = parsed(bytes(received))
    assert answer.status == 200
    return answer.body


def test_a_token_has_so_many_connections_and_others_have_theirs(daemon: DaemonProcess) -> None:
    words = asking(token(daemon, "many"), "getHostInfo", {})
    with ExitStack() as held:
        for _ in range(_CONNECTIONS):
            one = held.enter_context(connected_tls(daemon))
            one.sendall(words)
            assert one.recv(1 << 16).startswith(b"HTTP/1.1 200")
        refused = held.enter_context(connected_tls(daemon))
        refused.sendall(words)
        received = bytearray()
        while part := refused.recv(1 << 16):  # until it is closed
            received += part
        (answer,) = parsed(bytes(received))
        assert answer.status == 429
        assert answer.headers["retry-after"] == "1"
        assert answer.problem()["code"] == "TooManyRequests"
        other = held.enter_context(connected_tls(daemon))
        other.sendall(asking(token(daemon, "another"), "getHostInfo", {}))
        assert other.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_who_does_not_begin_leaves_room_for_who_does(daemon: DaemonProcess) -> None:
    words = asking(token(daemon, "begins"), "getHostInfo", {})
    with ExitStack() as held:
        silent = [
            held.enter_context(socket.create_connection(tcp_address(daemon), _PATIENCE_S))
            for _ in range(10 * _SILENT)
        ]
        end_s = time.monotonic() + _PATIENCE_S
        while len(open_ones := _open(silent)) > _SILENT:
            assert time.monotonic() < end_s, len(open_ones)
            time.sleep(0.02)
        with until_let_in(daemon, end_s) as one:
            one.sendall(words)
            assert one.recv(1 << 16).startswith(b"HTTP/1.1 200")


def _open(connections: list[socket.socket]) -> list[socket.socket]:
    ended, _, _ = select.select(
        connections, [], [], 0
    )  # they are sent nothing: what can be read is their end
    return [one for one in connections if one not in ended]


def until_let_in(daemon: DaemonProcess, end_s: float) -> ssl.SSLSocket:
    """A connection with TLS. One that comes in the moment after many others may have to come again."""
    context = ssl.create_default_context(cafile=str(daemon.ca_file))
    while True:
        plain = socket.create_connection(tcp_address(daemon), _PATIENCE_S)
        try:
            return context.wrap_socket(plain, server_hostname="localhost")
        except OSError:
            plain.close()
            assert time.monotonic() < end_s
            time.sleep(0.05)


# -- a piece at a time ---------------------------------------------------------------------------


@pytest.fixture
def service(tmp_path: Path) -> Service:
    """A service with a repository of 450 images."""
    made = Service(state_folder=str(tmp_path / "state"))
    place = {"name": str(tmp_path)}
    run(made, ask.CreateStorageRepository(repo_format="memory-1.0", connection_parameters=place))
    run(
        made, ask.ConnectStorageRepository(repo_id="a", repo_format="memory-1.0", connection_parameters=place)
    )
    for number in range(450):
        run(made, ask.CreateVirtualDisk(target_repo_id="a", size=1 << 20, user_data="y" * (number % 7 * 300)))
    return made


@pytest.mark.parametrize("limit", [200, 201, 400, 449, 450, 10_000])
def test_pieces_are_the_whole_answer(service: Service, limit: int) -> None:
    cursor: str | None = None
    repository = service.connections.get("a")
    while True:
        request = ask.ListImages(repository_id="a", limit=limit, cursor=cursor)
        found = list(pieces(service, request))
        page = list_images(repository, request)
        assert b"".join(piece.data for piece in found) == msgspec.json.encode(page)
        assert [piece.is_last for piece in found] == [False] * (len(found) - 1) + [True]
        assert max(len(piece.data) for piece in found) <= PIECE_BYTES + 4_000
        assert cursor is not None or limit < 400 or len(found) > 3
        cursor = page.next_cursor
        if cursor is None:
            return


@pytest.mark.parametrize("limit", [199, 201])
def test_of_a_page_that_nobody_takes_one_piece_is_made(service: Service, limit: int) -> None:
    """Also of a page that is no long call: many connections may ask for one each."""
    request, share = ask.ListImages(repository_id="a", limit=limit), Share("token:a", is_limited=True)
    limits = Limits()
    verbs, charged = Verbs(service, Bulkheads(limits, _PATIENCE_S), limits), list[float]()

    async def attempt() -> bytes:
        caller = Caller(share.actor, is_limited=True)
        async with AsyncExitStack() as held:
            answer = await verbs.run(Asked(request, caller, share, charged.append), held)
            assert len(answer.first) <= PIECE_BYTES + 4_000
            assert len(charged) == 1  # nothing else is made until it is asked for
            assert answer.rest is not None
            return b"".join([answer.first, *[data async for data in answer.rest]])

    whole_page = msgspec.json.encode(list_images(service.connections.get("a"), request))
    assert asyncio.run(asyncio.wait_for(attempt(), _PATIENCE_S)) == whole_page
    assert len(charged) >= len(whole_page) / (PIECE_BYTES + 4_000) > 3


def test_a_list_of_one_status_comes_in_pieces_too(service: Service) -> None:
    request = ask.ListImages(repository_id="a", limit=10_000, status="optimized")
    found = b"".join(piece.data for piece in pieces(service, request))
    assert found == msgspec.json.encode(list_images(service.connections.get("a"), request))
    assert len(json.loads(found)["images"]) == 450


def test_a_list_is_read_on_as_it_is_when_the_rest_is_asked_for(service: Service) -> None:
    images = list_images(service.connections.get("a"), ask.ListImages(repository_id="a", limit=10_000)).images
    found = pieces(service, ask.ListImages(repository_id="a", limit=10_000))
    data = next(found).data
    run(service, ask.RemoveImage(repository_id="a", image_id=images[-1].image_id))
    data += b"".join(piece.data for piece in found)
    listed = [image["imageId"] for image in json.loads(data)["images"]]
    assert listed == [image.image_id for image in images[:-1]]


def test_an_answer_that_fails_on_the_way_is_cut(short_folder: Path) -> None:
    """It must not look like a whole one to any client."""
    connections = Connections(Limits())

    async def rest() -> AsyncIterator[bytes]:
        yield b"1" * 100_000
        raise errors.StorageError("The disk is gone.")

    async def endpoint(asked: Request) -> Response:
        return streamed(b"[", rest(), asked.scope, connections, "1")

    received = asyncio.run(_served(Starlette(routes=[Route("/", endpoint)]), connections, short_folder / "s"))
    assert received.startswith(b"HTTP/1.1 200")
    assert received.count(b"1") > 1_000
    assert not received.endswith(b"0\r\n\r\n")
    assert connections.refused == {"failed": 1}
    assert connections.unsent.count == 0


async def _served(app: Starlette, connections: Connections, path: Path) -> bytes:
    """All that comes on a connection after one request, until its end."""
    whole_app = Sending(app, connections)
    config = uvicorn.Config(whole_app, ws="none", lifespan="off", log_config=None)
    config.load()
    kept, state = listeners.kept_by(listeners.Keeper(connections)), ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: kept(config, state, {}), path)
    try:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET / HTTP/1.1\r\nHost: d\r\n\r\n")
        received = await asyncio.wait_for(reader.read(), _PATIENCE_S)
        writer.close()
    finally:
        server.close()
    return received


def test_room_for_answers_is_shared() -> None:
    """One who takes nothing keeps a quarter of it at most; others go on."""

    async def attempt() -> None:
        connections = Connections(Limits(answer_bytes=16 * PIECE_BYTES))
        begun = 0

        async def send(_: object) -> None:
            nonlocal begun
            begun += 1

        def sending(actor: str) -> asyncio.Task[None]:
            held = Held("192.0.2.1", True, lambda: None, asyncio.Event(), actors={actor})
            scope = {"type": "http", "state": {"connection": held}}

            async def app(_scope: object, _receive: object, sent: Any) -> None:
                await sent({"type": "http.response.body", "body": b"x" * (3 * PIECE_BYTES)})

            async def receive() -> dict[str, Any]:
                return {}

            return asyncio.create_task(Sending(app, connections)(scope, receive, send))

        greedy = [sending("token:greedy") for _ in range(20)]
        await asyncio.sleep(0.01)
        assert connections.unsent.count == 4 * PIECE_BYTES
        other = sending("token:other")
        await asyncio.sleep(0.01)
        assert begun == 5
        assert connections.unsent.count == 5 * PIECE_BYTES
        assert connections.unsent.in_the_way(Share("user:root", is_limited=False), PIECE_BYTES) is None
        for task in (*greedy, other):
            task.cancel()
        await asyncio.gather(*greedy, other, return_exceptions=True)
        assert connections.unsent.count == 0

    asyncio.run(attempt())
