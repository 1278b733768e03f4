"""Each guard is taken out, and the tests must see it: what no test would miss guards nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diskyard.testing.effort import Effort
from tests.conftest import Tally
from tests.guards.guards import GUARDS, Guard

ROOT = Path(__file__).resolve().parents[2]
TESTS_FAILED = 1  # pytest's exit status: neither an error of its own, nor nothing to run
TIMEOUT_S = 300
#: Unlike with -m, what a test forks need not import pytest again: it is not its main module.
PYTEST = "import sys, pytest; sys.exit(pytest.main())"
QUICK = 30  # of the guards in a quick run; others with another seed, all of them when thorough
CHOSEN = Effort.of_environment().sample(GUARDS, QUICK, "guards")


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_it_is_where_it_was(guard: Guard) -> None:
    """Of every guard, also of those that are not taken out in a quick run."""
    found = importlib.util.find_spec(guard.module)
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).read_text(encoding="utf-8")
    for old, new in guard.changes:
        assert source.count(old) == 1, f"{guard.module} has {source.count(old)} times: {old}"
        source = source.replace(old, new)
    compile(source, found.origin, "exec")
    for named in guard.tests:
        assert (ROOT / named.partition("::")[0]).exists(), named


@pytest.mark.parametrize("guard", CHOSEN, ids=lambda guard: guard.name)
def test_without_it_a_test_fails(guard: Guard, tally: Tally) -> None:
    tally("guards removed", guards=1)
    path = os.pathsep.join([str(ROOT / "tests/guards/hook"), str(ROOT)])
    what = {"module": guard.module, "changes": guard.changes}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        "DISKYARD_TEST_GUARD": json.dumps(what),
        "PYTHONPATH": path,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # they take longer to load than most of these tests
    }
    words = [sys.executable, "-c", PYTEST, "-q", "-x", "-p", "no:cacheprovider", *guard.tests]
    ran = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert ran.returncode == TESTS_FAILED, f"not seen: {ran.stdout[-3000:]}{ran.stderr[-3000:]}"
    assert " failed" in ran.stdout
    assert "ImportError" not in ran.stdout
