"""What a full copy is measured against: every way of qemu-img convert, nbdcopy and cp worth trying."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks._disks import graph, layer
from benchmarks._ours import CopyJob, run_ours
from benchmarks._places import shares_blocks
from benchmarks._processes import Command, Outcome, measure
from benchmarks._table import OURS, Contestant
from diskyard.mover.interface import Chain


@dataclass(frozen=True)
class Copy:
    """A source and where its copy goes.

    :param is_same: that is on the source's file system.
    """

    source: Chain
    path: Path
    is_same: bool

    @property
    def size_bytes(self) -> int:
        return self.source[0].size_bytes

    @property
    def target(self) -> Chain:
        return (layer(self.path, "raw", self.size_bytes),)

    def contestants(self) -> list[Contestant]:
        """Ours, as the mover alone, and all peers."""
        job = CopyJob(self.source, self.target, self.source[0].size_bytes)
        return [Contestant(OURS, "copy_view", lambda: run_ours(job)[0]), *self.peers()]

    def peers(self) -> list[Contestant]:
        """What else can copy this."""
        ways = [*self.converts(), *self.nbdcopies(), *self.cps()]
        return [Contestant(peer, variant, self.durable(steps)) for peer, variant, steps in ways]

    def durable(self, steps: list[Command]) -> Callable[[], Outcome]:
        return lambda: measure([*steps, ["sync", str(self.path)]])

    def converts(self) -> Iterator[tuple[str, str, list[Command]]]:
        for cache in ("none", "writeback"):
            for way in (["-W", "-m", "16"], []):
                words = ["qemu-img", "convert", *way, "-t", cache, "-T", cache, "-O", "raw"]
                yield (
                    "qemu-img convert",
                    " ".join([*way, "-t", cache]),
                    [[*words, graph(self.source), str(self.path)]],
                )

    def nbdcopies(self) -> Iterator[tuple[str, str, list[Command]]]:
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
        if len(self.source) > 1 or self.source[0].format != "raw":
            return
        shared = ["--reflink=never"] if self.is_same and shares_blocks(self.path.parent) else []
        for sparse in ("always", "auto"):
            words = [f"--sparse={sparse}", *shared]
            yield "cp", " ".join(words), [["cp", *words, str(self.source[0].path), str(self.path)]]
