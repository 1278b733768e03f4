"""What the benchmarks that compare with other programs share: alternating rounds, and the table.

Every contestant does the same work, ends with its result durable, and does it in turn with the
others: a drift of the machine meets all alike. A peer may have several variants, as a program has
options. All are tried twice, their results compared byte for byte; those that once came near the
peer's best go on, and of these the one with the best median counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks._machine import GiB, file_system_of, versions
from benchmarks._places import Places, make_cold, make_warm, places
from benchmarks._processes import MiB, Outcome

OURS = "diskyard"
NEAR = 1.25
TRIALS = 2
LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    :param peer: whose way it is.
    :param variant: which of its ways.
    :param work: does it from start to end, and measures it.
    """

    peer: str
    variant: str
    work: Callable[[], Outcome]


@dataclass(frozen=True)
class Case:
    """Work that contestants do.

    :param name: what is done, for the table.
    :param prepare: before each run, not measured.
    :param compare: after a run: raise if its result is wrong.
    :param clean: after each run, not measured: nothing of the result is left.
    :param noted: after a trial run, what else is to be told of its result.
    """

    name: str
    contestants: Sequence[Contestant]
    prepare: Callable[[], None]
    compare: Callable[[], None]
    clean: Callable[[], None]
    noted: Callable[[], str] = lambda: ""


@dataclass
class Line:
    """All runs of one contestant."""

    contestant: Contestant
    note: str = ""
    trials: list[Outcome] = field(default_factory=list)
    runs: list[Outcome] = field(default_factory=list)

    @property
    def counted(self) -> list[Outcome]:
        return self.runs or self.trials

    @property
    def median_s(self) -> float:
        return statistics.median(run.took_s for run in self.counted)

    @property
    def best_trial_s(self) -> float:
        return min(run.took_s for run in self.trials)

    @property
    def hungriest(self) -> Outcome:
        return max(self.counted, key=lambda run: run.peak_bytes)

    def plain(self) -> dict[str, object]:
        """For ``--json``."""
        worst = self.hungriest
        return {
            "peer": self.contestant.peer,
            "variant": self.contestant.variant,
            "note": self.note,
            "rounds": len(self.runs),
            "medianS": self.median_s,
            "triedS": [run.took_s for run in self.trials],
            "timesS": [run.took_s for run in self.counted],
            "cpuS": statistics.median(run.cpu_s for run in self.counted),
            "peakBytes": worst.peak_bytes,
            "peakBytesByProgram": worst.memory_bytes,
            "baseBytes": worst.base_bytes,
        }


@dataclass
class Result:
    """A case that was measured."""

    name: str
    lines: list[Line]

    def best(self, peer: str) -> Line:
        """The best way of a peer, of those that went the whole distance."""
        those = [line for line in self.lines if line.contestant.peer == peer]
        return min(those, key=lambda line: (not line.runs, line.median_s))

    def peers(self) -> list[Line]:
        """The best way of every peer, ours excepted."""
        names = dict.fromkeys(line.contestant.peer for line in self.lines)
        return [self.best(name) for name in names if name != OURS]

    def ratio(self, line: Line) -> float:
        """How many times as long as ours another took."""
        return line.median_s / self.best(OURS).median_s

    def plain(self) -> dict[str, object]:
        """For ``--json``."""
        ratios = {line.contestant.peer: self.ratio(line) for line in self.peers()}
        lines = [line.plain() for line in self.lines]
        return {"work": self.name, "ratios": ratios, "best": min(ratios.values()), "lines": lines}


def compete(case: Case, rounds: int) -> Result:
    """Let all try, then the near ones as many rounds as asked, in turn.

    :raises Failed: a contestant failed, or its result is wrong.
    """
    lines = [Line(contestant) for contestant in case.contestants]
    for number in range(TRIALS):
        for line in lines:
            line.trials.append(_run(case, line, is_first=number == 0))
    best: dict[str, float] = {}
    for line in lines:
        peer = line.contestant.peer
        best[peer] = min(line.best_trial_s, best.get(peer, line.best_trial_s))
    going = [line for line in lines if line.best_trial_s <= NEAR * best[line.contestant.peer]]
    for number in range(rounds):
        first = number % len(going)
        for line in [*going[first:], *going[:first]]:
            line.runs.append(_run(case, line, is_first=False))
    return Result(case.name, lines)


def _run(case: Case, line: Line, *, is_first: bool) -> Outcome:
    case.prepare()
    try:
        outcome = line.contestant.work()
        if is_first:
            case.compare()
            line.note = case.noted()
        return outcome
    finally:
        case.clean()


