"""A copy of a repository gets an identity of its own, and is used beside its original."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from diskyard import Diskyard, MiB, errors
from diskyard.host import Files, Host
from diskyard.service import Service, call
from tests.api.helpers import COMMIT_ONLY, SIZE, Rig, code_of, picture, settle

WRITTEN = (7, 0, MiB)
_TICK_S = 0.02  # the clock by which files are made may be so late: what was before the copy is older than it
CHANGES = {"publish", "replace", "unlink", "rewrite", "remove", "discard"}


class Failing(Files):
    """Files of which the n-th change in a folder fails, and every one after it."""

    def __init__(self, host: Host, folder: Path, works: int) -> None:
        super().__init__(host.identity)
        self._folder, self._works, self.failed = str(folder), works, False

    def passing(self, name: str, words: tuple[object, ...], do: Callable[[], Any]) -> Any:
        if name in CHANGES and self._folder in str(words):
            self._works -= 1
            if self._works < 0:
                self.failed = True
                raise OSError(errno.EIO, "It fails here")
        return super().passing(name, words, do)


def copied(rig: Rig, name: str = "copied") -> dict[str, object]:
    """Where a byte copy of repository a is."""
    path = rig.folder / f"repo-{name}"
    time.sleep(_TICK_S)
    shutil.copytree(rig.place("a")["path"], path)
    return {"path": str(path)}


def connect(yard: Diskyard, where: dict[str, object], repo_id: str = "copied", **more: object) -> None:
    yard.connect_storage_repository(repo_id, "localfs-1.0", {**where, **more})


def test_a_copy_is_used_beside_its_original(rig: Rig) -> None:
    disk = rig.disk("a", WRITTEN)
    snapshot = rig.yard.create_snapshot("a", disk)
    where = copied(rig)
    assert code_of(lambda: connect(rig.yard, where)) == "NotARepository"
    connect(rig.yard, where, newMarker=True)
    assert rig.repository("copied").marker != rig.repository("a").marker
    for image in (disk, snapshot):
        rig.expect("copied", image, picture(SIZE, WRITTEN))
    rig.write("copied", disk, (9, 0, MiB))
    rig.yard.remove_image("copied", snapshot)
    settle(rig.yard, "copied")
    rig.expect("a", disk, picture(SIZE, WRITTEN))
    rig.expect("copied", disk, picture(SIZE, (9, 0, MiB)))
    settle(rig.yard, "a")
    rig.clean_slate("a", "copied")
    # Not remembered: it is done once.
    (found,) = (info for info in rig.yard.list_storage_repositories() if info.repo_id == "copied")
    assert found.connection_parameters == where
    marker = rig.repository("copied").marker
    connect(rig.yard, where, newMarker=True)
    rig.yard.disconnect_storage_repository("copied")
    connect(rig.yard, where, newMarker=True)
    assert rig.repository("copied").marker == marker


def test_what_the_original_keeps_for_others_is_not_kept_in_the_copy(rig: Rig) -> None:
    disk = rig.disk("a", WRITTEN)
    rig.yard.copy_image("b", disk, options=COMMIT_ONLY)
    tracked = rig.disk("a", WRITTEN)
    rig.yard.copy_image("b", tracked, options={"track_changes": True})
    rig.wait()
    rig.yard.prepare_image("a", disk, options={"owner": "vm"})
    where = copied(rig)
    connect(rig.yard, where, newMarker=True)
    state = rig.repository("copied").state()
    assert (list(state.held), list(state.attachments)) == ([], [])
    settle(rig.yard, "copied")
    rig.expect("copied", disk, picture(SIZE, WRITTEN))
    rig.expect("copied", tracked, picture(SIZE, WRITTEN))
    rig.clean_slate("copied")
    # The original keeps both, and its copy is completed.
    assert rig.repository("a").state().held
    rig.yard.teardown_image("a", disk, options={"owner": "vm"})
    settle(rig.yard, "b", "a")
    rig.clean_slate("b")


def test_a_copy_of_a_copy(rig: Rig) -> None:
    """It is another place: it gets a marker of its own as well."""
    where = copied(rig)
    connect(rig.yard, where, newMarker=True)
    again = {"path": str(rig.folder / "repo-again")}
    shutil.copytree(str(where["path"]), again["path"])
    assert code_of(lambda: connect(rig.yard, dict(again), "again")) == "NotARepository"
    connect(rig.yard, dict(again), "again", newMarker=True)
    assert len({rig.repository(repo).marker for repo in ("a", "copied", "again")}) == 3


def test_who_is_connected_under_the_old_marker_stops(rig: Rig) -> None:
    disk = rig.disk("a", WRITTEN)
    where = copied(rig)
    other = rig.host("other", connect=())
    connect(other, where, "theirs")
    connect(rig.yard, where, newMarker=True)
    for use in (lambda: other.list_images("theirs"), lambda: other.create_virtual_disk("theirs", MiB)):
        with pytest.raises(errors.CorruptRecord, match="marker of its own"):
            use()
    other.disconnect_storage_repository("theirs")
    connect(other, where, "theirs")
    assert [image.image_id for image in other.list_images("theirs").images] == [disk]


def test_refused(rig: Rig) -> None:
    where = copied(rig)
    rig.yard.disconnect_storage_repository("a")
    connect(rig.yard, where)
    with pytest.raises(errors.RepositoryInUse, match="copied"):
        connect(rig.yard, where, newMarker=True)
    assert code_of(lambda: connect(rig.yard, where, newMarker="yes")) == "InvalidParameter"
    name: dict[str, object] = {"name": "n", "newMarker": True}
    memory = partial(rig.yard.connect_storage_repository, "m", "memory-1.0", name)
    assert code_of(memory) == "InvalidParameter"


def test_cut_short_at_every_step(rig: Rig) -> None:
    """The place is what it was or says what to do, and the same call again completes it."""
    disk = rig.disk("a", WRITTEN)
    rig.yard.create_snapshot("a", disk)
    rig.yard.copy_image("b", disk, options=COMMIT_ONLY)
    rig.yard.disconnect_storage_repository("a")
    said = set()
    for works in range(1000):
        repo = f"x{works}"
        where = copied(rig, repo)
        files = Failing(Host.real(), Path(str(where["path"])), works)
        service = Service(replace(Host.real(), files=files), str(rig.folder / f"state-{works}"))
        place = {"repoFormat": "localfs-1.0", "connectionParameters": {**where, "newMarker": True}}
        try:
            call(service, "connectStorageRepository", {"repoId": "x", **place})
        except errors.DiskyardError:
            assert files.failed
        finally:
            service.close()
        connect(rig.yard, where, repo)
        assert disk in {image.image_id for image in rig.yard.list_images(repo).images}
        said.add(rig.repository(repo).log.read_only_because())
        rig.yard.disconnect_storage_repository(repo)
        connect(rig.yard, where, repo, newMarker=True)
        settle(rig.yard, repo)
        rig.expect(repo, disk, picture(SIZE, WRITTEN))
        rig.clean_slate(repo)
        rig.yard.disconnect_storage_repository(repo)
        if not files.failed:
            break
    assert works > 5
    assert None in said
    assert all(words is None or "newMarker" in words for words in said)
