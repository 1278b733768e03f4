"""copyImage where blocks are shared, beside `cp --reflink=always`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks._disks import KiB, Pieces, compare, graph, layer, scattered, whole, writing
from benchmarks._ours import VerbJob, connected, run_ours
from benchmarks._places import settle
from benchmarks._processes import Outcome, measure
from benchmarks._table import OURS, Case, Contestant, Plan
from diskyard import Diskyard

SMALLER = 8


class Yard:
    """Two repositories, ``a`` and ``b``, side by side."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_folder = str(folder / "state")
        self.repositories = {name: str(folder / f"repository-{name}") for name in "ab"}
        self.yard: Diskyard = connected(self.job("a", ""))

    def job(
        self, target: str, image_id: str, base_image_id: str | None = None, *, track_changes: bool = False
    ) -> VerbJob:
        """A copy from ``a``."""
        return VerbJob(self.state_folder, self.repositories, target, image_id, base_image_id, track_changes)

    def write(self, disk: str, pieces: Pieces) -> None:
        """Write random data to a disk of ``a`` as a guest does."""
        attached = self.yard.prepare_image("a", disk)
        try:
            with writing(name_of(attached.blockdev)) as handle:
                for offset, length in pieces:
                    handle.pwrite(os.urandom(length), offset)
        finally:
            self.yard.teardown_image("a", disk)

    def path(self, repo: str, image: str) -> Path:
        """The file of an image's own volume."""
        opened = self.yard.service.connections.get(repo)
        state = opened.state()
        found = opened.layer(state.volumes[state.images[image].volume_id or ""]).path
        assert found is not None
        return Path(found)

    def compare(self, name: str, repo: str, image: str) -> None:
        """Compare what QEMU opens by a name with an image."""
        reader = {"read_only": True, "owner": "compare"}
        attached = self.yard.prepare_image(repo, image, options=reader)
        try:
            compare(name, name_of(attached.blockdev))
        finally:
            self.yard.teardown_image(repo, image, options={"owner": "compare"})

    def remove(self, repo: str, image: str) -> None:
        """Remove an image and its data."""
        self.yard.remove_image(repo, image)
        self.yard.wait_for_tasks()

    def close(self) -> None:
        self.yard.close()
        shutil.rmtree(self.folder)


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
        (plan.places.one / "yard").mkdir()
        yard = Yard(plan.places.one / "yard")
        try:
            disk = yard.yard.create_virtual_disk("a", length)
            yard.write(disk, pieces)
            yield reflink_case(f"copyImage, {name}, disk, same repository", yard, "a", disk)
            snapshot = yard.yard.create_snapshot("a", disk)
            yield reflink_case(f"copyImage, {name}, Snapshot, other repository", yard, "b", snapshot)
        finally:
            yard.close()


def reflink_case(name: str, yard: Yard, target: str, image: str) -> Case:
    source = yard.path("a", image)
    size_bytes = source.stat().st_size
    path = yard.folder / "copy.raw"
    made: list[str] = []

    def ours() -> Outcome:
        outcome, copy = run_ours(yard.job(target, image))
        assert copy is not None
        made.append(copy)
        return outcome

    def same_bytes() -> None:
        wanted = graph((layer(source, "raw", size_bytes),))
        if made:
            yard.compare(wanted, target, made[0])
        else:
            compare(wanted, graph((layer(path, "raw", size_bytes),)))

    def clean() -> None:
        while made:
            yard.remove(target, made.pop())
        path.unlink(missing_ok=True)
        settle(yard.folder)

    steps = [["cp", "--reflink=always", str(source), str(path)], ["sync", str(path)]]
    contestants = [
        Contestant(OURS, "copyImage, to complete", ours),
        Contestant("cp", "--reflink=always", lambda: measure(steps)),
    ]
    return Case(name, contestants, lambda: settle(yard.folder), same_bytes, clean)


def name_of(blockdev: object) -> str:
    """The file name by which QEMU's tools open what prepareImage returned."""
    return "json:" + json.dumps(blockdev)
