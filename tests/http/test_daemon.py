"""What a daemon answers, and what becomes of it when it ends, in order or not."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from diskyard.testing.daemon_process import DaemonProcess

MiB = 1 << 20


def connect(daemon: DaemonProcess, name: str) -> None:
    asked = {"repoFormat": "localfs-1.0", "connectionParameters": daemon.place(name)}
    daemon.call("createStorageRepository", **asked)
    daemon.call("connectStorageRepository", repoId=name, **asked)


def test_the_socket_is_for_its_owner_and_group(daemon: DaemonProcess) -> None:
    mode = daemon.socket_path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660


def test_problems_say_all(daemon: DaemonProcess) -> None:
    with daemon.client() as client:
        answer = client.post(
            "/v1/getImageInfo",
            json={"repositoryId": "none", "imageId": "11111111-2222-4333-8444-555555555555"},
            headers={"X-Request-ID": "mine-1"},
        )
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    found = answer.json()
    host_id = daemon.call("getHostInfo")["hostID"]
    assert found == {
        "type": "urn:diskyard:error:RepositoryNotConnected",
        "title": "No repository is connected under this repoId on this host.",
        "status": 404,
        "detail": "No repository is connected as 'none' (connected: none).",
        "code": "RepositoryNotConnected",
        "advice": "Connect it with connectStorageRepository (diskyard repo connect).",
        "retryable": False,
        "hostID": host_id,
        "repositoryId": "none",
        "requestId": "mine-1",
    }
    assert answer.headers["x-request-id"] == "mine-1"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/v1/nothing", 404), ("GET", "/nothing", 404), ("GET", "/v1/getHostInfo", 405)],
)
def test_what_is_not_there(daemon: DaemonProcess, method: str, path: str, status: int) -> None:
    with daemon.client() as client:
        answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["code"] == "InvalidParameter"
    assert ("allow" in answer.headers) == (status == 405)


def test_the_actor_is_in_the_log_of_the_repository(daemon: DaemonProcess) -> None:
    connect(daemon, "a")
    daemon.call("createVirtualDisk", targetRepoId="a", size=MiB)
    entries = sorted(Path(daemon.place("a")["path"], "log").glob("*.a"))
    actors = [json.loads(path.read_bytes().split(b"\n")[1])["actor"] for path in entries]
    assert actors[-1] == "user:root" if os.geteuid() == 0 else actors[-1].startswith("user:")


def test_it_ends_in_order(daemon: DaemonProcess) -> None:
    assert daemon.stop(signal.SIGTERM) == 0
    assert not daemon.socket_path.exists()
    assert not (daemon.state_folder / "daemon.json").exists()


def test_a_stream_of_events_ends_with_it(daemon: DaemonProcess) -> None:
    with daemon.client() as client, client.stream("GET", "/v1/events") as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith(":")
        assert daemon.stop(signal.SIGTERM) == 0
        assert list(lines) == [""]


def test_connections_are_there_again_after_a_kill(daemon: DaemonProcess) -> None:
    connect(daemon, "a")
    made = daemon.call("createVirtualDisk", targetRepoId="a", size=MiB)
    attached = daemon.call("prepareImage", repositoryId="a", imageId=made)
    daemon.stop(signal.SIGKILL)
    assert daemon.socket_path.exists()  # nobody removed it; the next one takes its place
    daemon.start()
    found = daemon.call("getImageInfo", repositoryId="a", imageId=made)
    assert [(at["owner"], at["mode"]) for at in found["attachments"]] == [(attached["owner"], "read_write")]
    again = daemon.call("prepareImage", repositoryId="a", imageId=made)
    assert again == attached


def test_a_second_daemon_on_the_same_state_folder_is_refused(daemon: DaemonProcess) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "diskyard.cli", "serve"],
        env={**os.environ, "DISKYARD_STATE_DIR": str(daemon.state_folder)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 10, done
    assert "Another daemon runs" in done.stderr
    daemon.call("getHostInfo")  # the first one goes on


def test_something_else_in_the_place_of_the_socket_stays(short_folder: Path) -> None:
    (short_folder / "d.sock").write_text("mine")
    daemon = DaemonProcess(short_folder)
    with pytest.raises(AssertionError, match="no socket is there"):
        daemon.start()
    assert (short_folder / "d.sock").read_text() == "mine"


# -- TLS -------------------------------------------------------------------------------------


def test_plain_http_does_not_work_on_the_tls_port(daemon: DaemonProcess) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(daemon.tls_url.replace("https:", "http:") + "/healthz")


def test_old_tls_is_refused(daemon: DaemonProcess) -> None:
    address = daemon.tls_url.removeprefix("https://")
    for version, status in (("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)):
        words = ["openssl", "s_client", "-connect", address, version, "-cipher", "DEFAULT@SECLEVEL=0"]
        done = subprocess.run(words, input=b"", capture_output=True, check=False)
        assert (done.returncode == 0) is status, (version, done.stderr)


@pytest.mark.parametrize(
    "header", ["", "Basic dXNlcjpwYXNz", "Bearer", "Bearer dy_00000000_x", "bearer \x80"]
)
def test_no_token_no_answer(daemon: DaemonProcess, header: str) -> None:
    import ssl

    context = ssl.create_default_context(cafile=str(daemon.ca_file))
    with httpx.Client(base_url=daemon.tls_url, verify=context) as client:
        headers = {b"Authorization": header.encode("latin-1")} if header else {}
        answer = client.post("/v1/getHostInfo", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["code"] == "Unauthorized"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/events", headers=headers).status_code == 401
        assert client.get("/metrics", headers=headers).status_code == 401


# -- transfer folders --------------------------------------------------------------------------


def refused(daemon: DaemonProcess, verb: str, **parameters: object) -> str:
    with daemon.client() as client:
        answer = client.post(f"/v1/{verb}", json=parameters)
    assert answer.status_code != 200
    return str(answer.json()["code"])


def test_import_and_export_stay_in_the_transfer_folders(daemon: DaemonProcess, tmp_path: Path) -> None:
    connect(daemon, "a")
    inside, outside = daemon.folder / "transfer", tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.raw").write_bytes(b"s" * MiB)
    (inside / "good.raw").write_bytes(b"g" * MiB)
    (inside / "link").symlink_to(outside)
    (inside / "link.raw").symlink_to(outside / "secret.raw")
    bad = ["/outside/secret.raw", "/transfer/link/secret.raw", "/transfer/../outside/secret.raw"]
    paths = [str(outside / "secret.raw"), *(str(daemon.folder) + path for path in bad), "/dev/zero"]
    for path in paths:
        assert refused(daemon, "importImage", targetRepoId="a", path=path, format="raw") == "PathNotAllowed"
    linked = {"targetRepoId": "a", "path": str(inside / "link.raw"), "format": "raw"}
    assert refused(daemon, "importImage", **linked) in ("PathNotAllowed", "InvalidParameter", "UnsafeImage")
    made = daemon.call("importImage", targetRepoId="a", path=str(inside / "good.raw"), format="raw")
    for path in [str(outside / "new.raw"), str(inside / "link" / "new.raw")]:
        asked = {"repositoryId": "a", "imageId": made, "path": path, "format": "raw"}
        assert refused(daemon, "exportImage", **asked) == "PathNotAllowed"
    assert sorted(path.name for path in outside.iterdir()) == ["secret.raw"]
    assert daemon.wait_for_image("a", made) == "optimized"
    asked = {"repositoryId": "a", "imageId": made, "path": str(inside / "new.raw"), "format": "raw"}
    assert daemon.wait_for_task(daemon.call("exportImage", **asked)["taskId"])["state"] == "done"
    assert (inside / "new.raw").read_bytes() == b"g" * MiB


# -- storage that hangs ------------------------------------------------------------------------


def test_a_connection_that_says_nothing_keeps_nobody_waiting(daemon: DaemonProcess) -> None:
    silent = [socket.socket(socket.AF_UNIX) for _ in range(200)]
    try:
        for one in silent:
            one.connect(str(daemon.socket_path))
            one.sendall(b"POST /v1/getHostInfo HTTP/1.1\r\nHost: d\r\n")
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(daemon.call("getHostInfo"))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(answers) == 8
    finally:
        for one in silent:
            one.close()
