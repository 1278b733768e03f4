"""Callers who try to get where they may not: without tokens, and with paths in every text."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from diskyard.http import openapi
from diskyard.service import VERBS
from diskyard.testing.daemon_process import DaemonProcess
from tests.http.wire import (
    IMAGE,
    PATIENCE_S,
    answers_on,
    ask,
    connected_tls,
    exchange,
    one,
    refused,
    request,
    tcp_address,
)

MiB = 1 << 20
DOCUMENT = openapi.document()


# -- without a token ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer \xff"},
        {"Authorization": "Bearer " + "a" * 8000},
        {"Authorization": "Bearer dy_x_y"},
        {"Authorization": "Bearer ../../tokens"},
        {"Authorization": "Basic YWRtaW46YWRtaW4="},
        {"X-Forwarded-Proto": "http"},
        {"X-Forwarded-For": "127.0.0.1", "Forwarded": "proto=http;for=unix:"},
        {"Cookie": "token=admin"},
        {"X-HTTP-Method-Override": "GET"},
        {"Upgrade": "websocket", "Connection": "Upgrade, close"},
    ],
)
def test_nobody_is_let_in_without_a_token(attacked: DaemonProcess, headers: dict[str, str]) -> None:
    for target in ("/v1/getHostInfo", "/v1/getHostInfo?token=x", "http://daemon/v1/getHostInfo"):
        with connected_tls(attacked) as connection:
            answer = one(answers_on(connection, request(target, b"{}", headers=headers)))
        assert answer.status in ((404,) if target.startswith("http:") else (401, 429)), answer
        if answer.status == 401:
            refused(answer, 401, "Unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"


def test_a_large_body_of_nobody_is_not_read(attacked: DaemonProcess) -> None:
    with connected_tls(attacked) as connection:
        sent = request("/v1/getHostInfo", headers={"Content-Length": str(1 << 40)})
        assert one(answers_on(connection, sent)).status in (401, 429)


@pytest.mark.parametrize(
    "sent",
    [b"", b"\x16\x03\x01", b"\x80\x2e\x01\x00\x02", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 70_000],
)
def test_what_is_no_tls_is_not_answered(attacked: DaemonProcess, sent: bytes) -> None:
    received = b""
    with (
        socket.create_connection(tcp_address(attacked), PATIENCE_S) as connection,
        contextlib.suppress(ConnectionError),  # it is cut off, maybe before all was sent
    ):
        connection.sendall(sent)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(1 << 16):
            received += part
    assert b"HTTP/" not in received


# -- paths ----------------------------------------------------------------------------------------


@pytest.fixture
def tricks(attacked: DaemonProcess) -> Iterator[list[str]]:
    """Paths that lead to the canary, or nowhere good, by way of the transfer folder."""
    transfer, canary = attacked.folder / "transfer", attacked.folder / "canary"
    links = {
        "link": canary,
        "file": canary / "secret.raw",
        "new": canary / "new.raw",
        "loop": transfer / "loop",
        "root": Path("/"),
    }
    for name, target in links.items():
        (transfer / name).symlink_to(target)
    os.mkfifo(transfer / "fifo")
    (transfer / "folder").mkdir()
    yield [
        f"{transfer}/../canary/secret.raw",
        f"{transfer}/folder/../../canary/secret.raw",
        f"{transfer}/link/secret.raw",
        f"{transfer}/link/../canary/secret.raw",
        f"{transfer}/file",
        f"{transfer}/new",
        f"{transfer}/loop",
        f"{transfer}/loop/x",
        f"{transfer}/root{canary}/secret.raw",
        f"{transfer}/fifo",
        f"{transfer}/folder",
        f"{transfer}/",
        f"{transfer}",
        f"{transfer}x/secret.raw",
        f"{transfer}\0/secret.raw",
        f"{transfer}/secret.raw\0",
        f"{transfer}/none/x",
        f"{transfer}/" + "a" * 300,
        f"{transfer}/" + "b/" * 3000 + "x",
        f"{canary}/secret.raw",
        f"{canary}",
        f"/proc/self/root{canary}/secret.raw",
        f"/proc/{attacked.pid}/root{canary}/secret.raw",
        f"/proc/{attacked.pid}/fd/0",
        "/proc/self/mem",
        "/dev/zero",
        "/dev/null",
        "//" + str(canary)[1:] + "/secret.raw",
        "secret.raw",
        "../canary/secret.raw",
        "~/x",
        "$HOME/x",
        "`id`",
        "; rm -rf /",
        "%2e%2e/x",
        "..\\..\\canary\\secret.raw",
        f"file://{canary}/secret.raw",
        f'json:{{"driver":"file","filename":"{canary}/secret.raw"}}',
        f"nbd:unix:{canary}/secret.raw",
        f"fd:{canary}",
        "-o/tmp/x",
        "\n",
        "\u202e\u0000\ufeff",
        "",
        ".",
        "..",
        "/",
    ]
    for name in (*links, "fifo"):
        (transfer / name).unlink()
    (transfer / "folder").rmdir()


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk", "vdi", "vhdx"])
def test_nothing_elsewhere_is_imported(attacked: DaemonProcess, tricks: list[str], format: str) -> None:
    images = attacked.call("listImages", repositoryId="a")["images"]
    for path in tricks:
        body = json.dumps({"targetRepoId": "a", "path": path, "format": format}).encode()
        found = ask(attacked, "importImage", body).problem()
        assert found["code"] in ("PathNotAllowed", "InvalidParameter", "UnsafeImage"), (path, found)
    assert attacked.call("listImages", repositoryId="a")["images"] == images


def test_nothing_elsewhere_is_exported_to(attacked: DaemonProcess, tricks: list[str]) -> None:
    disk = attacked.call("createVirtualDisk", targetRepoId="a", size=MiB)
    before = sorted((attacked.folder / "transfer").rglob("*"))
    for path in tricks:
        body = {"repositoryId": "a", "imageId": disk, "path": path, "format": "raw"}
        answer = ask(attacked, "exportImage", json.dumps(body).encode())
        if answer.status == 200:  # what can be told only when the file is made
            task = attacked.wait_for_task(json.loads(answer.body)["taskId"])
            assert task["state"] == "failed", (path, task)
        else:
            assert answer.problem()["code"] in ("PathNotAllowed", "InvalidParameter", "NotEmpty"), path
    attacked.call("removeImage", repositoryId="a", imageId=disk)
    assert sorted((attacked.folder / "transfer").rglob("*")) == before


# -- paths in every text --------------------------------------------------------------------------


def valid(attacked: DaemonProcess, verb: str, disk: str, snapshot: str) -> dict[str, Any]:
    """Parameters of a verb that would be taken, about a disk and a Snapshot that there are."""
    known: dict[str, Any] = {
        "repoId": "a",
        "repositoryId": "a",
        "targetRepoId": "a",
        "repoFormat": "localfs-1.0",
        "connectionParameters": attacked.place("a"),
        "size": MiB,
        "imageId": disk,
        "baseVirtualDiskId": disk,
        "snapshotId": snapshot,
        "userData": {},
        "strategy": "space",
        "path": str(attacked.folder / "transfer" / "none"),
        "format": "raw",
        "taskId": IMAGE,
        "fix": {
            "fixId": "clean-0",
            "type": "clean",
            "description": "",
            "imageId": None,
            "runnable": True,
            "waitsFor": None,
            "heldBy": None,
            "freesBytes": 0,
            "movesBytes": 0,
            "needsBytes": 0,
            "data": {"marker": "m", "action": {"do": "cleanGarbage", "name": "x"}},
        },
    }
    fields = msgspec.structs.fields(VERBS[verb].request)
    return {field.encode_name: known[field.encode_name] for field in fields if field.required}


def texts(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where in parameters there are texts: the object or list, and the key."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, str):
            yield value, key
        elif isinstance(inner, dict | list):
            yield from texts(inner)


def could_be_new(path: str) -> bool:
    """Whether a repository could be made there: nothing is there, links followed, or an empty folder."""
    if "\0" in path or not path.startswith("/"):
        return False
    real = os.path.realpath(path)
    return not os.listdir(real) if os.path.isdir(real) else not os.path.lexists(real)


#: Options, and parameters with a default, that take a text.
MORE: dict[str, Any] = {
    "participatingRepositories": ["a"],
    "imageHints": {IMAGE: "a"},
    "newImageId": IMAGE,
    "owner": "x",
    "hostID": "x",
    "cursor": IMAGE,
    "imageIds": [IMAGE],
    "baseImageId": IMAGE,
    "baseSnapshotId": IMAGE,
    "copyImageId": IMAGE,
    "userData": {"a": "b"},
}


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("importImage", "exportImage")])
def test_paths_in_every_text(attacked: DaemonProcess, tricks: list[str], verb: str) -> None:
    """Whatever a verb takes as a text, a path in it leads nowhere; each answer is one that is described."""
    place = {"repoFormat": "localfs-1.0", "connectionParameters": attacked.place("a")}
    attacked.call("connectStorageRepository", repoId="a", **place)  # a call may have disconnected it
    disk = attacked.call("createVirtualDisk", targetRepoId="a", size=MiB)
    snapshot = attacked.call("createSnapshot", targetRepoId="a", baseVirtualDiskId=disk)
    parameters = valid(attacked, verb, disk, snapshot)
    fields = {field.encode_name: field for field in msgspec.structs.fields(VERBS[verb].request)}
    more = {**MORE, "connectionParameters": attacked.place("a")}
    parameters |= {name: more[name] for name in fields if name in more and name not in parameters}
    if "options" in fields:
        options = msgspec.structs.fields(fields["options"].type)
        parameters["options"] = {
            found.encode_name: MORE[found.encode_name] for found in options if found.encode_name in MORE
        }
    bodies = []
    for count in range(len(list(texts(parameters)))):
        for trick in tricks:
            tricked = json.loads(json.dumps(parameters))
            holder, key = list(texts(tricked))[count]
            holder[key] = trick
            if verb == "createStorageRepository" and could_be_new(trick):
                continue  # a new repository may be where its admin says
            bodies.append(json.dumps(tricked).encode())
    sent = [request(f"/v1/{verb}", body, headers={"Connection": "keep-alive"}) for body in bodies]
    responses = DOCUMENT["paths"][f"/v1/{verb}"]["post"]["responses"]
    for start in range(0, len(sent), 50):
        answers = exchange(attacked, b"".join(sent[start : start + 50]) + request("/healthz", method="GET"))
        assert len(answers) == len(sent[start : start + 50]) + 1
        for answer, body in zip(answers, bodies[start:], strict=False):
            assert answer.status < 500, (body, answer)
            assert str(answer.status) in responses, (body, answer)
            if answer.status != 200:
                told = responses[str(answer.status)]["content"]["application/problem+json"]["schema"]
                assert answer.problem()["code"] in told["allOf"][1]["properties"]["code"]["enum"]
