"""What a copy may have as its base, and what becomes of the copy if the base goes before it is read."""

from __future__ import annotations

import pytest

from diskyard import KiB, errors
from diskyard.repository.repository import Repository
from tests.api.helpers import COMMIT_ONLY, SIZE, Killed, Rig, intercept, kill, picture, settle

FULL = (7, 0, SIZE)
LIVE = (3, 0, SIZE)
ONE = (1, 0, 4 * KiB)


def full_snapshot(rig: Rig, repo: str = "a") -> str:
    """A Snapshot whose disk is removed again."""
    disk = rig.disk(repo, FULL)
    snapshot = rig.yard.create_snapshot(repo, disk)
    rig.yard.remove_image(repo, disk)
    rig.wait()
    return snapshot


# -- what is no base -------------------------------------------------------------------------


@pytest.mark.parametrize("meanwhile", ["its process dies", "a guest comes"])
def test_a_snapshot_that_was_begun_and_never_made(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Guests still write to its bytes. A copy waits until the Snapshot that is meant has come."""
    base = full_snapshot(rig)
    disk, live = rig.disk("a", LIVE, ONE), rig.disk("b", LIVE)
    apart = rig.host("two", connect=("b",))  # it cannot know that the id is used in the other repository
    copies = []

    def copy() -> None:
        copies.append(rig.yard.copy_image("b", disk, base, options=COMMIT_ONLY))
        if meanwhile == "its process dies":
            kill()
        rig.yard.prepare_image("b", live)

    with monkeypatch.context() as patch:
        intercept(patch, Repository, "make_empty", before=copy)
        with pytest.raises((errors.DiskyardError, Killed)):
            apart.create_snapshot("b", live, options={"new_image_id": base})
    if meanwhile == "a guest comes":
        rig.yard.teardown_image("b", live)
    settle(rig.yard, "a", "b")
    assert rig.yard.copy_image("b", base) == base
    rig.wait()
    settle(rig.yard, "a", "b")
    rig.write("b", live, (9, 0, SIZE))
    rig.expect("b", copies[0], picture(SIZE, LIVE, ONE))
