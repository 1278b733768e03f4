"""Full copies beside qemu-img convert, nbdcopy and cp: how long, with how much memory, same bytes.

Each kind of source is copied from the page cache and from the storage, within a file system and
onto another one (with --file-system, or --other-folder). The targets are raw, as those of all full
copies are. A full copy is measured by copyImage too;
where the file system shares blocks, beside `cp --reflink=always`.

    .venv/bin/python -m benchmarks.copies [--file-system xfs] [--rounds 5] [--size 2048] [--cold] [--json …]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks._by_verb import verb_cases
from benchmarks._disks import (
    KiB,
    MiB,
    compare,
    graph,
    make_qcow2,
    make_raw,
    paths_of,
    scattered,
    whole,
)
from benchmarks._peers import Copy
from benchmarks._places import settle
from benchmarks._table import Case, Plan, cache_of, compare_all, parser_of
from diskyard.mover.interface import Chain

USUAL_BYTES = 2048 * MiB
OVERLAYS = 10
ROOMS = (4, 2)
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


KINDS = (
    Kind("full raw", full),
    Kind("25 % scattered raw", quarter, 2),
    Kind("1 % fragmented raw", fragmented, 2),
    Kind("empty raw of 1 TiB", empty, size_bytes=1 << 40),
    Kind("qcow2, 30 % full", qcow2, 2),
    Kind(f"{OVERLAYS} qcow2 on raw", chain, 2),
)


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
    yield from verb_cases(plan)


def cases_of(plan: Plan, kind: Kind, source: Chain) -> Iterator[Case]:
    for where, folder in (("same file system", plan.places.one), ("other file system", plan.places.other)):
        if folder is None:
            continue
        copy = Copy(source, folder / "target.raw", folder == plan.places.one)
        for cache in plan.caches:
            yield case_of(f"{kind.name}, {where}, {cache}", copy, cache_of(cache, paths_of(source)))


def case_of(name: str, copy: Copy, prepare: Callable[[], None]) -> Case:
    def clean() -> None:
        copy.path.unlink(missing_ok=True)
        settle(copy.path.parent)

    return Case(
        name,
        copy.contestants(),
        prepare=prepare,
        compare=lambda: compare(graph(copy.source), graph(copy.target)),
        clean=clean,
    )


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__, USUAL_BYTES)
    compare_all(parser.parse_args(), cases, ROOMS, FAIRNESS)


if __name__ == "__main__":
    main()
