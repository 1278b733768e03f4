"""QEMU's programs are missing, die, print garbage or never end; the answer is clear, and nothing is lost."""

from __future__ import annotations

import resource
from collections.abc import Callable
from functools import partial
from operator import methodcaller
from pathlib import Path

import pytest

from diskyard.errors import DiskyardError, StorageError
from diskyard.host import Commands
from diskyard.testing.effort import Effort
from diskyard.testing.fake_programs import OF_EVERY_PROGRAM, OF_QEMU_IMG, OF_THE_DAEMON, FakePrograms
from diskyard.testing.fault_injection import Injector
from diskyard.testing.fault_runs import ROUNDS, FaultRuns
from diskyard.testing.killed_daemons import killing_host
from diskyard.testing.scenarios import SCENARIOS, Scenario, find_scenario
from tests.conftest import Tally

Change = Callable[[FakePrograms], None]
_MOST_S = 1.0
_MEMORY_MOST_KIB = 64 << 10
_KILLED = Effort.of_environment().sample(SCENARIOS, 20, "killed")


def _changes() -> dict[str, Change]:
    found: dict[str, Change] = {}
    for name in ("qemu-img", "qemu-storage-daemon", "setpriv", "sh"):
        found[f"{name} is not installed"] = methodcaller("remove", name)
        found[f"{name} is no program"] = methodcaller("break_file", name)
    of_programs = [
        ("qemu-img", {**OF_EVERY_PROGRAM, **OF_QEMU_IMG}),
        ("qemu-storage-daemon", {**OF_EVERY_PROGRAM, **OF_THE_DAEMON}),
    ]
    for name, programs in of_programs:
        for does, code in programs.items():
            found[f"{name} {does}"] = methodcaller("replace", name, code)
    return found


CHANGES = _changes()
# Between them they start all programs: qemu-img check; the daemon read-only, for jobs, and for NBD.
STARTERS = (
    "merge down into qcow2",
    "merge up",
    "mend a copy",
    "extend",
    "optimize for performance",
    "mend an import of qcow2",
)


@pytest.mark.parametrize("name", STARTERS)
def test_programs_that_fail(name: str, quick_folder: Path, effort: Effort, tally: Tally) -> None:
    tally("programs")
    runs = FaultRuns(find_scenario(name), quick_folder)
    chosen = effort.sample(sorted(CHANGES), 8, "programs", name)
    refused = 0
    for number, change in enumerate(chosen):
        patch = pytest.MonkeyPatch()
        fake = FakePrograms(quick_folder / f"programs-{number}")
        CHANGES[change](fake)

        def begin(fake: FakePrograms = fake, patch: pytest.MonkeyPatch = patch) -> None:
            patch.setenv("PATH", fake.path)
            patch.setattr(Commands, "timeout_most_s", _MOST_S)

        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            refused += runs.run(Injector(), None, around=(begin, patch.undo)) is not None
        except (AssertionError, OSError, DiskyardError) as error:
            error.add_note(f"{name}: {change}")
            raise
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
        assert grown_kib < _MEMORY_MOST_KIB, f"{change}: {grown_kib} KiB more are used"
    tally("programs", runs=len(chosen), errors=refused)


@pytest.mark.parametrize("printed", ["[]\n", "y"])
def test_a_map_that_tells_nothing_is_no_hole(printed: str, quick_folder: Path) -> None:
    """It ends well, and what it did not tell of must not be taken for zeros."""
    fake = FakePrograms(quick_folder / "programs")
    runs = FaultRuns(find_scenario("mend a copy"), quick_folder)
    fake.replace("qemu-img", f"import sys; sys.stdout.write({printed!r})")
    with pytest.MonkeyPatch.context() as patch:
        around = (partial(patch.setenv, "PATH", fake.path), patch.undo)
        error = runs.run(Injector(), None, around=around)
    assert isinstance(error, StorageError)


@pytest.mark.parametrize("scenario", _KILLED, ids=lambda scenario: scenario.name)
def test_the_daemon_is_killed(scenario: Scenario, quick_folder: Path, effort: Effort, tally: Tally) -> None:
    """Before anything that it is asked, or after it has answered: its NBD server goes with it."""
    tally("programs")
    runs = FaultRuns(scenario, quick_folder)
    host, commands = killing_host("killing")
    commands.begin(None)
    runs.run(Injector(), None, host=host)
    places = [(at, afterwards) for at in range(len(commands.asked)) for afterwards in (False, True)]
    asked, refused = list(commands.asked), 0
    # Always at its end too: what it has not written by then must not count as written.
    quits = [(at, False) for at, what in enumerate(asked) if what == "qmp quit"]
    chosen = sorted({*effort.sample(places, 2, "killed", scenario.name, rounds=ROUNDS), *quits[-1:]})
    for at, afterwards in chosen:
        host, commands = killing_host("killing")
        begin = partial(commands.begin, at, afterwards=afterwards)
        try:
            error = runs.run(Injector(), None, host=host, around=(begin, commands.end))
        except (AssertionError, OSError, DiskyardError) as found:
            found.add_note(f"{scenario.name}: killed {'after' if afterwards else 'before'} {at}, {asked[at]}")
            raise
        refused += error is not None
    tally("programs", calls=len(asked), runs=len(chosen), errors=refused)
