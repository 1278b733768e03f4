"""How often each verb and fix asks storage, and how long some take where each call takes longer.

The first is counted, and is the same on every machine: it is the table of docs/performance.md, with what
it has as counted before. The second is measured, each call for a repository's folder being 5 ms longer:
createSnapshot, copyImage until the copy can be used, and checkStorageRepository, of a disk over two
Snapshots.

    .venv/bin/python -m benchmarks.round_trips [--counts-only] [--latency-ms 5] [--rounds 5] [--folder /path]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import astuple
from pathlib import Path

from diskyard.testing.round_trips import CASES, HEADING, KINDS, Counter, Worlds, count, row_of, table_of

TABLE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
TIMED = {
    "createSnapshot": "create snapshot",
    "copyImage of a disk, until it can be used": "copy disk and its mend",
    "copyImage of a Snapshot, until it can be used": "copy snapshot and its mend",
    "checkStorageRepository": "check",
}


def print_counts(worlds: Worlds) -> None:
    """The table."""
    before = table_of(TABLE.read_text())
    print(HEADING)
    print("| --- " * (1 + len(KINDS)) + "|")
    for scenario in CASES:
        counter = count(scenario, worlds.ready_for(scenario))
        old, _ = before.get(scenario.name, (list(astuple(counter.counted())), None))
        print(row_of(scenario.name, old, counter.counted()), flush=True)


def print_times(worlds: Worlds, latency_s: float, rounds: int) -> None:
    """Medians, in milliseconds, with the latency and without."""
    print(f"\n| median of {rounds}, ms | each call {latency_s * 1000:g} ms longer | as it is |")
    print("| --- | --- | --- |")
    for name, of in TIMED.items():
        figures = [
            statistics.median(one_ms(worlds, of, latency) for _ in range(rounds))
            for latency in (latency_s, 0.0)
        ]
        print(f"| {name} | " + " | ".join(f"{figure:.0f}" for figure in figures) + " |", flush=True)


def one_ms(worlds: Worlds, name: str, latency_s: float) -> float:
    """How long a case takes once, with the tasks that it starts."""
    scenario = next(scenario for scenario in CASES if scenario.name == name)
    world = worlds.ready_for(scenario)
    service = world.service(Counter(str(world.folder), latency_s=latency_s).host)
    begin_s = time.perf_counter()
    scenario.act(world, service)
    service.tasks.wait()
    took_s = time.perf_counter() - begin_s
    service.close()
    return took_s * 1000


def main() -> None:
    """Count, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--latency-ms", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--counts-only", action="store_true", help="measure nothing")
    parser.add_argument("--folder", type=Path, help="where the repositories are made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        worlds = Worlds(Path(folder))
        print_counts(worlds)
        if not options.counts_only:
            print_times(worlds, options.latency_ms / 1000, options.rounds)


if __name__ == "__main__":
    main()
