"""The program as a whole: help, terminals, completion, bad input, and how quickly it starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from diskyard.cli.program import program as commands
from tests.cli.program import PROGRAM, Program


@pytest.fixture
def program(program: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program; its daemon, if it has one, is used by what a test here starts by itself, too."""
    for name, value in program.daemons.environment(("repo", "list"), {}).items():
        monkeypatch.setenv(name, value)
    return program


def every_command(group: click.Group = commands, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("words", list(every_command()), ids=" ".join)
def test_every_command_has_help_with_an_example_and_takes_json(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(commands, [*words, "--help"], prog_name="diskyard")
    assert shown.exit_code == 0
    assert f"diskyard {' '.join(words)}" in shown.output.partition("Example:")[2]
    assert "--json" in shown.output
    command: click.Command = commands
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    assert command.help
    silent = [
        option.name for option in command.params if isinstance(option, click.Option) and not option.help
    ]
    assert silent == []


def test_help_needs_no_state_folder(unconnected: Program) -> None:
    assert "Commands:" in unconnected.run("--help", DISKYARD_STATE_DIR="/proc/nowhere").out
    assert unconnected.run("--version").out.startswith("diskyard ")


@pytest.mark.embedded("a daemon's client has no state folder of its own")
def test_a_state_folder_that_cannot_be_made(unconnected: Program) -> None:
    error = unconnected.run("repo", "list", DISKYARD_STATE_DIR="/proc/nowhere", status=37).err
    assert "/proc/nowhere" in error


@pytest.mark.parametrize(
    "words",
    [
        ("nix",),
        ("disk", "create", "fast", "12Q"),
        ("image", "show"),
        ("image", "show", "a", "--nix"),
        ("disk",),
    ],
)
def test_a_command_line_that_cannot_be_read(unconnected: Program, words: tuple[str, ...]) -> None:
    ended = unconnected.run(*words, status=2)
    assert ended.out == ""
    assert ended.err


def test_words_that_are_no_text(unconnected: Program) -> None:
    assert "not UTF-8" in unconnected.run("image", "show", "\udcff", status=10).err


def test_a_reader_that_goes_away(program: Program) -> None:
    words = " ".join(PROGRAM)
    done = subprocess.run(
        ["bash", "-c", f"{words} repo list | true; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )
    assert done.stderr == ""


def test_a_terminal_gets_tables_that_fit_it(program: Program) -> None:
    program.disk("fast", "web")
    sent = program.on_terminal("image", "list")
    assert "fast/web" in sent
    assert "\x1b[1m" in sent


def test_a_progress_bar_is_drawn_on_a_terminal_only(program: Program, noise: Path) -> None:
    words = ("image", "import", "fast", "noise.raw", "--format", "raw")
    sent = program.on_terminal(*words, "--rate", "14M")
    assert "mend 1/1" in sent
    assert "MiB/s" in sent
    assert program.run(*words).err == ""


def test_completion(program: Program) -> None:
    program.disk("fast", "web")
    assert "_DISKYARD_COMPLETE=bash_complete" in program.run("completion", "bash").out

    def offered(line: str) -> list[str]:
        words = line.split(" ")
        ended = program.run(
            _DISKYARD_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1)
        )
        return [item.partition(",")[2] for item in ended.out.splitlines()]

    assert offered("diskyard ima") == ["image"]
    assert offered("diskyard repo check f") == ["fast"]
    assert offered("diskyard image show fa") == ["fast/"]
    assert offered("diskyard image show fast/w") == ["fast/web"]
    assert offered("diskyard call createV") == ["createVirtualDisk"]


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--help"], ["msgspec", "rich", "asyncio", "diskyard.client", "diskyard.service"]),
        (["image", "list"], ["rich", "asyncio", "qemu", "nbd", "importlib.metadata"]),
    ],
)
def test_it_starts_with_what_it_needs(program: Program, words: list[str], absent: list[str]) -> None:
    script = (
        "import sys; from diskyard.cli.program import run; run(sys.argv[1:]); "
        "print(*(set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    assert set(absent) & set(done.stderr.split()) == set()
