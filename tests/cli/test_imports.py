"""What a command imports, which is most of the time that a short one takes; and who imports all at once."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.cli.program import Program
from tests.transports import TransportName, chosen

#: Large, and of no use to any command that only asks.
_NOBODY = frozenset(
    {
        "asyncio",
        "diskyard.daemon",
        "diskyard.fixes",
        "diskyard.http",
        "diskyard.mover.qemu.blockgraph",
        "diskyard.testing",
        "http.server",
        "hypothesis",
        "importlib.metadata",
        "multiprocessing",
        "nbd",
        "prometheus_client",
        "qemu.qmp",
        "rich",
        "sqlite3",
        "starlette",
        "unittest",
        "uvicorn",
        "xml",
    }
)
_NETWORK = frozenset({"anyio", "email", "http.client", "httpcore", "httpx", "ssl", "urllib.request"})
_HELP = _NOBODY | _NETWORK
_HELP |= {"concurrent.futures", "decimal", "fractions", "logging", "msgspec", "socket", "subprocess"}
_HELP |= {"diskyard.client", "diskyard.host", "diskyard.model", "diskyard.service", "diskyard.tasks"}
_EMBEDDED = (
    _NOBODY
    | _NETWORK
    | {"diskyard.operations.change", "diskyard.operations.create", "diskyard.operations.sizes"}
)
_REMOTE = _NOBODY | {"diskyard.host", "diskyard.log", "diskyard.planner", "diskyard.service", "httpx._main"}

_RUN = """
import sys
at_first = set(sys.modules)
from diskyard.cli.program import run
assert run(sys.argv[1:]) == 0
print(*(name for name in set(sys.modules) - at_first if sys.modules[name]), file=sys.stderr)
"""
_LIVE_LONG = """
import sys
from diskyard import Diskyard
with Diskyard() as yard:
    yard.connect_storage_repository("fast", "localfs-1.0", {"path": sys.argv[1] + "/fast"})
    at_first = set(sys.modules)
    disk = yard.create_virtual_disk("fast", 1 << 20)
    copy = yard.copy_image("fast", disk)
    yard.wait_for_image("fast", copy)
    yard.remove_image("fast", disk)
print(*(name for name in set(sys.modules) - at_first if name.startswith("diskyard.")), file=sys.stderr)
"""


@pytest.fixture
def transport(request: pytest.FixtureRequest) -> TransportName:
    """Those that run a daemon say so; over TLS all is the same but for ssl."""
    return chosen(request, ("unix",))


def said(script: str, *words: str, **environment: str) -> set[str]:
    """The names that a program printed on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize("words", [("--help",), ("disk", "create", "--help"), ("repo", "--help")])
def test_help_imports_next_to_nothing(words: tuple[str, ...]) -> None:
    found = said(_RUN, *words)
    assert "diskyard.cli.disk" in found
    assert found & _HELP == set()


@pytest.mark.parametrize("words", [("image", "list"), ("repo", "list"), ("task", "list")])
def test_who_asks_a_daemon_imports_no_engine(program: Program, words: tuple[str, ...]) -> None:
    found = said(_RUN, *words, **program.daemons.environment(words, {}))
    assert "diskyard.client.remote" in found
    assert found & _REMOTE == set()


@pytest.mark.embedded("they are about what an embedded command imports")
@pytest.mark.parametrize("words", [("image", "list"), ("repo", "list"), ("task", "list")])
def test_who_only_looks_imports_nothing_that_moves(program: Program, words: tuple[str, ...]) -> None:
    program.run("disk", "create", "fast", "1M", "--name", "web")
    found = said(_RUN, *words, "--embedded")
    assert "diskyard.client.embedded" in found
    assert found & _EMBEDDED == set()


@pytest.mark.embedded("they are about what an embedded program imports")
def test_a_program_that_lives_long_runs_one_version(program: Program) -> None:
    """It has imported all of Diskyard before it does anything: what is installed later is not mixed in."""
    assert said(_LIVE_LONG, str(program.folder)) == set()


def test_a_daemon_runs_one_version() -> None:
    found = said("import sys, diskyard.daemon.daemon; print(*sys.modules, file=sys.stderr)")
    assert {"diskyard.operations.copy", "diskyard.fixes.runner", "diskyard.mover.qemu.qmp"} <= found


def test_what_must_not_be_imported_exists() -> None:
    """A name that nothing has would never be found, whoever imports what was meant."""
    for name in _HELP | _EMBEDDED | _REMOTE:
        assert importlib.util.find_spec(name) is not None, name
