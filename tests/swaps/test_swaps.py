"""Whatever name becomes a link, and whenever: no byte of the file that it leads to is read or written."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from diskyard.host import Child, Commands
from diskyard.mover.qemu.qmp import QmpChild
from diskyard.service import Service, call
from diskyard.testing.effort import Effort
from diskyard.testing.fault_runs import ROUNDS
from diskyard.testing.scenarios import Scenario, find_scenario, shapes
from diskyard.testing.scenarios.base import same
from diskyard.testing.swaps import LINK_KINDS, Swap, SwapRuns
from diskyard.testing.world import World
from tests.conftest import Tally

SHORT_CALLS = 2  # until the program that was started, or told to open a file, has done so
QUICK_PROGRAMS, QUICK_OTHERS = 2, 1


def serve_and_read(world: World, service: Service) -> None:
    """Serve a disk over NBD, and read all of it as whoever it is served to."""
    image = {"repositoryId": "a", "imageId": world.names["d"]}
    uri = call(service, "prepareImage", {**image, "options": {"serve": "nbd"}})["nbdUri"]
    words = ["qemu-img", "convert", "-f", "raw", "-O", "raw", uri, world.folder / "served"]
    subprocess.run(words, check=False, capture_output=True)
    call(service, "teardownImage", image)


def export_raw(world: World, service: Service) -> None:
    """Export a disk raw. Who may write to the folder decides what has the file's name: nobody looks here."""
    path = str(world.folder / "exported")
    asked = {"repositoryId": "a", "imageId": world.names["d"], "path": path, "format": "raw"}
    call(service, "exportImage", asked)


SERVE = Scenario("serve and read", shapes.chain, serve_and_read, same)
NAMES = (
    "merge down into raw", "merge down into qcow2", "merge up", "export", "look", "extend",
    "mend a copy", "mend a difference", "mend an import of qcow2", "mend what was begun",
    "optimize for performance", "take back an extend",
)  # fmt: skip
SCENARIOS = [*map(find_scenario, NAMES), SERVE, Scenario("export raw", shapes.chain, export_raw, same)]


def swaps_to_try(calls: list[str], effort: Effort, name: str) -> list[Swap]:
    """Before each call, for a moment or for good; in a quick run before some, mostly those of programs."""
    if effort.thorough:
        everything = [
            Swap(at, kind, most) for at in range(len(calls)) for kind in LINK_KINDS for most in (2, None)
        ]
        return effort.sample(everything, 0, rounds=ROUNDS)
    chance = effort.random("swaps", name)
    programs = [at for at, what in enumerate(calls) if what.startswith("start ") or "blockdev-add" in what]
    others = [at for at in range(len(calls)) if at not in programs]
    chosen = chance.sample(programs, min(QUICK_PROGRAMS, len(programs)))
    swaps = [Swap(at, LINK_KINDS[index % 2], SHORT_CALLS) for index, at in enumerate(chosen)]
    return swaps + [_any(chance, at) for at in chance.sample(others, min(QUICK_OTHERS, len(others)))]


def _any(chance: random.Random, at: int) -> Swap:
    return Swap(at, chance.choice(LINK_KINDS), chance.choice((SHORT_CALLS, None)))


@pytest.fixture(autouse=True)
def told(quick_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No program of QEMU's is told a name in the folder of the test, where all that it opens is."""
    start, command = Commands.start, QmpChild.command

    def starting(self: Commands, words: Sequence[str], **options: Any) -> Child:
        assert str(quick_folder) not in " ".join(words), words
        return start(self, words, **options)

    def commanding(
        self: QmpChild, name: str, arguments: Mapping[str, object] | None = None, *, doing: str
    ) -> object:
        assert str(quick_folder) not in str(arguments), arguments
        return command(self, name, arguments, doing=doing)

    monkeypatch.setattr(Commands, "start", starting)
    monkeypatch.setattr(QmpChild, "command", commanding)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_nothing_outside_is_read_or_written(
    scenario: Scenario, quick_folder: Path, effort: Effort, tally: Tally
) -> None:
    runs = SwapRuns(scenario, quick_folder)
    calls = runs.calls()
    for swap in swaps_to_try(calls, effort, scenario.name):
        runs.run(swap)
        tally("swaps", runs=1)
    tally("swaps", calls=len(calls))
