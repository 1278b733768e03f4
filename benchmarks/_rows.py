"""Rows of the table of targets that are no copies: one figure of ours, each peer's, and whether it passes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks._machine import file_system_of, versions

PERCENT = 100


@dataclass(frozen=True)
class Row:
    """One line of the table.

    :param ours: our figure, in the unit of the row.
    :param peers: the figures of others, by their names.
    :param target: in words; empty where there is none.
    :param passes: None where there is no target, or nothing to compare with.
    """

    work: str
    unit: str
    ours: float
    peers: Mapping[str, float] = field(default_factory=dict)
    target: str = ""
    passes: bool | None = None

    def line(self, width: int) -> str:
        """The row as text."""
        peers = ", ".join(f"{name} {shown(of)} (x {self._ratio(of)})" for name, of in self.peers.items())
        verdict = {True: "pass", False: "SHORT", None: "-"}[self.passes]
        words = f"{self.work:{width}} {shown(self.ours):>8} {self.unit:4} {verdict:5} {self.target}"
        return f"{words}; {peers}" if peers else words

    def _ratio(self, of: float) -> str:
        return f"{self.ours / of:.2f}" if of else "-"


def shown(figure: float) -> str:
    """A figure with as many digits as it deserves."""
    return f"{figure:,.0f}" if figure >= PERCENT or figure == int(figure) else f"{figure:.2f}"


def print_rows(title: str, rows: Sequence[Row]) -> None:
    """A table; in brackets is how many times a peer's figure ours is."""
    width = max(len(row.work) for row in rows)
    print(f"\n{title}")
    for row in rows:
        print(row.line(width), flush=True)


def print_heading(folder: Path) -> None:
    """On what it is measured."""
    about = {**versions(), "file system": file_system_of(folder)}
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)


def timed_ms(work: Callable[[], object]) -> float:
    """Milliseconds that some work took."""
    begin_s = time.perf_counter()
    work()
    return (time.perf_counter() - begin_s) * 1000


def alternately(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each, each in its turn, so that a drift of the machine meets all alike.

    All are done once before, which is not measured, and each round begins with another.
    """
    for work in works.values():
        work()
    names = list(works)
    times_ms: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            times_ms[name].append(timed_ms(works[name]))
    return times_ms


def medians(times_ms: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(times) for name, times in times_ms.items()}


def percentile(samples: Sequence[float], percent: int) -> float:
    """The smallest sample that so many percent are not above."""
    ordered = sorted(samples)
    return ordered[max(0, -(-len(ordered) * percent // PERCENT) - 1)]
