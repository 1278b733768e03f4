"""Logs and the audit trail: every line is one line, names its request, and forges none."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from diskyard.caller import CALLER, Caller
from diskyard.daemon.audit import Audit
from diskyard.daemon.config import LogConfig
from diskyard.daemon.logs import LogHandler, logger
from diskyard.daemon.tokens import Tokens
from diskyard.http.audited import AuditedCall

NAME = "diskyard.test-of-logs"
FORGED = 'ok\n{"message": "forged"}\r\x1b[2J\u2028\x85\x00'


class Lines(io.StringIO):
    """What was logged, without the standard library's own way for what it cannot log."""

    @property
    def text(self) -> list[str]:
        return self.getvalue().splitlines()

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text]


def logged(config: LogConfig, name: str = NAME) -> Iterator[Lines]:
    lines = Lines()
    handler, to = LogHandler(config, lines), logging.getLogger(name)
    to.addHandler(handler)
    to.setLevel(logging.INFO)
    to.propagate = False
    yield lines
    to.removeHandler(handler)
    to.setLevel(logging.NOTSET)
    to.propagate = True


@pytest.fixture
def as_json() -> Iterator[Lines]:
    yield from logged(LogConfig())


@pytest.fixture
def as_text() -> Iterator[Lines]:
    yield from logged(LogConfig(format="text"))


def test_a_line_of_ours_and_one_of_the_standard_library(as_json: Lines) -> None:
    logger(NAME).info("task ended", taskId="x", moved_bytes=5)
    logging.getLogger(NAME + ".deeper").warning("%d of %s", 3, "them", extra={"color_message": "red"})
    logger(NAME).debug("not at this level")
    ours, theirs = as_json.json
    assert list(ours) == ["time", "level", "logger", "message", "taskId", "moved_bytes"]
    assert ours["time"].endswith("+00:00")
    assert (ours["level"], ours["logger"], ours["message"], ours["moved_bytes"]) == (
        "info", NAME, "task ended", 5,
    )  # fmt: skip
    assert theirs == {
        "time": theirs["time"], "level": "warning", "logger": NAME + ".deeper", "message": "3 of them",
    }  # fmt: skip


def test_the_request_and_who_sent_it_are_in_every_line(as_json: Lines) -> None:
    token = CALLER.set(Caller("token:ci", "r-1"))
    try:
        logger(NAME).info("one")
        logging.getLogger(NAME).info("two")
    finally:
        CALLER.reset(token)
    logger(NAME).info("three")
    assert [(line.get("requestId"), line.get("actor")) for line in as_json.json] == [
        ("r-1", "token:ci"), ("r-1", "token:ci"), (None, None),
    ]  # fmt: skip


def test_nothing_that_is_given_makes_a_line(as_json: Lines) -> None:
    logger(NAME).info(FORGED, value=FORGED, level="x", logger=FORGED, inside={"a": [FORGED]}, odd=b"\n")
    logging.getLogger(NAME).info("%s", FORGED)
    assert len(as_json.text) == 2
    assert as_json.getvalue().isascii()
    ours, theirs = as_json.json
    assert ours["message"] == ours["value"] == ours["inside"]["a"][0] == theirs["message"] == FORGED
    assert (ours["level"], ours["logger"]) == ("info", NAME)


@pytest.mark.parametrize("form", ["json", "text"])
def test_half_a_character_is_written_as_what_it_is(form: Literal["json", "text"]) -> None:
    # Not logged: a test's report, in which what was logged is, could not be sent to who collects it.
    record = logging.makeLogRecord({"name": NAME, "levelname": "INFO", "msg": "\ud800"})
    line = LogHandler(LogConfig(format=form), io.StringIO()).format(record)
    assert "\\ud800" in line
    line.encode()


def test_nothing_that_is_given_makes_a_line_for_people(as_text: Lines) -> None:
    logger(NAME).info(FORGED, value=FORGED, inside={"a": [FORGED]}, plain="fast/web", n=5, spaced="a b=c")
    logging.getLogger(NAME).info("%s", FORGED)
    assert len(as_text.text) == 2
    assert as_text.getvalue().replace("\n", "").isprintable()
    first = as_text.text[0]
    assert f"info    {NAME}: ok\\n" in first
    assert first.endswith('plain=fast/web n=5 spaced="a b=c"')


def test_an_error_is_one_line_of_json_and_marked_lines_for_people(as_json: Lines, as_text: Lines) -> None:
    for log in (logger(NAME), logging.getLogger(NAME)):
        try:
            raise ValueError("no\nforged line")
        except ValueError:
            log.exception("failed")
    assert [line["message"] for line in as_json.json] == ["failed", "failed"]
    assert all("ValueError: no\nforged line" in line["exception"] for line in as_json.json)
    begun = [line for line in as_text.text if not line.startswith("    | ")]
    assert len(begun) == 2
    assert as_text.text.count("    | forged line") == 2


def test_a_token_that_gets_into_a_line_does_not_stay_there(as_json: Lines, state_dir: Path) -> None:
    _, text = Tokens(str(state_dir)).create("ci", "admin")
    logger(NAME).info(f"got {text}", header=f"Bearer {text}")
    logging.getLogger(NAME).info("%r", {"authorization": text.encode()})
    assert text[12:] not in as_json.getvalue()
    assert as_json.getvalue().count(f"{text[:12]}REMOVED") == 3


