"""A log that is trimmed under a writer, or damaged while work is due."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import pytest

from diskyard import KiB, MiB, errors
from diskyard.log.codec import decode
from diskyard.model.transaction import Entry
from tests.api.helpers import (
    COMMIT_ONLY,
    SIZE,
    Rig,
    code_of,
    fixes,
    intercept,
    picture,
    run_fix,
    settle,
)

ONE = (1, 0, MiB)
TWO = (2, MiB, MiB)
THREE = (3, 2 * MiB, 64 * KiB)


def make_old(rig: Rig, repo: str) -> None:
    """Everything in the log is older than what is kept for its age."""
    for path in (Path(rig.place(repo)["path"]) / "log").iterdir():
        os.utime(path, (time.time() - 2 * 86400,) * 2)


def test_a_suspended_writer_that_publishes_after_a_trim(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not learn a falsehood, nothing that others committed is lost, and the log goes on."""
    yard, other = rig.yard, rig.host("two")
    disk = rig.disk("a", ONE)
    made: list[str] = []

    def many() -> None:
        for _ in range(300):
            made.append(other.create_virtual_disk("a", MiB))
            if len(made) % 50 == 0:
                make_old(rig, "a")

    calls = intercept(monkeypatch, rig.repository("a").storage, "put", before=many)
    with pytest.raises(errors.StorageError, match="not known") as caught:
        yard.create_snapshot("a", disk)
    assert caught.value.details["outcome"] == "unknown"
    assert len(calls) == 1
    for host in (yard, other, rig.host("three")):
        found = {image.image_id for image in host.list_images("a").images}
        assert found == {disk, *made}
    snapshot = yard.create_snapshot("a", disk)
    rig.expect("a", snapshot, picture(SIZE, ONE), yard=rig.host("four"))
    settle(other, "a")
    rig.clean_slate("a")


def newest_entry(rig: Rig, repo: str) -> tuple[Path, Path]:
    """The files of the newest entry."""
    folder = Path(rig.place(repo)["path"]) / "log"
    first = max(folder.glob("*.a"))
    return first, first.with_suffix(".b")


def test_a_damaged_log_entry_while_a_clean_is_due(rig: Rig) -> None:
    """With neither copy readable nothing is deleted or changed; put back, work goes on."""
    yard = rig.yard
    disk, gone = rig.disk("a", ONE), rig.disk("a", TWO)
    yard.remove_image("a", gone, options=COMMIT_ONLY)
    due = fixes(yard, "a", "clean")
    assert due
    last = rig.yard.create_virtual_disk("a", MiB)
    copies = newest_entry(rig, "a")
    good = [path.read_bytes() for path in copies]
    assert decode(good[0], Entry)[0].verb == "createVirtualDisk"
    for path in copies:
        path.write_bytes(b"x" * 100)
    before = rig.files("a")
    fresh = rig.host("two")
    for fix in due:
        assert code_of(partial(fresh.fix_storage_repository, "a", fix)) == "CorruptRecord"
    for verb in (
        lambda: fresh.create_virtual_disk("a", MiB),
        lambda: fresh.create_snapshot("a", disk),
        lambda: fresh.remove_image("a", disk),
        lambda: fresh.remove_storage_repository("a"),
    ):
        assert code_of(verb) in ("CorruptRecord", "NotEmpty")
    for fix in fixes(fresh, "a"):
        assert not fix.runnable
        assert fix.waits_for
    health = {found.repo_id: found.health for found in fresh.list_storage_repositories()}
    assert "read-only" in health["a"]
    assert health["b"] == "ok"
    assert rig.files("a") == before
    for path, data in zip(copies, good, strict=True):
        path.write_bytes(data)
    settle(fresh, "a")
    assert {image.image_id for image in fresh.list_images("a").images} == {disk, last}
    rig.expect("a", disk, picture(SIZE, ONE), yard=fresh)
    rig.clean_slate("a")


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("damage", ["removed", "damaged", "empty"])
def test_one_copy_of_a_log_entry_is_enough(rig: Rig, copy: int, damage: str) -> None:
    """The other copy is read, the bad one is listed, and a fix writes it again."""
    disk = rig.disk("a", ONE)
    paths = newest_entry(rig, "a")
    good = paths[0].read_bytes()
    if damage == "removed":
        paths[copy].unlink()
    else:
        paths[copy].write_bytes(b"" if damage == "empty" else good[:-20])
    other = rig.host("two")
    rig.expect("a", disk, picture(SIZE, ONE), yard=other)
    settle(other, "a")
    assert [path.read_bytes() == good for path in paths] == [True, True]
    rig.clean_slate("a")


@pytest.mark.parametrize("newer", [0, 3])
def test_a_checkpoint_that_cannot_be_read_is_replaced(rig: Rig, newer: int) -> None:
    """An older checkpoint and the entries after it do meanwhile; check lists it and a fix mends it."""
    disk = rig.disk("a", ONE)
    folder = Path(rig.place("a")["path"]) / "checkpoints"
    while len(list(folder.iterdir())) == 2:
        rig.yard.set_user_data("a", disk, len(list((folder.parent / "log").iterdir())))
    for number in range(newer):
        rig.yard.set_user_data("a", disk, f"newer {number}")
    for path in (max(folder.glob("*.a")), max(folder.glob("*.b"))):
        path.write_bytes(b"x")
    info = rig.yard.get_image_info("a", disk)
    other = rig.host("two")
    (fix,) = other.check_storage_repository("a", options={"deep": True})
    assert run_fix(other, "a", fix).changed
    assert rig.host("three").get_image_info("a", disk) == info
    rig.expect("a", disk, picture(SIZE, ONE))
    rig.clean_slate("a")
