"""What every test has: a state folder of its own, and nothing of the caller's environment.

Tests of a class (crashes, power cuts, faults, …) tally what they tried; a run ends with one
line for each class.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diskyard import errors
from diskyard.model.verbs import BY_REQUEST, EVERY_CALL
from diskyard.service import verbs
from diskyard.testing.effort import Effort
from tests import transports

TALLY = "diskyard-tally"
FAILED_FILE_VARIABLE = "DISKYARD_FAILED_FILE"
Tally = Callable[..., None]
_MEMORY_LEAST_BYTES = 1 << 30
ON_DISK = 8


def pytest_configure() -> None:
    """Refuse every error of a verb that the API's description does not list for it."""
    run_unwatched = verbs.run_unwatched

    def run_as_described(service: Any, request: Any) -> Any:
        try:
            return run_unwatched(service, request)
        except errors.DiskyardError as error:
            verb = BY_REQUEST[type(request)]
            if error.code not in EVERY_CALL | verb.errors:
                raise AssertionError(f"{verb.name} answers {error.code}, which is not described") from error
            raise

    verbs.run_unwatched = run_as_described


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where this test's Diskyard keeps connections and tasks."""
    folder = tmp_path / "state"
    monkeypatch.setenv("DISKYARD_STATE_DIR", str(folder))
    for name in ("DISKYARD_HOST_ID", "DISKYARD_URL", "DISKYARD_TOKEN", "DISKYARD_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: for tests that lose nothing if the machine does."""
    yield from folder_in_memory(tmp_path)


def mostly_in_memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The folder of a test, in memory; of one test in eight it is on the disk, as the seed chooses.

    On a disk every sync waits for it, and costs the processor a fifth of what such tests cost. What a
    file system of a disk does otherwise is what the contract suite and the units of it are about.
    """
    chosen = Effort.of_environment().random("on a disk", request.node.nodeid).randrange(ON_DISK)
    if chosen:
        yield from folder_in_memory(tmp_path)
    else:
        yield tmp_path


def folder_in_memory(otherwise: Path) -> Iterator[Path]:
    """A new folder in memory while the generator is not at its end; another where memory has no room."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < _MEMORY_LEAST_BYTES:
        yield otherwise
        return
    folder = Path(tempfile.mkdtemp(prefix="diskyard-test-", dir=memory))
    yield folder
    _let_everything_go(folder)
    shutil.rmtree(folder)


def _let_everything_go(folder: Path) -> None:
    """Who is not root has to be let into the folders that a test has closed, to remove what is in them."""
    if os.geteuid() == 0:
        return
    for inside, names, _ in os.walk(folder):
        for path in (Path(inside, name) for name in names):
            if not path.is_symlink():
                path.chmod(0o700)


@pytest.fixture
def frozen(quick_folder: Path) -> Iterator[Path]:
    """A mounted XFS that tests may freeze; thawed and unmounted in the end."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("mkfs.xfs is not installed (Debian: xfsprogs)")
    disk, place = quick_folder / "disk", quick_folder / "mounted"
    place.mkdir()
    with disk.open("wb") as file:
        file.truncate(320 << 20)
    subprocess.run(["mkfs.xfs", "-q", str(disk)], check=True)
    subprocess.run(["mount", "-o", "loop", str(disk), str(place)], check=True)
    yield place
    subprocess.run(["fsfreeze", "--unfreeze", str(place)], check=False, capture_output=True)
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="session")
def effort() -> Effort:
    """How much to try in this run, and the seed that decides what."""
    return Effort.of_environment()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Count what a test of a class tried: ``tally("crash", steps=40, runs=80)``; calls add up."""

    def count(of_class: str, **counts: int) -> None:
        request.node.user_properties.append((TALLY, {"class": of_class, **counts}))

    return count


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note at once what failed, where that is asked for: a run that is interrupted ends in no verdict."""
    path = os.environ.get(FAILED_FILE_VARIABLE)
    if path and report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        with Path(path).open("a") as file:
            file.write(f"{report.nodeid} ({report.when})\n")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line per class: what was enumerated, run and injected, and how many tests failed.

    A class that could not be tried here says so: its tests are counted as skipped.
    """
    totals: dict[str, Counter[str]] = {}
    seconds: Counter[str] = Counter()
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            entries = [value for name, value in getattr(report, "user_properties", ()) if name == TALLY]
            if not entries or (report.when != "call" and outcome != "skipped"):
                continue
            of_class = entries[-1]["class"]  # the first may be what the place that it uses is for
            seconds[of_class] += round(report.duration)
            total = totals.setdefault(of_class, Counter())
            total["failures"] += outcome == "failed"
            if outcome == "skipped":
                total["tests SKIPPED"] += 1
            for entry in entries:
                counts = {key: count for key, count in entry.items() if key != "class"}
                if counts:
                    totals.setdefault(entry["class"], Counter()).update(counts)
    ended = [report for name in ("passed", "failed") for report in terminalreporter.stats.get(name, ())]
    for line in transports.summary([report for report in ended if report.when == "call"]):
        terminalreporter.line(line)
    if totals:
        terminalreporter.section(f"what was tried (seed {Effort.of_environment().seed})")
    for of_class, total in sorted(totals.items()):
        failures = total.pop("failures", 0)
        tried = [f"{count:,} {name}" for name, count in total.items()]
        tried += [f"{failures} failures", f"{seconds[of_class]} s"]
        terminalreporter.line(f"{of_class}: {', '.join(tried)}")
