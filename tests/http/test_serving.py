"""Images that a daemon serves over NBD: how many, and what is left of them when it is killed."""

from __future__ import annotations

import fcntl
import os
import pwd
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diskyard import errors
from diskyard.caller import CALLER, Caller
from diskyard.host import Host
from diskyard.host.calls import noted
from diskyard.host.commands import Child, Commands
from diskyard.model import requests as ask
from diskyard.model.options import PrepareOptions
from diskyard.service import Service, call
from diskyard.service.verbs import run_unwatched
from diskyard.testing.daemon_process import DaemonProcess

_MOST = 2
_AT_MOST_S = 60.0
_LOOK_S = 0.02


@pytest.fixture
def serving(short_folder: Path) -> Iterator[DaemonProcess]:
    """A daemon that may serve few images, with a folder of its own for temporary files."""
    (short_folder / "t").mkdir()
    tables = {"limits": {"served_images": _MOST}}
    with DaemonProcess(short_folder, tables, {"TMPDIR": str(short_folder / "t")}) as daemon:
        asked = {"repoFormat": "localfs-1.0", "connectionParameters": daemon.place("a")}
        daemon.call("createStorageRepository", **asked)
        daemon.call("connectStorageRepository", repoId="a", **asked)
        yield daemon


def _disks(daemon: DaemonProcess, count: int) -> list[str]:
    return [daemon.call("createVirtualDisk", targetRepoId="a", size=1 << 20) for _ in range(count)]


def _serve(daemon: DaemonProcess, disk: str) -> Any:
    asked = {"repositoryId": "a", "imageId": disk, "options": {"serve": "nbd"}}
    with daemon.client() as client:
        return client.post("/v1/prepareImage", json=asked)


def test_no_more_images_are_served_than_may_be(serving: DaemonProcess) -> None:
    """Whoever asks for one more is told what to do, and it is not attached; who goes makes room."""
    disks = _disks(serving, _MOST + 1)
    for disk in (*disks[:_MOST], disks[0]):
        assert _serve(serving, disk).status_code == 200
    refused = _serve(serving, disks[_MOST])
    assert (refused.status_code, refused.json()["code"]) == (429, "TooManyRequests")
    assert "served_images" in refused.json()["advice"]
    info = serving.call("getImageInfo", repositoryId="a", imageId=disks[_MOST])
    assert info["attachments"] == []
    serving.call("teardownImage", repositoryId="a", imageId=disks[0])
    assert _serve(serving, disks[_MOST]).status_code == 200


def test_a_token_has_a_part_of_the_servers_and_leaves_others_theirs(short_folder: Path) -> None:
    """Of four it has one, all tokens have three, and who goes makes room for another of the same token."""
    service = Service(state_folder=str(short_folder / "s"), served_images=4)
    place = {"path": str(short_folder / "place")}
    (short_folder / "place").mkdir()
    asked = {"repoFormat": "localfs-1.0", "connectionParameters": place}
    call(service, "createStorageRepository", asked)
    call(service, "connectStorageRepository", {"repoId": "a", **asked})
    disks = [call(service, "createVirtualDisk", {"targetRepoId": "a", "size": 1 << 20}) for _ in range(5)]
    advice: list[str] = []

    def serve(actor: str, disk: str) -> bool:
        who = CALLER.set(Caller(actor, is_limited=actor.startswith("token:")))
        try:
            run_unwatched(
                service,
                ask.PrepareImage(
                    repository_id="a", image_id=disk, options=PrepareOptions(serve="nbd", owner=actor)
                ),
            )
        except errors.TooManyRequests as refused:
            advice.append(refused.advice)
            return False
        finally:
            CALLER.reset(who)
        return True

    try:
        assert serve("token:greedy", disks[0])
        assert not serve("token:greedy", disks[1])
        assert serve("token:greedy", disks[0])  # served already
        assert serve("token:b", disks[1])
        assert serve("token:c", disks[2])
        assert not serve("token:d", disks[3])  # one is left for the Unix socket
        assert serve("user:root", disks[3])
        assert not serve("user:root", disks[4])
        # Whoever ends it, the part of whom it was served to is free again.
        options = {"owner": "token:greedy"}
        call(service, "teardownImage", {"repositoryId": "a", "imageId": disks[0], "options": options})
        assert serve("token:greedy", disks[4])
        assert ["served_images" in words for words in advice] == [True] * 3
    finally:
        service.close()


class _HangingOnce(Commands):
    """Starts the first program that serves images only when its storage answers."""

    def __init__(self) -> None:
        self.hangs, self.answers = threading.Event(), threading.Event()

    def start(self, words: Sequence[str], **given: Any) -> Child:
        if words[0] == "qemu-storage-daemon" and not self.hangs.is_set():
            self.hangs.set()
            with noted("read", "a volume"):
                self.answers.wait(_AT_MOST_S)
        return super().start(words, **given)


