from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from diskyard.errors import CODES
from tests.cli.program import Program

MiB = 1 << 20


def test_results_are_json_and_none_is_null(program: Program) -> None:
    disk = program.call("createVirtualDisk", targetRepoId="fast", size=MiB, userData={"a": "ü"})
    info = program.call("getImageInfo", repositoryId="fast", imageId=disk)
    assert info["userData"] == {"a": "ü"}
    assert program.call("removeImage", repositoryId="fast", imageId=disk) is None
    assert program.run("call", "getHostInfo", DISKYARD_HOST_ID="kvm7").json["hostID"] == "kvm7"
    asked = json.dumps({"repositoryId": "fast"})
    assert program.run("call", "listImages", "-", stdin=asked).json == {"images": [], "nextCursor": None}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("noSuchVerb",), "InvalidParameter"),
        (("getTask", "{}"), "InvalidParameter"),
        (("getTask", "{"), "InvalidParameter"),
        (("getTask", '{"taskId": "x"}'), "TaskNotFound"),
        (("listImages", '{"repositoryId": "slow"}'), "RepositoryNotConnected"),
        (("exportImage", "{}", "--no-wait"), "InvalidParameter"),
        (
            ("removeImage", '{"repositoryId": "fast", "imageId": 7, "options": []}', "--no-wait"),
            "InvalidParameter",
        ),
    ],
)
def test_errors_are_one_json_object_on_stderr(program: Program, words: tuple[str, ...], code: str) -> None:
    ended = program.run("call", *words, status=CODES[code].exit_status)
    error = json.loads(ended.err)
    assert error["code"] == code
    assert error["message"]
    assert ended.out == ""


@pytest.mark.embedded("--no-wait leaves the work to nobody; a daemon does it (test_daemon.py)")
def test_no_wait_leaves_the_fixes_listed(program: Program, noise: Path) -> None:
    asked = {"targetRepoId": "fast", "path": str(noise), "format": "raw"}
    made = program.run("call", "importImage", json.dumps(asked), "--no-wait").json
    assert program.call("getImageStatus", repositoryId="fast", imageId=made)["status"] == "broken"
    (fix,) = program.call("checkStorageRepository", repositoryId="fast")
    task = program.call("fixStorageRepository", repositoryId="fast", fix=fix)
    # Printed at once; the command itself waited.
    assert task["state"] in ("queued", "running", "done")
    assert program.call("getTask", taskId=task["taskId"])["state"] == "done"
    assert program.call("getImageStatus", repositoryId="fast", imageId=made)["status"] == "optimized"


@pytest.mark.embedded("--no-wait leaves the work to nobody; a daemon does it (test_daemon.py)")
def test_a_task_that_fails_is_the_error_of_the_call(program: Program, noise: Path) -> None:
    asked = json.dumps({"targetRepoId": "fast", "path": str(noise), "format": "raw"})
    program.run("call", "importImage", asked, "--no-wait")
    (fix,) = program.call("checkStorageRepository", repositoryId="fast")
    noise.write_bytes(os.urandom(MiB))
    ended = program.run(
        "call", "fixStorageRepository", json.dumps({"repositoryId": "fast", "fix": fix}), status=None
    )
    assert ended.json["verb"] == "mend"
    error = json.loads(ended.err)
    assert ended.status == CODES[error["code"]].exit_status


def test_serving_stays_until_it_is_interrupted(program: Program) -> None:
    disk = program.call("createVirtualDisk", targetRepoId="fast", size=MiB)
    asked = {"repositoryId": "fast", "imageId": disk, "options": {"serve": "nbd"}}
    child = program.start("call", "prepareImage", json.dumps(asked))
    assert child.stdout is not None
    assert json.loads(child.stdout.readline())["nbdUri"].startswith("nbd+unix:///")
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=30) == ("", "")
    assert child.returncode == 130
