"""What is different where a daemon does the work: who goes on and who is found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from diskyard import Diskyard
from tests.cli.program import Program, interrupt_when_running
from tests.transports import TransportName, chosen

MiB = 1 << 20
TOKEN, TOKEN_FILE = "DISKYARD_TOKEN", "DISKYARD_TOKEN_FILE"
_IMPORT = ("image", "import", "fast", "noise.raw", "--format", "raw", "--name", "noise")


@pytest.fixture
def transport(request: pytest.FixtureRequest) -> TransportName:
    """These tests are about daemons."""
    return chosen(request, ("unix", "tls"))


def daemon_url(program: Program) -> str:
    return program.daemons.environment(("repo", "list"), {}).get("DISKYARD_URL") or running_url()


def running_url() -> str:
    state_folder = Path(os.environ["DISKYARD_STATE_DIR"])
    return str(json.loads((state_folder / "daemon.json").read_text())["url"])


def test_no_wait_leaves_the_work_to_the_daemon(program: Program, noise: Path) -> None:
    made = program.run(*_IMPORT, "--rate", "12M", "--no-wait").id
    task = program.run("image", "status", made, "--json").json["taskId"]
    assert task is not None
    with program.yard() as yard:
        assert yard.wait_for_image("fast", made, timeout_s=60).status == "optimized"
    program.run("image", "export", "noise", "out.raw", "--format", "raw")
    assert (program.folder / "out.raw").read_bytes() == noise.read_bytes()


def test_verbs_that_answer_a_task_need_not_be_waited_for(program: Program, noise: Path) -> None:
    image = program.run(*_IMPORT).id
    asked = {
        "repositoryId": "fast",
        "imageId": image,
        "path": str(program.folder / "out.raw"),
        "format": "raw",
    }
    task = program.run("call", "exportImage", json.dumps(asked), "--no-wait").json
    assert task["state"] in ("queued", "running")
    with program.yard() as yard:
        assert yard.wait_for_task(task["taskId"], timeout_s=60).state == "done"
    assert (program.folder / "out.raw").read_bytes() == noise.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_daemon_goes_on_after_an_interruption(
    program: Program, noise: Path, number: signal.Signals
) -> None:
    status, out, err = interrupt_when_running(program.start(*_IMPORT, "--rate", "12M"), number)
    assert status == 128 + number
    assert err == ("diskyard: interrupted; the daemon goes on with the work: see 'diskyard task list'.\n")
    with program.yard() as yard:
        assert yard.wait_for_image("fast", out.strip(), timeout_s=60).status == "optimized"
    assert program.run("repo", "check", "fast", "--exit-code").out == ""


def test_a_task_that_fails_is_the_error_of_the_call(program: Program, noise: Path) -> None:
    with Diskyard() as yard:
        path = str(program.folder / "noise.raw")
        yard.import_image("fast", path, "raw", options={"auto_fix": False})
    (fix,) = program.call("checkStorageRepository", repositoryId="fast")
    noise.write_bytes(os.urandom(MiB))
    words = json.dumps({"repositoryId": "fast", "fix": fix})
    ended = program.run("call", "fixStorageRepository", words, status=None)
    assert ended.json["verb"] == "mend"
    assert json.loads(ended.err)["code"] == "UnsafeImage" or ended.status >= 10


def test_the_daemon_serves_and_ctrl_c_ends_that(program: Program) -> None:
    program.disk("fast", "web")
    child = program.start("image", "prepare", "web", "--serve", "nbd", "--owner", "vm1")
    assert child.stdout is not None
    uri = child.stdout.readline().strip()
    subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 4 0 1M", uri], check=True, capture_output=True)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=30) == 0
    gone = subprocess.run(["qemu-io", "-f", "raw", "-c", "read 0 1M", uri], check=False, capture_output=True)
    assert gone.returncode != 0
    assert program.run("image", "show", "web", "--json").json["attachments"] == []
    program.reads("fast/web", 4, "0", "1M")


def test_serving_by_call_outlives_the_call_where_it_is_not_waited_for(program: Program) -> None:
    disk = program.call("createVirtualDisk", targetRepoId="fast", size=MiB)
    asked = {"repositoryId": "fast", "imageId": disk, "options": {"serve": "nbd"}}
    uri = program.run("call", "prepareImage", json.dumps(asked), "--no-wait").json["nbdUri"]
    subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 4 0 1M", uri], check=True, capture_output=True)
    program.call("teardownImage", repositoryId="fast", imageId=disk)


def test_where_a_command_runs(program: Program) -> None:
    def listed(*words: str, url: str) -> list[str]:
        return [info["repoId"] for info in program.run(*words, "--json", DISKYARD_URL=url).json]

    url = daemon_url(program)
    named = ("--url", url)
    for words in ((*named, "repo", "list"), ("repo", *named, "list"), ("repo", "list", *named)):
        assert listed(*words, url="unix:///nowhere/d.sock") == ["fast", "backup"]
    # Nobody is asked: the URL of the environment would be an error.
    assert listed("--embedded", "repo", "list", url="nonsense") == ["fast", "backup"]
    assert "nonsense" in program.run("repo", "list", DISKYARD_URL="nonsense", status=10).err
    program.run("repo", "list", "--embedded", "--url", url, status=10)
    gone = json.loads(program.run("repo", "list", "--json", "--url", "unix:///nowhere/d.sock", status=17).err)
    assert "unix:///nowhere/d.sock" in gone["message"]
    assert "diskyard serve" in gone["advice"]


def test_a_daemon_that_was_killed_is_not_found(program: Program) -> None:
    program.run("repo", "list")
    program.daemons.kill()
    listed = program.alone("repo", "list", "--json", DISKYARD_URL="").json
    assert [info["repoId"] for info in listed] == ["fast", "backup"]


def test_a_file_of_a_daemon_that_cannot_be_read(unconnected: Program) -> None:
    path = Path(os.environ["DISKYARD_STATE_DIR"]) / "daemon.json"
    path.write_text("{")
    error = unconnected.alone("repo", "list", status=37).err
    assert str(path) in error
    assert "--embedded" in error
    assert unconnected.alone("repo", "list", "--embedded").out


def test_tokens_of_the_environment(program: Program, tmp_path: Path) -> None:
    def listed(environment: dict[str, str], status: int = 0) -> str:
        return program.run("repo", "list", status=status, stdin="", **environment).err

    if program.daemons.transport != "tls":
        listed({TOKEN: "nonsense"})  # not asked for on the Unix socket
        return
    file = tmp_path / "token"
    file.write_text(program.daemons.environment(("repo", "list"), {})[TOKEN] + "\n")
    listed({TOKEN: "", TOKEN_FILE: str(file)})
    assert "token" in listed({TOKEN: "wrong", TOKEN_FILE: str(file)}, 33)
    listed({TOKEN: ""}, 33)
    listed({TOKEN: "a b"}, 10)
    listed({TOKEN: "", TOKEN_FILE: str(tmp_path / "none")}, 10)
    assert "cannot be trusted" in listed({"DISKYARD_CA_FILE": ""}, 10)
    listed({"DISKYARD_CA_FILE": str(file)}, 10)
