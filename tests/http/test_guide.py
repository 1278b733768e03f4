"""The manager author's guide is run as written, against a real daemon."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from diskyard.http import openapi
from diskyard.service import VERBS
from diskyard.testing.daemon_process import DaemonProcess
from tests.http.guide import Block, blocks_of, matches_json, matches_text, mismatch, run

GUIDE = Path(__file__).parents[2] / "docs" / "http.md"
NEEDED = ("curl", "qemu-io")
PLAIN_WORDS = {"PATH", "HOME", "LANG", "TMPDIR"}


@pytest.mark.skipif(any(shutil.which(name) is None for name in NEEDED), reason=f"needs {', '.join(NEEDED)}")
def test_every_example_prints_what_the_page_shows(daemon: DaemonProcess, tmp_path: Path) -> None:
    blocks = blocks_of(GUIDE.read_text())
    transfer = daemon.folder / "transfer"
    environment = {
        **{name: value for name, value in os.environ.items() if name in PLAIN_WORDS},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SOCKET": str(daemon.socket_path),
        "IMAGES": daemon.place("images")["path"],
        "BACKUP": daemon.place("backup")["path"],
        "TRANSFER": str(transfer),
        "URL": daemon.tls_url,
        "CA": str(daemon.ca_file),
        "DISKYARD_STATE_DIR": str(daemon.state_folder),
    }
    printed = run(blocks, tmp_path, environment)
    wrong = [mismatch(block, text) for block, text in zip(blocks, printed, strict=True)]
    assert "\n".join(filter(None, wrong)) == ""


def test_the_page_names_verbs_and_paths_that_there_are() -> None:
    text = GUIDE.read_text()
    for path in openapi.document()["paths"]:
        assert path.startswith("/v1/") or path in text
    called = {word for block in blocks_of(text) for word in block.script.split() if word in VERBS}
    assert len(called) >= 20


def test_a_page_that_is_wrong_is_refused() -> None:
    for page in (
        "```json\n1\n```\n",
        "```sh\ntrue\n```\nwords\n```json\n1\n```\n",
        "```sh\ntrue\n```\n```text\n1\n```\n```text\n1\n```\n",
        "```sh\ntrue\n",
        "```python\n1\n```\n",
    ):
        with pytest.raises(AssertionError):
            blocks_of(page)


def test_an_example_that_fails_is_named(tmp_path: Path) -> None:
    page = "```sh\nx=1; echo $x\n```\n```text\n1\n```\n\n```sh\nfalse | true\n```\n"
    with pytest.raises(AssertionError, match="line 8: exit status 1"):
        run(blocks_of(page), tmp_path, {"PATH": os.environ["PATH"]})


def test_what_is_printed_is_compared() -> None:
    assert mismatch(Block(1, "", "a …\n"), "a b\nc\n") is None
    assert mismatch(Block(1, "", "a …\n"), "b\n") is not None
    assert mismatch(Block(1, ""), "b\n") is not None
    assert mismatch(Block(1, "", '{"a": 1, "…": "…"}', True), '{"a": 1, "b": 2}') is None
    assert mismatch(Block(1, "", '{"a": 1}', True), '{"a": 1, "b": 2}') is not None
    assert matches_json(["x-…", "…"], ["x-y", 1, 2])
    assert not matches_json([1], [1, 2])
    assert not matches_json([True], [1])
    assert not matches_text("a", "ab")
