"""The stream of events: what comes, in which order, and what a listener that was away gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diskyard import Diskyard
from diskyard.testing.daemon_process import DaemonProcess
from tests.http.test_daemon import connect

MiB = 1 << 20


@dataclass
class Got:
    id: str
    kind: str
    data: Any


class Listener:
    """Reads events as the wire has them."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def __next__(self) -> Got:
        fields: dict[str, str] = {}
        for line in self._lines:
            if not line and fields:
                return Got(fields["id"], fields["event"], json.loads(fields["data"]))
            name, colon, value = line.partition(": ")
            if name and colon:
                fields[name] = value
        raise StopIteration

    def __iter__(self) -> Iterator[Got]:
        return self

    def until(self, kind: str, **words: object) -> Got:
        for got in self:
            if got.kind == kind and words.items() <= got.data.items():
                return got
        raise AssertionError(words)


@contextmanager
def listening(daemon: DaemonProcess, query: str = "", last: str = "") -> Iterator[Listener]:
    headers = {"Last-Event-ID": last} if last else {}
    with daemon.client() as client, client.stream("GET", f"/v1/events{query}", headers=headers) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        yield Listener(stream.iter_lines())


def test_what_a_verb_does_is_told(daemon: DaemonProcess) -> None:
    with listening(daemon) as events:
        connect(daemon, "a")
        told = next(events)
        assert (told.kind, told.data["repositoryId"], told.data["change"]) == ("repository", "a", "connected")
        disk = daemon.call("createVirtualDisk", targetRepoId="a", size=MiB)
        made = next(events)
        assert made.kind == "image"
        host_id = daemon.call("getHostInfo")["hostID"]
        assert made.data == {
            "repositoryId": "a",
            "imageId": disk,
            "change": "created",
            "status": "optimized",
            "kind": "virtual_disk",
            "entry": made.data["entry"],
            "verb": "createVirtualDisk",
            "hostID": host_id,
        }
        daemon.call("removeImage", repositoryId="a", imageId=disk)
        assert events.until("image", imageId=disk, change="removed").data["status"] is None
        ended = events.until("task", verb="clean", state="done")
        tasks = daemon.call("listTasks")
        assert {"repositoryId": "a", **tasks[-1]} == ended.data


def test_only_what_was_asked_for(daemon: DaemonProcess) -> None:
    connect(daemon, "a")
    connect(daemon, "b")
    with listening(daemon, "?types=image&repositoryId=b") as events:
        daemon.call("createVirtualDisk", targetRepoId="a", size=MiB)
        made = daemon.call("createVirtualDisk", targetRepoId="b", size=MiB)
        daemon.call("disconnectStorageRepository", repoId="a")
        snapshot = daemon.call("createSnapshot", targetRepoId="b", baseVirtualDiskId=made)
        assert [next(events).data["imageId"] for _ in range(2)] == [made, snapshot]
    with daemon.client() as client:
        assert client.get("/v1/events?types=images").json()["code"] == "InvalidParameter"


def test_what_was_missed_comes_again(daemon: DaemonProcess) -> None:
    connect(daemon, "a")
    with listening(daemon) as events:
        first = daemon.call("createVirtualDisk", targetRepoId="a", size=MiB)
        last = events.until("image", imageId=first).id
    missed = [daemon.call("createVirtualDisk", targetRepoId="a", size=MiB) for _ in range(3)]
    for _ in range(2):  # as often as it is asked for
        with listening(daemon, "?types=image", last) as events:
            assert [next(events).data["imageId"] for _ in range(3)] == missed
    daemon.stop()
    daemon.start()
    with listening(daemon, "", last) as events:
        assert next(events).kind == "reset"  # another process has other events: look again
        after = daemon.call("createVirtualDisk", targetRepoId="a", size=MiB)
        events.until("image", imageId=after)


def test_what_other_hosts_do_is_told(daemon: DaemonProcess, tmp_path: Path) -> None:
    connect(daemon, "a")
    with listening(daemon, "?types=image") as events, Diskyard(state_folder=str(tmp_path / "x")) as other:
        other.connect_storage_repository("there", "localfs-1.0", daemon.place("a"))
        made = other.create_virtual_disk("there", MiB)
        told = events.until("image", imageId=made)
        assert (told.data["repositoryId"], told.data["verb"]) == ("a", "createVirtualDisk")
