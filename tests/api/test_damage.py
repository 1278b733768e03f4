"""Volumes that are gone or damaged: named by check, whatever else it finds, and noticed when healed."""

from __future__ import annotations

import pytest

from diskyard import KiB, MiB, errors
from diskyard.mover.qemu.failures import failure
from tests.api.helpers import Rig, fixes

CLUSTER = 64 * KiB


@pytest.mark.parametrize("cluster", [0, 1, 2, 3, 4], ids=["header", "refcounts", "block", "L1", "L2"])
def test_a_damaged_volume_breaks_its_image_alone(rig: Rig, cluster: int) -> None:
    """A deep check goes on past it, and a volume put back is whole again."""
    yard = rig.yard
    other = rig.disk("a", (1, 0, MiB))
    disk = rig.disk("a", (2, 0, MiB))
    yard.create_snapshot("a", disk)
    rig.write("a", disk, (3, 0, MiB))
    path = rig.volume_path("a", disk)
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(cluster * CLUSTER)
        file.write(bytes(range(256)) * 256)
    listed = yard.check_storage_repository("a", {"deep": True})
    assert [(fix.image_id, fix.runnable) for fix in listed] == [(disk, False)]
    assert len(listed[0].waits_for or "") < 800
    assert yard.get_image_status("a", disk).status == "broken"
    assert yard.get_image_status("a", other).status != "broken"
    path.write_bytes(whole)
    assert yard.check_storage_repository("a", {"deep": True}) == []
    rig.expect("a", disk, rig.read("a", disk))


def test_a_disk_whose_data_is_gone_is_listed(rig: Rig) -> None:
    """Nothing can mend it, and check says so instead of nothing."""
    disk = rig.disk("a", (2, 0, MiB))
    rig.volume_path("a", disk).unlink()
    (fix,) = fixes(rig.yard, "a")
    assert (fix.type, fix.image_id, fix.runnable) == ("mend", disk, False)
    assert "missing" in (fix.waits_for or "")


@pytest.mark.parametrize(
    "words",
    [
        'line one\nqemu-img: Failed to get "write" lock\nIs another process using the image [x]?',
        'Failed to get "write" lock',
        'Failed to get shared "write" lock',
    ],
)
def test_a_lock_of_qemu_is_no_failure_of_the_storage(words: str) -> None:
    """Whoever is refused by another task's open file may try again."""
    error = failure(words, "merging")
    assert isinstance(error, errors.LeaseHeld)
    assert error.retryable
    assert len(failure("x" * 100_000, "merging").message) < 600