def print_result(result: Result) -> None:
    """One case: a line for each contestant."""
    print(f"\n{result.name}")
    print(f"  {'':44} {'median':>8} {'min':>8} {'max':>8} {'CPU s':>6} {'peak MiB':>8}  {'/ ours':>6}")
    for line in sorted(result.lines, key=lambda one: (not one.runs, one.median_s)):
        times = [run.took_s for run in line.counted]
        cpu_s = statistics.median(run.cpu_s for run in line.counted)
        figures = f"{line.median_s:8.3f} {min(times):8.3f} {max(times):8.3f} {cpu_s:6.2f}"
        name = f"{line.contestant.peer} {line.contestant.variant}"
        peak = f"{line.hungriest.peak_bytes / MiB:8.0f}"
        told = ["" if line.runs else "only tried", line.note, line.counted[-1].remark, _parts(line.hungriest)]
        remarks = ", ".join(word for word in told if word)
        print(f"  {name:44} {figures} {peak}  {result.ratio(line):6.2f}  {remarks}".rstrip(), flush=True)


def _parts(outcome: Outcome) -> str:
    """Ours is told program by program, because a target is about what a copy adds."""
    if not outcome.base_bytes:
        return ""
    parts = " + ".join(f"{name} {peak / MiB:.0f}" for name, peak in outcome.memory_bytes.items())
    return f"memory: {parts}, of it {outcome.base_bytes / MiB:.0f} before it began"


def print_summary(results: Sequence[Result]) -> None:
    """The table: a line for each case, with ours, the best of each peer, and the ratios."""
    peers = list(dict.fromkeys(line.contestant.peer for result in results for line in result.peers()))
    width = max(len(result.name) for result in results)
    print("\nMedians in seconds. In brackets, and last: how many times as long as ours it took.")
    print(f"{'work':{width}} {OURS:>9} {' '.join(f'{peer:>20}' for peer in peers)} {'best':>6}")
    for result in results:
        lines = {line.contestant.peer: line for line in result.peers()}
        cells = []
        for peer in peers:
            line = lines.get(peer)
            cells.append("" if line is None else f"{line.median_s:.3f} ({result.ratio(line):5.2f})")
        best = min(result.ratio(line) for line in lines.values())
        ours_s = result.best(OURS).median_s
        print(f"{result.name:{width}} {ours_s:9.3f} {' '.join(f'{cell:>20}' for cell in cells)} {best:6.2f}")


# -- options, heading, the whole ----------------------------------------------------------------


def parser_of(words: str | None, size_bytes: int) -> argparse.ArgumentParser:
    """The options that these benchmarks share.

    :param words: the benchmark's docstring.
    :param size_bytes: the usual size.
    """
    parser = argparse.ArgumentParser(description=(words or "").partition("\n")[0])
    parser.add_argument("--folder", help="where to measure")
    parser.add_argument("--other-folder", help="where the other file system is")
    parser.add_argument("--file-system", choices=("ext4", "xfs"), help="make and mount two of these (root)")
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS, help="how often each contestant runs")
    parser.add_argument("--size", type=int, default=size_bytes // MiB, help="MiB")
    parser.add_argument("--cold", action="store_true", help="only with sources that are not cached")
    parser.add_argument("--warm", action="store_true", help="only with sources that are cached")
    parser.add_argument("--case", action="append", help="only cases whose name has this in it")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser


@dataclass(frozen=True)
class Plan:
    """What was asked for.

    :param size_bytes: of the sources.
    """

    places: Places
    size_bytes: int
    caches: Sequence[str]
    words: Sequence[str]

    def wants(self, name: str) -> bool:
        """Whether a case was asked for by its name."""
        return not self.words or any(word in name for word in self.words)


def cache_of(name: str, paths: Sequence[Path]) -> Callable[[], None]:
    """What makes sources ``cold`` or ``warm``."""
    make = make_cold if name == "cold" else make_warm
    return lambda: make(paths)


def compare_all(
    given: argparse.Namespace,
    cases: Callable[[Plan], Iterable[Case]],
    rooms: Sequence[float],
    fairness: str,
) -> None:
    """Measure case by case, and print.

    :param rooms: how many times the size goes into the file systems that are made.
    :param fairness: what a reader must know, above the table.
    """
    size_bytes = given.size * MiB
    caches = [name for name in ("cold", "warm") if getattr(given, name)] or ["cold", "warm"]
    rooms_bytes = [int(room * size_bytes) + GiB for room in rooms]
    results: list[Result] = []
    with places(given.folder, given.other_folder, given.file_system, rooms_bytes) as found:
        about = {**versions(), "file system": file_system_of(found.one)}
        if found.other is not None:
            about["other file system"] = file_system_of(found.other)
        print(", ".join(f"{name} {value}" for name, value in about.items()))
        print(f"{given.rounds} rounds after two trials; {fairness}", flush=True)
        try:
            for case in cases(Plan(found, size_bytes, caches, given.case or ())):
                results.append(compete(case, given.rounds))
                print_result(results[-1])
        finally:
            if results:
                print_summary(results)
            if given.json is not None:
                all_of_it = {"about": about, "results": [result.plain() for result in results]}
                given.json.write_text(json.dumps(all_of_it, indent=2) + "\n")
