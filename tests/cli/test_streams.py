"""What the program ends with where its streams are closed, full, or read by nobody."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from functools import partial

import pytest

from diskyard import Diskyard
from tests.cli.program import PROGRAM, Ended, Program

NOT_WRITTEN = 37
NOBODY_READS = 141
COMMANDS = (
    ("image", "list", "fast"),
    ("--json", "image", "list", "fast"),
    ("image", "show", "fast/web"),
    ("repo", "list"),
    ("repo", "usage", "fast"),
    ("task", "list"),
    ("call", "listStorageRepositories"),
    ("--version",),
    ("--help",),
)


@pytest.fixture
def run(program: Program) -> Callable[..., Ended]:
    """Runs the program with streams as a test says; what goes elsewhere is not in the answer."""
    program.disk("fast", "web")

    def run(*words: str, closed: int | None = None, **streams: object) -> Ended:
        environment = {**os.environ, **program.daemons.environment(words, {})}
        done = subprocess.run(  # type: ignore[call-overload]  # the streams are named by each test
            [*PROGRAM, *words],
            env=environment,
            text=True,
            check=False,
            timeout=60,
            preexec_fn=None if closed is None else partial(os.close, closed),
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
        )
        assert "Traceback" not in (done.stderr or ""), done
        assert "Exception" not in (done.stderr or ""), done
        return Ended(done.returncode, done.stdout or "", done.stderr or "")

    return run


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_stream_changes_no_status(run: Callable[..., Ended], closed: int) -> None:
    for words in (*COMMANDS, ("repo", "check", "fast")):
        ended = run(*words, closed=closed)
        assert ended.status == 0, words
        assert ended.err == "" or "check" in words, words


def test_an_answer_that_cannot_be_written_is_said(run: Callable[..., Ended]) -> None:
    for words in COMMANDS:
        with open("/dev/full", "w", encoding="utf-8") as full:
            ended = run(*words, stdout=full)
        assert ended.status == NOT_WRITTEN, words
        assert "No space left on device" in ended.err, words


def test_an_answer_that_nobody_reads(run: Callable[..., Ended]) -> None:
    for words in COMMANDS:
        reading, writing = os.pipe()
        os.close(reading)
        ended = run(*words, stdout=writing)
        os.close(writing)
        assert (ended.status, ended.err) == (NOBODY_READS, ""), words


def test_notes_that_nobody_reads(run: Callable[..., Ended]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert run("repo", "check", "fast", stderr=writing).status == 0
    assert run("image", "show", "fast/nothing", stderr=writing).status == 18
    os.close(writing)
    with open("/dev/full", "w", encoding="utf-8") as full:
        assert run("repo", "check", "fast", stderr=full).status == 0
        assert run("image", "show", "fast/nothing", stderr=full).status == 18
        assert run("image", "nothing", stderr=full).status == 2


def test_what_is_to_be_done_is_done_to_its_end(program: Program, run: Callable[..., Ended]) -> None:
    """Also what goes on after the answer."""
    reading, writing = os.pipe()
    os.close(reading)
    assert run("image", "copy", "fast/web", "backup", "--name", "copy", stdout=writing).status == NOBODY_READS
    os.close(writing)
    assert run("disk", "create", "fast", "1M", "--name", "new", closed=1).status == 0
    with Diskyard() as yard:
        assert yard.check_storage_repository("backup") == []
        (copy,) = yard.list_images("backup").images
        assert copy.status == "optimized"
        assert {found.user_data["name"] for found in yard.list_images("fast").images} == {"web", "new"}


def test_parameters_from_a_stdin_that_is_closed(run: Callable[..., Ended]) -> None:
    ended = run("call", "listStorageRepositories", "-", closed=0)
    assert ended.status == 10
