"""A command that was to make an image does not end well if the image was removed before it was whole."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.program import Program

_NOT_FOUND = 18


def remove_when_printed(program: Program, repo: str, child: subprocess.Popen[str]) -> str:
    """Remove the image whose id a command prints, and return what the command said at its end."""
    assert child.stdout is not None
    line = child.stdout.readline()
    image_id = json.loads(line)["imageId"] if line.startswith("{") else line.strip()
    program.run("image", "remove", f"{repo}/{image_id}")
    _, err = child.communicate(timeout=60)
    assert child.returncode == _NOT_FOUND, err
    assert image_id in err
    assert "removed before it was complete" in err
    return err


@pytest.mark.parametrize("as_json", [False, True])
def test_a_copy(program: Program, noise: Path, as_json: bool) -> None:
    program.run("image", "import", "fast", str(noise), "--format", "raw", "--name", "web")
    words = ["image", "copy", "fast/web", "backup", "--rate", "1M", *(["--json"] if as_json else [])]
    err = remove_when_printed(program, "backup", program.start(*words))
    assert not as_json or json.loads(err)["code"] == "ImageNotFound"
    assert program.run("repo", "check", "backup", "--json").json == []


def test_an_import(program: Program, noise: Path) -> None:
    words = ("image", "import", "fast", str(noise), "--format", "raw", "--rate", "1M")
    remove_when_printed(program, "fast", program.start(*words))


def test_a_call(program: Program, noise: Path) -> None:
    program.run("image", "import", "fast", str(noise), "--format", "raw", "--name", "web")
    source = program.run("image", "show", "fast/web", "--json").json["imageId"]
    parameters = {"targetRepoId": "backup", "imageId": source, "options": {"rateLimit": 1 << 20}}
    child = program.start("call", "copyImage", json.dumps(parameters))
    assert child.stdout is not None
    copy = json.loads(child.stdout.readline())
    program.run("image", "remove", f"backup/{copy}")
    _, err = child.communicate(timeout=60)
    assert child.returncode == _NOT_FOUND, err
    assert json.loads(err)["imageId"] == copy


def test_a_copy_that_was_whole_before(program: Program, noise: Path) -> None:
    """Its work is done: what becomes of the image later is no failure."""
    noise.write_bytes(os.urandom(1 << 20))
    program.run("image", "import", "fast", str(noise), "--format", "raw", "--name", "web")
    program.run("image", "copy", "fast/web", "backup", "--name", "copy")
    program.run("image", "remove", "backup/copy")
