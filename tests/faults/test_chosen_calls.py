"""Single calls that fail and once led to something wrong, in every run."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from diskyard.testing.fault_injection import Fault, Injector, faulty_host
from diskyard.testing.fault_runs import FaultRuns
from diskyard.testing.scenarios import SCENARIOS
from tests.conftest import Tally

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.mark.parametrize("name", ["take back an extend", "merge up"])
def test_a_header_that_cannot_be_read_once(name: str, quick_folder: Path, tally: Tally) -> None:
    """What is not known of a volume is not taken for what its record says."""
    tally("faults")
    runs = FaultRuns(BY_NAME[name], quick_folder)
    calls = runs.calls()
    reads = [at for at, call in enumerate(calls) if call.name.startswith("read") and call.where == "volumes"]
    assert len(reads) >= 2
    for at in reads:
        runs.run(Injector(), Fault(at, errno.EINTR))
    tally("faults", calls=len(calls), runs=len(reads))


def test_a_private_copy_that_was_made_though_the_answer_was_an_error(
    quick_folder: Path, tally: Tally
) -> None:
    """It is removed by its own process, which lives on: nobody else may."""
    tally("faults")
    runs = FaultRuns(BY_NAME["mend an import of qcow2"], quick_folder)
    calls = runs.calls()
    made = [at for at, call in enumerate(calls) if (call.name, call.where) == ("create", "temporary")]
    assert made
    for at in made:
        runs.run(Injector(), Fault(at, errno.ENOSPC, afterwards=True))
    tally("faults", calls=len(calls), runs=len(made))


def test_a_fault_that_comes_one_call_early(quick_folder: Path) -> None:
    """How often a job is asked about is a matter of time; a fault waits for a call that it can happen to.

    A socket's folder either is made or is not: with an error after it was made nobody could remove it.
    """
    storage = quick_folder / "storage"
    storage.mkdir()
    injector = Injector()
    files = faulty_host(injector, "failing").files
    injector.begin(Fault(0, errno.EINTR, afterwards=True))
    sockets = files.make_private_folder()
    assert injector.failed == 0
    with pytest.raises(InterruptedError):
        files.make_folder(str(storage / "made"))
    assert (storage / "made").is_dir()
    files.discard_private_folder(sockets)
    assert injector.failed == 1
