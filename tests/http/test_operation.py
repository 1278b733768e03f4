"""What an operator sees of a daemon: its audit trail, its figures, its log, and what a reload takes over."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from diskyard.daemon.tokens import Tokens
from diskyard.testing.daemon_process import DaemonProcess, make_certificate

MiB = 1 << 20


@pytest.fixture
def audited(short_folder: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(short_folder, {"log": {"audit_file": str(short_folder / "audit")}}) as running:
        place = {"repoFormat": "localfs-1.0", "connectionParameters": running.place("fast")}
        running.call("createStorageRepository", **place)
        running.call("connectStorageRepository", repoId="fast", **place)
        yield running


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def until(is_so: Callable[[], object]) -> None:
    patience = threading.Event()
    for _ in range(3000):
        if is_so():
            return
        patience.wait(0.01)
    raise AssertionError


def test_who_did_what_is_kept(audited: DaemonProcess) -> None:
    unsaid = "not to be told"
    with audited.client(headers={"X-Request-ID": "r-1"}) as client:
        words = {"targetRepoId": "fast", "size": MiB, "userData": {"name": unsaid}}
        disk = client.post("/v1/createVirtualDisk", json=words).json()
        client.post("/v1/getImageInfo", json={"repositoryId": "fast", "imageId": disk})
        client.post("/v1/removeImage", json={"repositoryId": "fast", "imageId": disk.replace("-", "")})
        client.post("/v1/removeImage", json={"repositoryId": "no\nsuch", "imageId": disk})
    _, text = Tokens(str(audited.state_folder)).create("ci", "read")
    context = ssl.create_default_context(cafile=str(audited.ca_file))
    with httpx.Client(base_url=audited.tls_url, verify=context) as outside:
        outside.post("/v1/listTasks", headers={"Authorization": f"Bearer {text[:-1]}X"})
        outside.post("/v1/listTasks", headers={"Authorization": f"Bearer {text}"})
        forbidden = {"repositoryId": "fast", "imageId": disk}
        outside.post("/v1/removeImage", headers={"Authorization": f"Bearer {text}"}, json=forbidden)
    kept = lines(audited.folder / "audit")[2:]
    user = kept[0]["actor"]
    assert user.startswith("user:")
    assert [(line["actor"], line["verb"], line["outcome"]) for line in kept] == [
        (user, "createVirtualDisk", "ok"),
        (user, "removeImage", "InvalidParameter"),
        (user, "removeImage", "RepositoryNotConnected"),
        ("", "", "Unauthorized"),
        ("token:ci", "removeImage", "Forbidden"),
    ]
    assert (kept[0]["requestId"], kept[0]["repositoryId"], kept[0]["imageId"]) == ("r-1", "fast", disk)
    assert kept[3]["peer"] == "127.0.0.1"
    audited.stop()
    for path in (audited.folder / "audit", audited.log_path, audited.state_folder / "tokens.json"):
        assert unsaid not in path.read_text()
        assert text[12:] not in path.read_text()
    assert all(line["time"] and line["level"] and line["logger"] for line in lines(audited.log_path))


def test_which_tasks_a_call_was_about_is_kept(audited: DaemonProcess) -> None:
    disk = audited.call("createVirtualDisk", targetRepoId="fast", size=MiB)
    audited.call("removeImage", repositoryId="fast", imageId=disk)
    task_ids = [task["taskId"] for task in audited.call("listTasks")]
    audited.call("stopTask", taskId=task_ids[0])
    kept = [(line["verb"], line["taskIds"]) for line in lines(audited.folder / "audit")[2:]]
    assert kept == [("createVirtualDisk", []), ("removeImage", task_ids), ("stopTask", task_ids[:1])]


def test_a_rotated_audit_file(audited: DaemonProcess) -> None:
    path = audited.folder / "audit"
    path.rename(audited.folder / "audit.1")
    os.kill(audited.pid, signal.SIGHUP)
    until(path.exists)
    audited.call("createVirtualDisk", targetRepoId="fast", size=MiB)
    assert [line["verb"] for line in lines(path)] == ["createVirtualDisk"]
    assert len(lines(audited.folder / "audit.1")) == 2


def test_what_is_done_is_counted(audited: DaemonProcess) -> None:
    disk = audited.call("createVirtualDisk", targetRepoId="fast", size=MiB)
    audited.call("createSnapshot", targetRepoId="fast", baseVirtualDiskId=disk)
    audited.call("removeImage", repositoryId="fast", imageId=disk)

    def figure(name: str) -> str | None:
        with audited.client() as client:
            found = re.search(rf"(?m)^{re.escape(name)} (.*)$", client.get("/metrics").text)
        return None if found is None else found[1]

    assert figure('diskyard_requests_total{code="ok",verb="createSnapshot"}') == "1.0"
    until(lambda: figure('diskyard_tasks_ended_total{outcome="done",type="clean"}') == "1.0")
    until(lambda: figure('diskyard_repository_up{repository="fast"}') == "1.0")
    assert figure('diskyard_images{kind="snapshot",repository="fast",status="optimized"}') == "1.0"


def greets(daemon: DaemonProcess, ca_file: Path) -> bool:
    """Whether TLS shows a certificate that this one has signed."""
    host, port = daemon.tls_url.removeprefix("https://").split(":")
    context = ssl.create_default_context(cafile=str(ca_file))
    try:
        with socket.create_connection((host, int(port))) as plain:
            context.wrap_socket(plain, server_hostname="localhost").close()
    except ssl.SSLError:
        return False
    return True


def test_a_new_certificate_is_used_once_it_fits_its_key(audited: DaemonProcess, tmp_path: Path) -> None:
    key = audited.folder / "key.pem"
    old = tmp_path / "old.pem"
    old.write_bytes(audited.ca_file.read_bytes())
    new, new_key = make_certificate(tmp_path)
    audited.ca_file.write_bytes(new.read_bytes())
    os.kill(audited.pid, signal.SIGHUP)
    until(lambda: "the old file stays in use" in audited.log_path.read_text())
    assert greets(audited, old)
    key.write_bytes(new_key.read_bytes())
    os.kill(audited.pid, signal.SIGHUP)
    until(lambda: greets(audited, new))
    assert not greets(audited, old)


def test_systemd_is_told(short_folder: Path) -> None:
    path = str(short_folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(60)
        told = []
        with DaemonProcess(short_folder, environment={"NOTIFY_SOCKET": path}) as running:
            told.append(manager.recv(4096).decode())
            os.kill(running.pid, signal.SIGHUP)
            told += [manager.recv(4096).decode(), manager.recv(4096).decode()]
        told.append(manager.recv(4096).decode())
    assert [words.partition("\n")[0] for words in told] == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]


def test_refused_reads_and_changes_of_tokens_are_kept(audited: DaemonProcess) -> None:
    config = ["--config", str(audited.folder / "diskyard.toml")]

    def token(*words: str) -> str:
        command = [sys.executable, "-m", "diskyard.cli", "token", *words, *config]
        env = {**os.environ, "DISKYARD_STATE_DIR": str(audited.state_folder)}
        return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout.strip()

    text = token("create", "bound", "--scope", "read", "--repo", "other")
    context = ssl.create_default_context(cafile=str(audited.ca_file))
    headers = {"Authorization": f"Bearer {text}"}
    with httpx.Client(base_url=audited.tls_url, verify=context, headers=headers) as outside:
        outside.post("/v1/listImages", json={"repositoryId": "fast"})
        outside.post("/v1/getHostInfo", json={})  # what it may see is not kept
        outside.get("/metrics")
        token("revoke", "bound")
        outside.post("/v1/getHostInfo", json={})
    kept = lines(audited.folder / "audit")[2:]
    me = f"user:{pwd.getpwuid(os.getuid()).pw_name}"
    assert [(line["actor"], line["verb"], line["repositoryId"], line["outcome"]) for line in kept] == [
        (me, "createToken", None, "ok"),
        ("token:bound", "listImages", "fast", "Forbidden"),
        ("token:bound", "metrics", None, "Forbidden"),
        (me, "revokeToken", None, "ok"),
        ("", "", None, "Unauthorized"),
    ]
    assert [line["token"] for line in kept if line["verb"].endswith("Token")] == ["bound", "bound"]
    assert kept[0]["tokenId"] == text[3:11]
    assert text[12:] not in (audited.folder / "audit").read_text()


def test_a_daemon_prepares_for_full_disks_and_clocks_that_are_set_back(audited: DaemonProcess) -> None:
    """As it starts: room to revoke the tokens that there are, and the newest time."""
    audited.stop()
    Tokens(str(audited.state_folder)).create("ci", "read")
    made = [audited.state_folder / name for name in ("tokens.revoked", "newest-time")]
    for path in made:
        path.unlink()
    audited.start()
    deadline_s = time.monotonic() + 60
    while not all(path.exists() for path in made):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
