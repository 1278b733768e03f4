"""What commands print of what others wrote: nothing in it acts on a terminal, or turns text around."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from diskyard import Diskyard
from diskyard.cli import values
from tests.cli.program import Program

MiB = 1 << 20
#: As in names, paths and userData of callers who mean to fool whoever reads them.
MARKS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
BREAKS = "\u0085\u2028\u2029"
CONTROLS = "\x1b]0;PWN\x07\x1b[2J\x7f\x9b31m\x90\x9d"
EVIL = f"a{CONTROLS}b{MARKS}c{BREAKS}d\nINJECTED LINE\U000e0001\U0001f600"
HIDDEN = [c for c in EVIL if not c.isprintable() and c != "\n"]
CLI = Path(values.__file__).parent
#: All others print by ``say``, ``print_json`` and the tables and fields beside them.
MAY_ECHO = {"output.py", "listing.py", "completion.py"}


def test_json_keeps_what_it_says() -> None:
    told = {EVIL: [EVIL, "plain", "\U0010ffff"]}
    text = values.json_text(told)
    assert text.isprintable()
    assert json.loads(text) == told
    assert "\U0001f600" in text  # what people can see stays as it is


@pytest.mark.parametrize("code", [0x202A, 0x2066, 0x200E, 0x061C, 0x80, 0x9F, 0x2028, 0x2029, 0x7F, 0x1B])
def test_each_is_escaped_as_json_does(code: int) -> None:
    assert values.json_text(chr(code)) == f'"\\u{code:04x}"'


@pytest.fixture
def evil(program: Program) -> tuple[str, str]:
    """A disk with such a name, and a repository at such a path that is connected as E."""
    place = program.folder / EVIL.replace("/", "_")
    with Diskyard() as yard:
        disk = yard.create_virtual_disk(
            "fast", MiB, user_data={"name": EVIL, "labels": {EVIL: EVIL}, EVIL: EVIL}
        )
        yard.create_storage_repository("localfs-1.0", {"path": str(place)})
        yard.connect_storage_repository("E", "localfs-1.0", {"path": str(place)})
        yard.create_virtual_disk("E", MiB, user_data={"name": EVIL})
        foreign = place / EVIL
        foreign.write_bytes(b"")
    return disk, str(place)


def test_no_command_prints_them(program: Program, evil: tuple[str, str]) -> None:
    disk, _ = evil
    by_id = json.dumps({"repositoryId": "fast", "imageId": disk})
    attach = json.dumps({"repositoryId": "fast", "imageId": disk})
    for words in (
        ("image", "list", "fast", "--json"),
        ("image", "show", disk),
        ("call", "getImageInfo", by_id),
        ("call", "listStorageRepositories"),
        ("repo", "list"),
        ("repo", "usage"),
        ("repo", "check", "E", "--json"),
        ("repo", "check", "E"),
        ("image", "prepare", disk),
        ("image", "prepare", disk, "--format", "libvirt"),
        ("image", "prepare", disk, "--format", "blockdev"),
        ("call", "prepareImage", attach),
        ("image", "teardown", disk),
    ):
        ended = program.run(*words)
        for text in (ended.out, ended.err):
            assert [c for c in HIDDEN if c in text] == [], words
            assert "\nINJECTED" not in text, words


def test_errors_do_not_print_them(program: Program, evil: tuple[str, str]) -> None:
    for words in (
        ("image", "show", f"fast/{EVIL}x"),
        ("image", "import", "fast", f"{EVIL}.raw", "--format", "raw"),
        ("image", "import", "fast", f"{EVIL}.raw", "--format", "raw", "--json"),
        ("call", "connectStorageRepository", json.dumps({"repoId": EVIL, "repoFormat": EVIL})),
    ):
        ended = program.run(*words, status=None)
        assert [c for c in HIDDEN if c in ended.err] == [], words


def test_a_terminal_is_sent_none(program: Program, evil: tuple[str, str]) -> None:
    for words in (("image", "list", "fast"), ("image", "show", evil[0], "--json"), ("repo", "list")):
        sent = program.on_terminal(*words)
        assert [c for c in HIDDEN if c in sent and c != "\x1b"] == [], words
        assert not any(bad in sent for bad in ("\x1b]", "\x1b[2J", "INJECTED LINE\x1b"))


def test_a_shell_is_not_offered_them(program: Program, evil: tuple[str, str]) -> None:
    line = "diskyard image show fast/"
    offered = program.run(_DISKYARD_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD="3").out
    assert [c for c in HIDDEN if c in offered] == []
    assert "INJECTED" not in offered


def test_an_owner_has_none(program: Program) -> None:
    disk = program.disk("fast", "web")
    for owner in (EVIL, "a\u202eb"):
        asked = {"repositoryId": "fast", "imageId": disk, "options": {"owner": owner}}
        assert program.call("prepareImage", status=10, **asked)["code"] == "InvalidParameter"
    program.run("image", "prepare", disk, "--owner", "Gäste, 東京 #1")


def test_all_printing_is_in_one_place() -> None:
    """A command that printed by itself could forget this."""
    printing = {"click.echo", "click.secho", "print", "sys.stdout.write"}
    found = {
        path.name
        for path in CLI.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in printing
    }
    assert found == MAY_ECHO
