"""Full copies beside qemu-img convert, nbdcopy and cp: how long, with how much memory, same bytes.

Each kind of source is copied from the page cache and from the storage, within a file system and
onto another one (with --file-system, or --other-folder). Where the file system shares blocks, a
copy by copyImage is measured beside `cp --reflink=always`.

    .venv/bin/python -m benchmarks.copies [--file-system xfs] [--rounds 5] [--size 2048] [--cold] [--json …]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks._disks import (
    KiB,
    MiB,
    compare,
    graph,
    layer,
    make_qcow2,
    make_raw,
    paths_of,
    scattered,
    whole,
)
from benchmarks._ours import CopyJob, run_ours
from benchmarks._places import settle, shares_blocks
from benchmarks._processes import Command, Outcome, measure
from benchmarks._reflinks import reflink_cases
from benchmarks._table import OURS, Case, Contestant, Plan, cache_of, compare_all, parser_of
from diskyard.mover.interface import Chain, VolumeFormat

USUAL_BYTES = 2048 * MiB
OVERLAYS = 10
FAIRNESS = (
    "every result is durable within its time (ours is by itself; after the peers, `sync FILE`); peers "
    "start as programs, ours in a process that is running, as in a daemon"
)
Make = Callable[[Path, int], Chain]


def full(folder: Path, size_bytes: int) -> Chain:
    return make_raw(folder / "source.raw", size_bytes, whole(size_bytes))


def quarter(folder: Path, size_bytes: int) -> Chain:
    pieces = scattered(size_bytes, 0.25, 64 * KiB, MiB, seed=1)
    return make_raw(folder / "source.raw", size_bytes, pieces)


def fragmented(folder: Path, size_bytes: int) -> Chain:
    pieces = scattered(size_bytes, 0.01, 4 * KiB, 4 * KiB, seed=2)
    return make_raw(folder / "source.raw", size_bytes, pieces)


def empty(folder: Path, size_bytes: int) -> Chain:
    return make_raw(folder / "source.raw", size_bytes, [])


def qcow2(folder: Path, size_bytes: int) -> Chain:
    pieces = scattered(size_bytes, 0.3, 64 * KiB, MiB, seed=3)
    return make_qcow2(folder / "source.qcow2", size_bytes, pieces)


def chain(folder: Path, size_bytes: int) -> Chain:
    pieces = scattered(size_bytes, 0.3, 64 * KiB, MiB, seed=4)
    layers = make_raw(folder / "root.raw", size_bytes, pieces)
    for number in range(OVERLAYS):
        pieces = scattered(size_bytes, 0.03, 4 * KiB, 256 * KiB, seed=10 + number)
        layers = make_qcow2(folder / f"overlay-{number}.qcow2", size_bytes, pieces, layers)
    return layers


@dataclass(frozen=True)
class Kind:
    """A kind of source.

    :param times: how many times the usual size it is.
    :param size_bytes: if it does not depend on that.
    """

    name: str
    make: Make
    times: int = 1
    size_bytes: int | None = None
    target: VolumeFormat = "raw"


KINDS = (
    Kind("full raw", full),
    Kind("25 % scattered raw", quarter, 2),
    Kind("1 % fragmented raw", fragmented, 2),
    Kind("empty raw of 1 TiB", empty, size_bytes=1 << 40),
    Kind("qcow2, 30 % full", qcow2, 2),
    Kind("qcow2, 30 % full, to qcow2", qcow2, 2, target="qcow2"),
    Kind(f"{OVERLAYS} qcow2 on raw", chain, 2),
)


@dataclass(frozen=True)
class Task:
    """One source, and where its copy goes."""

    source: Chain
    path: Path
    format: VolumeFormat
    is_same: bool

    @property
    def size_bytes(self) -> int:
        return self.source[0].size_bytes

    @property
    def target(self) -> Chain:
        return (layer(self.path, self.format, self.size_bytes),)

    def contestants(self) -> list[Contestant]:
        job = CopyJob(self.source, self.target, self.size_bytes)
        ways = [*self.converts(), *self.nbdcopies(), *self.cps()]
        peers = [Contestant(peer, variant, self.durable(steps)) for peer, variant, steps in ways]
        return [Contestant(OURS, "copy_view", lambda: run_ours(job)[0]), *peers]

    def durable(self, steps: list[Command]) -> Callable[[], Outcome]:
        return lambda: measure([*steps, ["sync", str(self.path)]])

    def converts(self) -> Iterator[tuple[str, str, list[Command]]]:
        for cache in ("none", "writeback"):
            for way in (["-W", "-m", "16"], []):
                words = ["qemu-img", "convert", *way, "-t", cache, "-T", cache, "-O", self.format]
                yield (
                    "qemu-img convert",
                    " ".join([*way, "-t", cache]),
                    [[*words, graph(self.source), str(self.path)]],
                )

    def nbdcopies(self) -> Iterator[tuple[str, str, list[Command]]]:
        if self.format != "raw":
            return
        words = ["nbdcopy", "--flush", "--destination-is-zero", "--"]
        if self.source[0].format == "raw":
            yield "nbdcopy", "file to file", [[*words, str(self.source[0].path), str(self.path)]]
        make = ["truncate", "-s", str(self.size_bytes), str(self.path)]
        for variant, options in (
            ("none", ["--cache=none", "--aio=native"]),
            ("writeback", ["--cache=writeback"]),
        ):
            serve = ["qemu-nbd", "--shared=8", *options]
            source = ["[", *serve, "--read-only", graph(self.source), "]"]
            target = ["[", *serve, "--format=raw", str(self.path), "]"]
            yield "nbdcopy", f"qemu-nbd {variant} to file", [[*words, *source, str(self.path)]]
            yield "nbdcopy", f"qemu-nbd {variant} to qemu-nbd", [make, [*words, *source, *target]]

    def cps(self) -> Iterator[tuple[str, str, list[Command]]]:
        if len(self.source) > 1 or self.source[0].format != self.format:
            return
        shared = ["--reflink=never"] if self.is_same and shares_blocks(self.path.parent) else []
        for sparse in ("always", "auto"):
            words = [f"--sparse={sparse}", *shared]
            yield "cp", " ".join(words), [["cp", *words, str(self.source[0].path), str(self.path)]]


def cases(plan: Plan) -> Iterator[Case]:
    """All that was asked for; the files of one kind are there only while it is measured."""
    for kind in KINDS:
        if plan.wants(kind.name):
            source = kind.make(plan.places.one, kind.size_bytes or plan.size_bytes * kind.times)
            try:
                yield from cases_of(plan, kind, source)
            finally:
                for path in paths_of(source):
                    path.unlink()
    if shares_blocks(plan.places.one):
        yield from reflink_cases(plan)


def cases_of(plan: Plan, kind: Kind, source: Chain) -> Iterator[Case]:
    for where, folder in (("same file system", plan.places.one), ("other file system", plan.places.other)):
        if folder is None:
            continue
        path = folder / f"target.{kind.target}"
        task = Task(source, path, kind.target, folder == plan.places.one)
        for cache in plan.caches:
            yield case_of(f"{kind.name}, {where}, {cache}", task, cache_of(cache, paths_of(source)))


def case_of(name: str, task: Task, prepare: Callable[[], None]) -> Case:
    def clean() -> None:
        task.path.unlink(missing_ok=True)
        settle(task.path.parent)

    return Case(
        name,
        task.contestants(),
        prepare=prepare,
        compare=lambda: compare(graph(task.source), graph(task.target)),
        clean=clean,
    )


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__, USUAL_BYTES)
    compare_all(parser.parse_args(), cases, max(kind.times for kind in KINDS), FAIRNESS)


if __name__ == "__main__":
    main()