PROGRAM = """
import logging, sys, threading, warnings
from diskyard.daemon.config import LogConfig
from diskyard.daemon.logs import configure, logger
configure(LogConfig(level="debug"))
configure(LogConfig(level="error"))
logging.getLogger("uvicorn.error").info("quiet")
logging.getLogger("uvicorn.error").error("loud")
logger("diskyard.audit").info("call")
def fail():
    raise ValueError("in a thread")
thread = threading.Thread(target=fail, name="t")
thread.start()
thread.join()
raise KeyError("at the end")
"""


def test_a_process_says_everything_in_lines() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ended.stdout == ""
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [(line["level"], line["logger"], line["message"]) for line in lines] == [
        ("error", "uvicorn.error", "loud"),
        ("info", "diskyard.audit", "call"),
        ("error", "diskyard", "a thread ended by an error"),
        ("critical", "diskyard", "ended by an error"),
    ]
    assert "in a thread" in lines[2]["exception"]
    assert "at the end" in lines[3]["exception"]


# -- the audit trail -----------------------------------------------------------------------


CALL = AuditedCall(
    request_id="r-1", actor="token:ci", peer="192.0.2.1", verb="removeImage", repository_id="fast",
    image_id=None, outcome="ok", duration_s=0.01234,
)  # fmt: skip


@pytest.fixture
def in_log() -> Iterator[Lines]:
    yield from logged(LogConfig(), "diskyard.audit")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_calls_are_appended_to_the_file(tmp_path: Path, in_log: Lines) -> None:
    path = tmp_path / "audit.jsonl"
    audit = Audit(str(path))
    audit.note(CALL)
    audit.close()
    audit = Audit(str(path))
    audit.note(replace(CALL, actor="", verb="", repository_id=None, outcome="Unauthorized"))
    audit.close()
    first, second = read(path)
    assert first == {
        "time": first["time"], "requestId": "r-1", "actor": "token:ci", "peer": "192.0.2.1",
        "verb": "removeImage", "repositoryId": "fast", "imageId": None, "taskIds": [], "outcome": "ok",
        "duration_ms": 12.3,
    }  # fmt: skip
    assert (second["outcome"], second["actor"]) == ("Unauthorized", "")
    assert stat.S_IMODE(path.stat().st_mode) & ~0o640 == 0
    assert in_log.text == []


def test_without_a_file_calls_go_to_the_log(in_log: Lines) -> None:
    Audit().note(CALL)
    (line,) = in_log.json
    assert (line["logger"], line["verb"], line["actor"]) == ("diskyard.audit", "removeImage", "token:ci")


def test_nothing_that_callers_send_makes_a_line(tmp_path: Path, in_log: Lines) -> None:
    path = tmp_path / "audit.jsonl"
    call = replace(
        CALL, actor=FORGED, repository_id=FORGED, image_id=FORGED, request_id=FORGED, peer="x" * 9999
    )
    audit = Audit(str(path))
    audit.note(call)
    audit.close()
    assert path.read_bytes().count(b"\n") == 1
    assert path.read_bytes().isascii()
    (line,) = read(path)
    assert line["repositoryId"] == FORGED
    assert len(line["peer"]) == 255
    Audit().note(call)
    assert len(in_log.text) == 1


def test_a_renamed_file_is_left_at_a_reload(tmp_path: Path) -> None:
    path, old = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    audit = Audit(str(path))
    audit.note(replace(CALL, verb="a"))
    path.rename(old)
    audit.note(replace(CALL, verb="b"))
    audit.reopen()
    audit.note(replace(CALL, verb="c"))
    audit.close()
    assert [line["verb"] for line in read(old)] == ["a", "b"]
    assert [line["verb"] for line in read(path)] == ["c"]


def test_what_is_in_the_files_place_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("target")
    for name in ("fifo", "link", ".", "nowhere/x"):
        with pytest.raises(OSError, match=re.escape(str(tmp_path))):
            Audit(str(tmp_path / name))
    assert not (tmp_path / "target").exists()


PROGRAM_ON_FULL = """
import resource, signal, sys
from diskyard.daemon.audit import Audit
from diskyard.daemon.config import LogConfig
from diskyard.daemon.logs import configure
from dataclasses import replace
from tests.daemon.test_logs import CALL
configure(LogConfig())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
audit = Audit(sys.argv[1])
audit.note(replace(CALL, verb="a"))
resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
for verb in "bc":
    audit.note(replace(CALL, verb=verb))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
audit.note(replace(CALL, verb="d"))
"""


def test_what_the_file_does_not_take_goes_to_the_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM_ON_FULL, str(path)], capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [(line["message"], line.get("verb")) for line in lines] == [
        ("the audit file cannot be written", None), ("call", "b"),
        ("the audit file cannot be written", None), ("call", "c"),
    ]  # fmt: skip
    whole = [line for line in path.read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["verb"] for line in whole] == ["a", "d"]
