"""What scripts/torture says of a run follows from what failed in it, however it ended."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_LIMIT_S = 600
_TESTS = """
import pathlib, time

def test_one():
    assert {passes}

def test_that_goes_on():
    pathlib.Path({reached!r}).touch()
    until_s = time.monotonic() + {lasts_s}
    while time.monotonic() < until_s and not pathlib.Path({interrupted!r}).exists():
        time.sleep(0.05)
"""
# In the place of timeout(1): an interrupt once the test that goes on was reached and the other was judged.
_TIMEOUT = """#!/usr/bin/env bash
shift 3
if [ -z "$INTERRUPT" ]; then exec "$@"; fi
set -m
"$@" &
until [ -e "$REACHED" ]; do sleep 0.1; done
sleep "$INTERRUPT"
kill -INT -- -$!
touch "$INTERRUPTED"
wait
exit 124
"""


@pytest.mark.parametrize(
    ("passes", "interrupted", "words"),
    [
        (True, True, "no failure until then"),
        (False, True, "torture: failed: test_some.py::test_one (call)"),
        (False, False, "torture: failed: test_some.py::test_one (call)"),
    ],
)
def test_the_verdict(tmp_path: Path, passes: bool, interrupted: bool, words: str) -> None:
    """A failure is said and decides the exit status, also where the time was over before the round."""
    reached, has_been = tmp_path / "reached", tmp_path / "interrupted"
    lasts_s = 120 if interrupted else 0
    for name, text in {
        "scripts/torture": (ROOT / "scripts" / "torture").read_text(),
        "scripts/setup": "#!/bin/sh\n",
        "bin/timeout": _TIMEOUT,
        "conftest.py": "from tests.conftest import pytest_runtest_logreport\n",
        "test_some.py": _TESTS.format(
            passes=passes, reached=str(reached), interrupted=str(has_been), lasts_s=lasts_s
        ),
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    outer = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST")}
    environment = {
        **outer,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_PLUGINS": "xdist.plugin",
        "INTERRUPT": "3" if interrupted else "",
        "REACHED": str(reached),
        "INTERRUPTED": str(has_been),
    }
    options = ["--hours", "1", "-p", "no:cacheprovider", "--numprocesses", "2"]
    ended = subprocess.run(
        ["bash", "scripts/torture", *options, "test_some.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False,
    )  # fmt: skip
    assert words in ended.stdout + ended.stderr, ended
    assert (ended.returncode == 0) == passes, ended
