"""Copies as the difference to an equal base with 5 % changed, beside what qemu-img needs for that.

The base is where the copy goes, and the result must hold what changed and no more. It is found by
reading both (an unrelated base), or is known from the storage: the same volume in both chains, or
blocks that are shared; or from the records, when changes are tracked. The peers are `qemu-img
convert` and `rebase`, whose result holds everything, and an overlay on the source and `rebase`. They
are told what they can know: of the shared volume, its name; where changes are tracked, they get two
files with as much changed.

    .venv/bin/python -m benchmarks.differences [--file-system xfs] [--rounds 5] [--size 2048] [--json …]
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks._disks import (
    KiB,
    MiB,
    Pieces,
    bytes_in,
    compare,
    graph,
    layer,
    make_raw,
    paths_of,
    scattered,
    whole,
    write_raw,
    writing,
)
from benchmarks._ours import CopyJob, run_ours
from benchmarks._places import make_cold, settle, shares_blocks
from benchmarks._processes import Command, Outcome, measure, run
from benchmarks._table import OURS, Case, Contestant, Plan, cache_of, compare_all, parser_of
from benchmarks._yard import Yard, name_of
from diskyard.mover.interface import Chain

USUAL_BYTES = 2048 * MiB
ROOMS = (5.5,)
CHANGED = 0.05
CLUSTER_BYTES = 64 * KiB
BLOCK_BYTES = 512
FAIRNESS = (
    "every result is durable within its time (ours is by itself; after the peers, `sync FILE`); peers "
    "start as programs, ours in a process that is running, as in a daemon; × is what the result "
    "occupies, as a multiple of what changed"
)


def changes(size_bytes: int, seed: int) -> Pieces:
    """Where a twentieth of a disk changes, in whole clusters."""
    return scattered(size_bytes, CHANGED, CLUSTER_BYTES, MiB, seed=seed, align_bytes=CLUSTER_BYTES)


def occupied_bytes(path: Path) -> int:
    """What a file takes of its storage."""
    return path.stat().st_blocks * BLOCK_BYTES


@dataclass(frozen=True)
class Pair:
    """A source, a base that is equal but for some pieces, and where the difference goes."""

    source: Chain
    base: Chain
    changed: Pieces
    path: Path

    @property
    def target(self) -> Chain:
        return (layer(self.path, "qcow2", self.source[0].size_bytes), *self.base)

    def ours(self) -> Contestant:
        job = CopyJob(self.source, self.target, self.source[0].size_bytes)
        return Contestant(OURS, "copy_view", lambda: run_ours(job)[0])

    def peers(self) -> Iterator[Contestant]:
        source, base, path = self.source[0], str(self.base[0].path), str(self.path)
        for cache in ("none", "writeback"):
            caches = ["-t", cache, "-T", cache]
            rebase = ["qemu-img", "rebase", *caches, "-f", "qcow2", "-F", "raw", "-b", base, path]
            convert = ["qemu-img", "convert", "-W", "-m", "16", *caches, "-O", "qcow2"]
            overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", source.format, "-b"]
            yield self.peer("convert + rebase", cache, [[*convert, graph(self.source), path], rebase])
            yield self.peer("overlay + rebase", cache, [[*overlay, str(source.path), path], rebase])

    def peer(self, name: str, cache: str, steps: list[Command]) -> Contestant:
        durable = [*steps, ["sync", str(self.path)]]
        return Contestant(name, f"-t {cache} -T {cache}", lambda: measure(durable))

    def compare(self) -> None:
        """Compare the result with the source."""
        compare(graph(self.source), graph(self.target))

    def size_told(self) -> str:
        return times_changed(self.path, self.changed)

    def clean(self) -> None:
        self.path.unlink(missing_ok=True)
        settle(self.path.parent)

    def case(self, name: str, prepare: Callable[[], None]) -> Case:
        contestants = [self.ours(), *self.peers()]
        return Case(name, contestants, prepare, self.compare, self.clean, self.size_told)

    def remove(self) -> None:
        for path in {*paths_of(self.source), *paths_of(self.base)}:
            path.unlink()


def times_changed(path: Path, changed: Pieces) -> str:
    """How much a result holds, for the table."""
    return f"{occupied_bytes(path) / bytes_in(changed):.2f} ×"


def unrelated(folder: Path, size_bytes: int) -> Pair:
    """Two raw files that share nothing."""
    pair = _equal(folder, size_bytes, ["cp", "--reflink=never"])
    write_raw(folder / "source.raw", pair.changed)
    return pair


def cloned(folder: Path, size_bytes: int) -> Pair:
    """A raw file and its clone."""
    pair = _equal(folder, size_bytes, ["cp", "--reflink=always"])
    write_raw(folder / "source.raw", pair.changed)
    return pair


def related(folder: Path, size_bytes: int) -> Pair:
    """An overlay, which is the source, on the base."""
    base = make_raw(folder / "base.raw", size_bytes, whole(size_bytes))
    path, changed = folder / "source.qcow2", changes(size_bytes, 1)
    # With a name, so that the peers know of the base too.
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(folder / "base.raw"), str(path))
    source = (layer(path, "qcow2", size_bytes), *base)
    with writing(graph(source, read_only=False)) as disk:
        for offset, length in changed:
            disk.pwrite(os.urandom(length), offset)
    return Pair(source, base, changed, folder / "target.qcow2")


def _equal(folder: Path, size_bytes: int, copy: list[str]) -> Pair:
    base = make_raw(folder / "base.raw", size_bytes, whole(size_bytes))
    run(*copy, str(folder / "base.raw"), str(folder / "source.raw"))
    source = (layer(folder / "source.raw", "raw", size_bytes),)
    return Pair(source, base, changes(size_bytes, 1), folder / "target.qcow2")


class Tracked:
    """A disk that changes, and its copies: each is the difference to the one before."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.yard = Yard(folder, folder)
        self.size_bytes = size_bytes
        self.round = 0
        self.changed: Pieces = []
        self.disk = self.yard.yard.create_virtual_disk("a", size_bytes)
        self.yard.write(self.disk, whole(size_bytes))
        self.copy = self.yard.yard.copy_image("b", self.disk, options={"track_changes": True})
        self.yard.yard.wait_for_tasks()
        self.older: str | None = None

    def files(self) -> list[Path]:
        """All volumes of both repositories."""
        folders = (Path(place) / "volumes" for place in self.yard.repositories.values())
        return [path for folder in folders for path in folder.iterdir()]

    def run(self, *, is_cold: bool) -> Outcome:
        """Let the guest write, then copy what changed since the copy before; only that is timed."""
        self.round += 1
        self.changed = changes(self.size_bytes, 100 + self.round)
        self.yard.write(self.disk, self.changed)
        settle(self.yard.folders["b"])
        if is_cold:
            make_cold(self.files())
        outcome, copy = run_ours(self.yard.job("b", self.disk, self.copy, track_changes=True))
        assert copy is not None
        self.older, self.copy = self.copy, copy
        return outcome

    def compare(self) -> None:
        """Compare the newest copy with the disk, which was not written since."""
        attached = self.yard.yard.prepare_image("a", self.disk)
        try:
            self.yard.compare(name_of(attached.blockdev), "b", self.copy)
        finally:
            self.yard.yard.teardown_image("a", self.disk)

    def clean(self) -> None:
        """Remove the copy before the newest, as who keeps only the last one does."""
        if self.older is not None:
            self.yard.remove("b", self.older)
            self.yard.tend()
            self.older = None
        settle(self.yard.folders["b"])


