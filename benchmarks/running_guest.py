"""How long the writes of a running guest wait while createSnapshot freezes its disk.

A storage daemon serves a disk of a repository, opened past the page cache as prepareImage gives it, and a
client writes 4 KiB at a time, each with a flush. A turn is everything that this client waits for: it
reads, writes and flushes. In turns of a few, snapshots are taken in two ways, and none:

- ours: the verb, by the command's own library, from the look at the guest to the answer;
- by hand: `blockdev-add` of what `qemu-img create` has made, and a transaction with `blockdev-snapshot`,
  over a connection that is open;
- none: as much time without a snapshot. This is what the machine's noise alone makes of the longest turn.

For each the longest turn is the pause. All images are judged in the end: exact prefixes of the writes.

    .venv/bin/python -m benchmarks.running_guest [--snapshots 100] [--folder …]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks._rows import Row, percentile, print_heading, print_rows, timed_ms
from diskyard import Diskyard, MiB
from diskyard.mover.qemu.graphs import guest_nodes
from diskyard.testing.running_guest import StorageDaemonGuest, judge
from diskyard.testing.running_guest.by_hand import by_hand

SIZE_BYTES = 64 * MiB
AT_A_TIME = 10
AFTER_S = 0.2  # the guest goes on after each, so that a turn that waited is over
TARGET_P50_MS, TARGET_P95_MS = 20.0, 50.0
OWNER = {"owner": "benchmark"}


class Running:
    """A disk and its guest, in a repository of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        place = {"path": str(folder / "repository")}
        self.yard = Diskyard(state_folder=str(folder / "state"))
        self.yard.create_storage_repository("localfs-1.0", place)
        self.yard.connect_storage_repository("r", "localfs-1.0", place)
        self.disk = self.yard.create_virtual_disk("r", SIZE_BYTES)
        graph = self.yard.prepare_image("r", self.disk, OWNER).blockdev
        self.guest = StorageDaemonGuest(folder / "guest", [graph], gap_ms=0)
        self.guest.__enter__()
        self.yard.prepare_image("r", self.disk, {**OWNER, "live": {"qmp": str(self.guest.monitor)}})

    def pause_ms(self, work: Callable[[], object]) -> tuple[float, float]:
        """The guest's longest turn while something is done, and how long that took."""
        since = self.guest.acknowledged()
        took_ms = timed_ms(work)
        time.sleep(AFTER_S)
        return self.guest.pause_longest_ms(since), took_ms

    def snapshot(self) -> None:
        """The verb."""
        self.yard.create_snapshot("r", self.disk)

    def end(self) -> None:
        """The guest ends; every image is what it must be."""
        assert self.guest.errors() == []
        last = self.guest.end()
        self.yard.teardown_image("r", self.disk, OWNER)
        for image in self.yard.list_images("r").images:
            graph = self.yard.prepare_image("r", image.image_id, {"read_only": True}).blockdev
            raw = self.folder / "raw"
            subprocess.run(
                ["qemu-img", "convert", "-O", "raw", "json:" + json.dumps(graph), str(raw)], check=True
            )
            self.yard.teardown_image("r", image.image_id)
            judge(raw, last if image.image_id == self.disk else 0)
        self.yard.close()


def by_verb(folder: Path, count: int) -> list[tuple[float, float]]:
    """Snapshots by createSnapshot."""
    running = Running(folder)
    found = [running.pause_ms(running.snapshot) for _ in range(count)]
    running.end()
    return found


def without(folder: Path, count: int) -> list[tuple[float, float]]:
    """No snapshots."""
    running = Running(folder)
    found = [running.pause_ms(lambda: time.sleep(0.02)) for _ in range(count)]
    running.end()
    return found


def with_hands(folder: Path, count: int) -> list[tuple[float, float]]:
    """Snapshots by whoever speaks to QEMU itself; nobody knows of them, so they are not judged."""
    running = Running(folder)
    (attachment,) = running.yard.service.connections.get("r").state().attachments_of(running.disk)
    top, _ = guest_nodes(attachment.id, attachment.volume_ids[0])
    found = []
    with by_hand(running.guest.monitor) as monitor:
        for number in range(count):
            path = folder / f"by-hand-{number}"
            words = ["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(SIZE_BYTES)]
            subprocess.run(words, check=True)
            found.append(running.pause_ms(partial(monitor.switch, {top: path})))
            top = path.name
    running.guest.kill()
    running.yard.close()
    return found


WAYS = {"diskyard": by_verb, "by hand": with_hands, "no snapshot": without}


def rows_of(found: dict[str, list[tuple[float, float]]]) -> list[Row]:
    """The pauses, and how long the whole took."""
    pauses = {name: [pause for pause, _ in samples] for name, samples in found.items()}
    took = {name: [ms for _, ms in samples] for name, samples in found.items() if name != "no snapshot"}

    def row(
        work: str, of: dict[str, list[float]], figure: Callable[[Sequence[float]], float], most_ms: float = 0
    ) -> Row:
        figures = {name: figure(samples) for name, samples in of.items()}
        ours = figures.pop("diskyard")
        target = f"at most {most_ms:g} ms" if most_ms else ""
        return Row(work, "ms", ours, figures, target, ours <= most_ms if most_ms else None)

    return [
        row("the guest's longest turn, median", pauses, statistics.median, TARGET_P50_MS),
        row("the guest's longest turn, p95", pauses, lambda samples: percentile(samples, 95), TARGET_P95_MS),
        row("the guest's longest turn, longest", pauses, max),
        row("from the call to the answer, median", took, statistics.median),
        row("from the call to the answer, p95", took, lambda samples: percentile(samples, 95)),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--snapshots", type=int, default=100)
    parser.add_argument("--folder", help="where to measure; its path must be short")
    given = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory(prefix="dy-", dir=given.folder) as folder:
        print_heading(Path(folder))
        for number in range(-(-given.snapshots // AT_A_TIME)):
            for index, (name, way) in enumerate(WAYS.items()):
                place = Path(folder) / f"{number}-{index}"
                place.mkdir()
                found[name] += way(place, AT_A_TIME)
    print_rows(
        f"Snapshots of a running disk, {len(found['diskyard'])} in each way, cache.direct", rows_of(found)
    )


if __name__ == "__main__":
    main()
