"""Full copies by copyImage, from the call to the complete image, with all that the records need.

Where blocks are shared the peer is `cp --reflink=always`; elsewhere the peers of any full copy.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks._disks import KiB, compare, graph, layer, scattered, whole
from benchmarks._ours import run_ours
from benchmarks._peers import Copy
from benchmarks._places import settle, shares_blocks
from benchmarks._processes import Outcome, measure
from benchmarks._table import OURS, Case, Contestant, Plan, cache_of
from benchmarks._yard import Yard

SMALLER = 8


def verb_cases(plan: Plan) -> Iterator[Case]:
    """All of them."""
    one, other = plan.places.one, plan.places.other
    if shares_blocks(one):
        yield from reflink_cases(plan)
    elif plan.wants("copyImage, full raw"):
        yield from moving_cases(plan, Yard(one / "yard", one / "yard"), "same file system")
    if other is not None and plan.wants("copyImage, full raw"):
        yield from moving_cases(plan, Yard(one / "yard", other / "yard"), "other file system")


def moving_cases(plan: Plan, yard: Yard, where: str) -> Iterator[Case]:
    """Copies of a full Snapshot that must move its bytes."""
    try:
        disk = yard.yard.create_virtual_disk("a", plan.size_bytes)
        yard.write(disk, whole(plan.size_bytes))
        snapshot = yard.yard.create_snapshot("a", disk)
        for cache in plan.caches:
            name = f"copyImage, full raw, Snapshot, {where}, {cache}"
            yield verb_case(name, yard, "b", snapshot, cache)
    finally:
        yard.close()


def reflink_cases(plan: Plan) -> Iterator[Case]:
    """Copies of a full disk of two sizes, and of a fragmented one."""
    size_bytes = plan.size_bytes
    kinds = (
        ("full raw / 8", size_bytes // SMALLER, whole(size_bytes // SMALLER)),
        ("full raw", size_bytes, whole(size_bytes)),
        ("1 % fragmented raw", size_bytes, scattered(size_bytes, 0.01, 4 * KiB, 4 * KiB, seed=5)),
    )
    for name, length, pieces in kinds:
        if not plan.wants(f"copyImage, {name}"):
            continue
        yard = Yard(plan.places.one / "yard", plan.places.one / "yard")
        try:
            disk = yard.yard.create_virtual_disk("a", length)
            yard.write(disk, pieces)
            yield verb_case(f"copyImage, {name}, disk, same repository, shared", yard, "a", disk)
            snapshot = yard.yard.create_snapshot("a", disk)
            yield verb_case(f"copyImage, {name}, Snapshot, other repository, shared", yard, "b", snapshot)
        finally:
            yard.close()


def verb_case(name: str, yard: Yard, target: str, image: str, cache: str | None = None) -> Case:
    """A copy of one image.

    :param cache: of the source; None where blocks are shared.
    """
    path = yard.path("a", image)
    source = (layer(path, "raw", path.stat().st_size),)
    is_same = yard.folders["a"] == yard.folders[target]
    peer = Copy(source, yard.folders[target] / "copy.raw", is_same)
    made: list[str] = []

    def ours() -> Outcome:
        outcome, copy = run_ours(yard.job(target, image))
        assert copy is not None
        made.append(copy)
        return outcome

    def same_bytes() -> None:
        if made:
            yard.compare(graph(source), target, made[0])
        else:
            compare(graph(source), graph(peer.target))

    def clean() -> None:
        while made:
            yard.remove(target, made.pop())
        peer.path.unlink(missing_ok=True)
        settle(yard.folders[target])

    peers = peer.peers() if cache is not None else [cloning(peer)]
    contestants = [Contestant(OURS, "copyImage", ours), *peers]
    return Case(name, contestants, cache_of(cache or "warm", [path]), same_bytes, clean)


def cloning(copy: Copy) -> Contestant:
    """What a clone costs a program."""
    steps = [
        ["cp", "--reflink=always", str(copy.source[0].path), str(copy.path)],
        ["sync", str(copy.path)],
    ]
    return Contestant("cp", "--reflink=always", lambda: measure(steps))
