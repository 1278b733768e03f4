"""Real file systems with next to no room: the answer is NoSpace, nothing is lost, and room can be made."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard.testing.effort import Effort
from diskyard.testing.full_runs import FullRuns
from diskyard.testing.scenarios import SCENARIOS, Scenario, find_scenario
from tests.conftest import Tally

_MIB = 1 << 20
_MAKE = {
    "xfs": (320 * _MIB, ["mkfs.xfs", "-q", "-m", "reflink=1"]),
    "ext4": (64 * _MIB, ["mkfs.ext4", "-q", "-m", "0", "-N", "2048"]),
}
_LEFT_KIB = (0, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048)
_LEFT_INODES = tuple(range(8))
# The file to import is the test's own, and has no room either; mending the import is among them.
_FULL = [scenario for scenario in SCENARIOS if not scenario.name.startswith("import")]
_TRIED = Effort.of_environment().sample(_FULL, 16, "full file systems")


@pytest.fixture(params=sorted(_MAKE))
def small(request: pytest.FixtureRequest, quick_folder: Path) -> Iterator[tuple[str, Path]]:
    """A small file system of a kind, mounted."""
    kind: str = request.param
    size_bytes, words = _MAKE[kind]
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed (Debian: xfsprogs, e2fsprogs)")
    disk, place = quick_folder / "disk", quick_folder / "mounted"
    place.mkdir()
    with disk.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run([*words, str(disk)], check=True)
    subprocess.run(["mount", "-o", "loop", str(disk), str(place)], check=True)
    yield kind, place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("scenario", _TRIED, ids=lambda scenario: scenario.name)
def test_little_room(scenario: Scenario, small: tuple[str, Path], effort: Effort, tally: Tally) -> None:
    tally("full file systems")
    kind, place = small
    runs = FullRuns(scenario, place)
    chosen = effort.sample(_LEFT_KIB, 1, "room", kind, scenario.name)
    done = 0
    for left_kib in chosen:
        try:
            done += runs.run_full(left_kib=left_kib)
        except AssertionError as error:
            error.add_note(f"{scenario.name} on {kind} with {left_kib} KiB left")
            raise
    tally("full file systems", runs=len(chosen), refused=len(chosen) - done)


@pytest.mark.parametrize("scenario", _TRIED, ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("small", ["ext4"], indirect=True)
def test_few_files(scenario: Scenario, small: tuple[str, Path], effort: Effort, tally: Tally) -> None:
    """A file system without a free inode says the same as a full one, at other calls."""
    tally("full file systems")
    runs = FullRuns(scenario, small[1])
    chosen = effort.sample(_LEFT_INODES, 1, "files", scenario.name)
    done = 0
    for left_inodes in chosen:
        try:
            done += runs.run_full(left_inodes=left_inodes)
        except AssertionError as error:
            error.add_note(f"{scenario.name} with {left_inodes} files left")
            raise
    tally("full file systems", runs=len(chosen), refused=len(chosen) - done)


def test_room_can_be_made(small: tuple[str, Path], effort: Effort, tally: Tally) -> None:
    """On a full file system images can be removed, and cleaned."""
    tally("full file systems")
    runs = FullRuns(find_scenario("remove snapshot"), small[1])
    chosen = effort.sample(_LEFT_KIB, 4, "removal", small[0])
    for left_kib in chosen:
        runs.run_removal(left_kib=left_kib)
    tally("full file systems", runs=len(chosen))
