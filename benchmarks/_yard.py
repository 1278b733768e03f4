"""Two repositories that a benchmark copies between, with the verbs of the API."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from benchmarks._disks import Pieces, compare, writing
from benchmarks._ours import VerbJob, connected
from diskyard import Diskyard


class Yard:
    """Two repositories, ``a`` and ``b``.

    :param folder: for ``a`` and all else; made, and gone again when it is closed.
    :param other: for ``b``, likewise.
    """

    def __init__(self, folder: Path, other: Path) -> None:
        self.folders = {"a": folder, "b": other}
        for place in {folder, other}:
            place.mkdir()
        self.state_folder = str(folder / "state")
        self.repositories = {name: str(place / name) for name, place in self.folders.items()}
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
        repository = self.yard.service.connections.get(repo)
        state = repository.state()
        found = repository.layer(state.volumes[state.images[image].volume_id or ""]).path
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

    def tend(self) -> None:
        """Run all fixes until none is left, as a daemon does by itself in time."""
        is_done = False
        while not is_done:
            is_done = True
            for repo in self.repositories:
                for fix in self.yard.check_storage_repository(repo):
                    if fix.runnable:
                        task = self.yard.fix_storage_repository(repo, fix)
                        self.yard.wait_for_task(task.task_id)
                        is_done = False

    def remove(self, repo: str, image: str) -> None:
        """Remove an image and its data."""
        self.yard.remove_image(repo, image)
        self.yard.wait_for_tasks()

    def close(self) -> None:
        self.yard.close()
        for place in set(self.folders.values()):
            shutil.rmtree(place)


def name_of(blockdev: object) -> str:
    """The file name by which QEMU's tools open what prepareImage returned."""
    return "json:" + json.dumps(blockdev)
