"""The power of real file systems is cut: what they lose is what they lose.

The simulated disk knows all that may be lost; these know what is: clones, delayed allocation,
and journals of their own kind.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from diskyard.testing.crash import run_scenario
from diskyard.testing.effort import Effort
from diskyard.testing.real_disk import KINDS, RealDisk, real_disk, why_no_real_disk
from diskyard.testing.scenarios import SCENARIOS, SHARING, Scenario
from diskyard.testing.scenarios.sharing import CLONE, MORE_SHARING
from tests.conftest import Tally
from tests.crash.bench import Bench
from tests.mounts import another_namespace

CUTS = 2
_EFFORT = Effort.of_environment()
ANY = _EFFORT.sample([*SCENARIOS, *MORE_SHARING], 3, "real power cuts")
SHARED = _EFFORT.sample(SHARING, 4, "real power cuts of what shares")
TRIED = [("ext4", scenario) for scenario in ANY]
TRIED += [("xfs", scenario) for scenario in {s.name: s for s in (*SHARED, *ANY)}.values()]


@pytest.mark.parametrize(
    ("kind", "scenario"), TRIED, ids=lambda value: value.name if isinstance(value, Scenario) else value
)
def test_power_cut(
    kind: str,
    scenario: Scenario,
    quick_folder: Path,
    effort: Effort,
    tally: Tally,
) -> None:
    """Just after the answer it must be done; at any other step it may be; all that was is there."""
    tally("real power cut")
    if reason := why_no_real_disk(kind):
        pytest.skip(reason)
    with real_disk(kind, quick_folder) as disk:
        runs, steps = _cut(disk, kind, scenario, effort)
    tally("real power cut", steps=steps, runs=runs)


# ext4 writes the data of what is in its journal before the journal.
@pytest.mark.parametrize(("kind", "log_kept"), [*((kind, False) for kind in KINDS), ("xfs", True)])
def test_what_was_not_synced_is_lost(kind: str, log_kept: bool, quick_folder: Path, tally: Tally) -> None:
    """Were it not so, the other tests would show nothing."""
    tally("real power cut")
    if reason := why_no_real_disk(kind):
        pytest.skip(reason)
    with real_disk(kind, quick_folder) as disk:
        kept, lost = disk.place / "kept", disk.place / "lost"
        kept.write_bytes(b"synced")
        disk.sync()
        with kept.open("ab") as file:  # XFS begins to write what was cut to nothing when it is closed
            file.write(b", and more that was not")
        lost.write_bytes(b"not synced" * 1000)
        disk.cut_power(log_kept=log_kept)
        assert kept.read_bytes() != b"synced, and more that was not"
        assert lost.exists() <= log_kept
        assert not lost.exists() or not lost.read_bytes().strip(b"\0")


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_another_namespace_still_has_mounted(kind: str, quick_folder: Path, tally: Tally) -> None:
    """Such a one lives on, dead, beside the one that is mounted after the cut."""
    tally("real power cut")
    if reason := why_no_real_disk(kind):
        pytest.skip(reason)
    with real_disk(kind, quick_folder) as disk, another_namespace():
        (disk.place / "kept").write_bytes(b"synced")
        disk.sync()
        disk.cut_power(log_kept=False)
        (disk.place / "new").mkdir()
        assert (disk.place / "kept").read_bytes() == b"synced"


def _cut(disk: RealDisk, kind: str, scenario: Scenario, effort: Effort) -> tuple[int, int]:
    """How many cuts there were, and how many steps there are."""
    bench = Bench(scenario, disk.place)
    indexes = range(len(bench.steps))
    places: list[int | None] = [*effort.sample(indexes, CUTS, kind, scenario.name, rounds=8), None]
    if kind == "xfs" and CLONE in bench.steps:
        after = bench.steps.index(CLONE) + 1
        places += [place for place in (after,) if place not in places]
    cuts = list(itertools.product(places, (False, True)))
    for place, log_kept in cuts:
        world = bench.copy()
        disk.sync()
        ran = run_scenario(scenario.name, world, kill_at=place)
        assert ran.killed or ran.answered, ran
        disk.cut_power(log_kept=log_kept)
        bench.judge(world, answered=ran.answered, effort=effort, purpose=("power", place, log_kept))
    return len(cuts), len(indexes)