def tracked_case(name: str, tracked: Tracked, pair: Pair, cache: str, prepare: Callable[[], None]) -> Case:
    """Ours has its records; the peers have two files with as much changed."""

    def clean() -> None:
        tracked.clean()
        pair.clean()

    def same_bytes() -> None:
        if tracked.older is None:
            pair.compare()
        else:
            tracked.compare()

    def size_told() -> str:
        if tracked.older is None:
            return pair.size_told()
        return times_changed(tracked.yard.path("b", tracked.copy), tracked.changed)

    ours = Contestant(OURS, "copyImage with trackChanges", lambda: tracked.run(is_cold=cache == "cold"))
    return Case(name, [ours, *pair.peers()], prepare, same_bytes, clean, size_told)


def cases(plan: Plan) -> Iterator[Case]:
    """All that was asked for; files are there only while they are used."""
    folder = plan.places.one
    kinds = {"unrelated base": unrelated, "same volume in both chains": related}
    if shares_blocks(folder):
        kinds["blocks shared with the base"] = cloned
    for name, make in kinds.items():
        if plan.wants(name):
            pair = make(folder, plan.size_bytes)
            for cache in plan.caches:
                files = sorted({*paths_of(pair.source), *paths_of(pair.base)})
                yield pair.case(f"{name}, {cache}", cache_of(cache, files))
            pair.remove()
    if plan.wants("tracked changes"):
        pair = unrelated(folder, plan.size_bytes)
        tracked = Tracked(folder / "yard", plan.size_bytes)
        try:
            for cache in plan.caches:
                prepare = cache_of(cache, [*paths_of(pair.source), *paths_of(pair.base)])
                yield tracked_case(f"tracked changes, {cache}", tracked, pair, cache, prepare)
        finally:
            tracked.yard.close()


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__, USUAL_BYTES)
    compare_all(parser.parse_args(), cases, ROOMS, FAIRNESS)


if __name__ == "__main__":
    main()
