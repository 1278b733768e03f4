"""What the description says of events is what a daemon sends."""

from __future__ import annotations

import json
from collections import Counter

import jsonschema_rs

from diskyard.http import openapi
from diskyard.testing.daemon_process import DaemonProcess
from tests.http.wire import connected, request

MiB = 1 << 20
END = b'"change":"disconnected"}\n\n'


def test_events_are_as_described(attacked: DaemonProcess) -> None:
    components = openapi.document()["components"]
    validators = {
        kind: jsonschema_rs.Draft202012Validator(
            {"$ref": f"#/components/schemas/{name}", "components": components}
        )
        for kind, name in {
            "task": "TaskEvent",
            "image": "ImageEvent",
            "repository": "RepositoryEvent",
        }.items()
    }
    with connected(attacked) as connection:
        connection.sendall(request("/v1/events", method="GET", version="1.0"))  # so that no chunks come
        received = connection.recv(1 << 16)
        place = {"repoFormat": "localfs-1.0", "connectionParameters": attacked.place("b")}
        attacked.call("createStorageRepository", **place)
        attacked.call("connectStorageRepository", repoId="b", **place)
        disk = attacked.call("createVirtualDisk", targetRepoId="a", size=MiB)
        copy = attacked.call("copyImage", targetRepoId="b", imageId=disk)
        assert attacked.wait_for_image("b", copy) == "optimized"
        attacked.call("setUserData", repositoryId="b", imageId=copy, userData=1)
        attacked.call("removeImage", repositoryId="b", imageId=copy, options={"AutoFix": False})
        attacked.call("disconnectStorageRepository", repoId="b")
        while not received.endswith(END):
            part = connection.recv(1 << 16)
            assert part, received
            received += part
    kinds: Counter[str] = Counter()
    for event in received.partition(b"\r\n\r\n")[2].decode().split("\n\n"):
        if event and not event.startswith(":"):
            lines = dict(line.split(": ", 1) for line in event.splitlines())
            assert list(lines) == ["id", "event", "data"]
            validators[lines["event"]].validate(json.loads(lines["data"]))
            kinds[lines["event"]] += 1
    assert kinds["repository"] == 2
    assert kinds["image"] >= 5
    assert kinds["task"] >= 2