def test_storage_that_hangs_while_an_image_is_served_keeps_nobody_else_waiting(short_folder: Path) -> None:
    commands = _HangingOnce()
    host = replace(Host.real(), commands=commands)
    service = Service(host, state_folder=str(short_folder / "s"), storage_timeout_s=1.0)
    disks = {}
    for repo_id in ("a", "b"):
        (short_folder / repo_id).mkdir()
        asked = {"repoFormat": "localfs-1.0", "connectionParameters": {"path": str(short_folder / repo_id)}}
        call(service, "createStorageRepository", asked)
        call(service, "connectStorageRepository", {"repoId": repo_id, **asked})
        disks[repo_id] = [
            call(service, "createVirtualDisk", {"targetRepoId": repo_id, "size": 1 << 20}) for _ in range(2)
        ]

    def serve(repo_id: str, number: int) -> Any:
        options = {"serve": "nbd"}
        asked = {"repositoryId": repo_id, "imageId": disks[repo_id][number], "options": options}
        return call(service, "prepareImage", asked)

    def teardown(repo_id: str, number: int) -> None:
        call(service, "teardownImage", {"repositoryId": repo_id, "imageId": disks[repo_id][number]})

    with ThreadPoolExecutor(1) as beside:
        try:
            with pytest.raises(errors.RepositoryUnavailable):
                serve("a", 0)
            assert commands.hangs.is_set()
            assert beside.submit(serve, "b", 0).result(_AT_MOST_S / 2)["nbdUri"]
            beside.submit(teardown, "b", 0).result(_AT_MOST_S / 2)
            # Who wants the same of the repository that hangs is told, and does not wait for ever.
            for work in (serve, teardown):
                with pytest.raises(errors.RepositoryUnavailable):
                    beside.submit(work, "a", 1).result(_AT_MOST_S / 2)
        finally:
            commands.answers.set()
    deadline_s = time.monotonic() + _AT_MOST_S
    while True:
        try:
            teardown("a", 0)
        except errors.RepositoryUnavailable:
            assert time.monotonic() < deadline_s
            time.sleep(_LOOK_S)
        else:
            break
    assert serve("a", 1)["nbdUri"]
    service.close()
    assert not list((short_folder / "s" / "nbd").iterdir())


def _socket_in(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "nbd"))


def _folder(path: Path, mode_bits: int = 0o700) -> Path:
    path.mkdir()
    _socket_in(path)
    path.chmod(mode_bits)
    return path


def test_what_a_killed_daemon_left_is_removed_and_nothing_else(
    serving: DaemonProcess, short_folder: Path
) -> None:
    """What is in use, leads elsewhere, holds more, or is or may be somebody else's stays as it is."""
    temporary = short_folder / "t"
    for disk in _disks(serving, _MOST):
        assert _serve(serving, disk).status_code == 200
    left = set(temporary.iterdir())
    assert len(left) == _MOST
    assert {path.stat().st_mode & 0o7777 for path in left} == {0o700}
    names = serving.state_folder / "nbd"
    assert len(list(names.iterdir())) == _MOST
    serving.stop(signal.SIGKILL)
    assert left <= set(temporary.iterdir())

    elsewhere = _folder(short_folder / "elsewhere")
    (temporary / "diskyard-nbd-link0000").symlink_to(elsewhere)
    _folder(temporary / "diskyard-nbd-entered0", 0o755)
    (_folder(temporary / "diskyard-nbd-holds000") / "file").write_text("mine")
    (temporary / "diskyard-nbd-file0000").write_text("mine")
    _folder(temporary / "another-program")
    locked = os.open(_folder(temporary / "diskyard-nbd-locked00"), os.O_RDONLY)
    fcntl.flock(locked, fcntl.LOCK_EX)
    if os.geteuid() == 0:
        other = _folder(temporary / "diskyard-nbd-other000")
        os.chown(other, pwd.getpwnam("nobody").pw_uid, -1)
    kept = {path: sorted(path.iterdir()) if path.is_dir() else None for path in temporary.iterdir()}
    for path in left:
        del kept[path]

    # Of a process with another /tmp: its socket is there, though not for the daemon.
    unseen = names / "of-another-namespace"
    unseen.symlink_to("/nowhere/tmp/diskyard-nbd-unseen00/nbd")

    serving.start()
    deadline_s = time.monotonic() + _AT_MOST_S
    while (
        left & set(temporary.iterdir()) or list(names.iterdir()) != [unseen]
    ) and time.monotonic() < deadline_s:
        time.sleep(_LOOK_S)
    found = {path: sorted(path.iterdir()) if path.is_dir() else None for path in temporary.iterdir()}
    assert found == kept
    assert list(names.iterdir()) == [unseen]
    assert [path.name for path in elsewhere.iterdir()] == ["nbd"]
    os.close(locked)
