"""What users rely on: the flow of the RFC, bases that come later, Snapshots mended from elsewhere."""

from __future__ import annotations

import time
import uuid

import pytest

from diskyard import KiB, MiB, errors
from tests.api.helpers import (
    COMMIT_ONLY,
    SIZE,
    Rig,
    code_of,
    fix_module,
    fixes,
    intercept,
    picture,
    run_fix,
    settle,
)

BIG = 64 * MiB


def test_the_flow_of_eight_steps(rig: Rig) -> None:
    """A disk is copied, changed, and copied again as the difference to its first copy."""
    yard = rig.yard
    base = [(number + 1, number * 8 * MiB, 5 * MiB) for number in range(8)]
    changed = [(101, 3 * MiB, 2 * MiB), (102, 40 * MiB, 300 * KiB), (0, 16 * MiB, MiB)]
    # 1, 2: two repositories are connected; 3: imageA is made and written in repoA.
    image_a = rig.disk("a", *base, size=BIG)
    # 4: it is copied to repoB; 5: until the copy is complete its status says so.
    copy_1 = yard.copy_image("b", image_a)
    assert yard.wait_for_image("b", copy_1, 60).status == "optimized"
    rig.wait()
    # 6: imageA changes; 7: it is copied again, on its first copy; 8: that is complete.
    rig.write("a", image_a, *changed)
    copy_2 = yard.copy_image("b", image_a, copy_1)
    assert yard.wait_for_image("b", copy_2, 60).status == "optimized"
    rig.wait()

    changed_bytes = sum(length for _, _, length in changed)
    assert rig.allocated("b", copy_2) <= 1.1 * changed_bytes + MiB
    assert [image.image_id for image in yard.list_images("a").images] == [image_a]
    assert yard.list_images("b", kind="snapshot").images == ()
    rig.expect("b", copy_1, picture(BIG, *base))
    rig.expect("b", copy_2, picture(BIG, *base, *changed))
    rig.write("b", copy_1, (200, 0, BIG))
    rig.expect("b", copy_2, picture(BIG, *base, *changed))
    rig.expect("b", copy_1, picture(BIG, (200, 0, BIG)))
    rig.expect("a", image_a, picture(BIG, *base, *changed))
    settle(rig.host("two"), "a", "b")
    assert len(rig.files("a")) == 1
    rig.expect("b", copy_2, picture(BIG, *base, *changed))
    rig.clean_slate("a", "b")


def test_a_base_that_arrives_later(rig: Rig) -> None:
    """A difference without its base is broken and waits; the base's copy makes it runnable."""
    yard = rig.yard
    disk = rig.disk("a", (1, 0, 3 * MiB))
    base = yard.create_snapshot("a", disk)
    rig.write("a", disk, (2, MiB, 64 * KiB))
    later = yard.create_snapshot("a", disk)
    assert yard.copy_image("b", later, base, options=COMMIT_ONLY) == later
    assert yard.get_image_status("b", later).status == "broken"
    (fix,) = fixes(yard, "b")
    assert (fix.type, fix.runnable, fix.image_id) == ("mend", False, later)
    assert base in (fix.waits_for or "")
    with pytest.raises(errors.ImageBroken, match=base):
        run_fix(yard, "b", fix)
    assert yard.copy_image("b", base) == base
    assert yard.wait_for_tasks(60)
    (fix,) = fixes(yard, "b")
    assert (fix.type, fix.runnable) == ("mend", True)
    assert run_fix(rig.host("two"), "b", fix).changed
    assert yard.get_image_status("b", later).status == "optimized"
    rig.expect("b", later, picture(SIZE, (1, 0, 3 * MiB), (2, MiB, 64 * KiB)))
    rig.expect("b", base, picture(SIZE, (1, 0, 3 * MiB)))
    assert rig.allocated("b", later) <= MiB
    rig.clean_slate("a", "b")


def test_a_copy_without_its_source_waits(rig: Rig) -> None:
    """A host that does not reach the source lists the mend as waiting, and runs it when it does."""
    yard = rig.yard
    disk = rig.disk("a", (1, 0, MiB))
    copy = yard.copy_image("b", disk, options=COMMIT_ONLY)
    other = rig.host("two", connect=("b",))
    (fix,) = fixes(other, "b")
    assert (fix.runnable, fix.type) == (False, "mend")
    assert fix.waits_for
    other.connect_storage_repository("a of two", rig.format, rig.place("a"))
    (fix,) = fixes(other, "b")
    assert fix.runnable
    assert run_fix(other, "b", fix).changed
    rig.expect("b", copy, picture(SIZE, (1, 0, MiB)))
    settle(other, "a of two")
    rig.clean_slate("a", "b")


def test_a_hold_whose_target_cannot_be_reached_waits(rig: Rig) -> None:
    """Where the copy cannot be looked at, its freeze point stays and is listed, not runnable."""
    disk = rig.disk("a", (1, 0, MiB))
    copy = rig.yard.copy_image("b", disk, options=COMMIT_ONLY)
    alone = rig.host("two", connect=("a",))
    rig.write("a", disk, (2, 0, MiB))
    (fix,) = fixes(alone, "a", "clean")
    assert not fix.runnable
    assert not run_fix(alone, "a", fix).changed
    settle(rig.yard, "b", "a")
    rig.expect("b", copy, picture(SIZE, (1, 0, MiB)))


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_snapshot_is_mended_from_another_repository(rig: Rig, damage: str) -> None:
    """A Snapshot whose volume is gone or damaged is restored from where it is whole."""
    yard = rig.yard
    disk = rig.disk("a", (1, 0, MiB))
    lower = yard.create_snapshot("a", disk)
    rig.write("a", disk, (2, MiB, MiB))
    snapshot = yard.create_snapshot("a", disk)
    rig.write("a", disk, (3, 2 * MiB, MiB))
    yard.copy_image("b", snapshot)
    rig.wait()
    path = rig.volume_path("a", snapshot)
    if damage == "missing":
        path.unlink()
    else:
        with path.open("r+b") as file:
            file.write(bytes(64 * KiB))
    listed = yard.check_storage_repository("a", options={"deep": True, "types": ["mend"]})
    # The disk is broken too, as it reads the Snapshot: it waits for that one's mend.
    assert {fix.image_id: fix.runnable for fix in listed} == {snapshot: True, disk: False}
    mend = next(fix for fix in listed if fix.runnable)
    assert yard.get_image_status("a", snapshot).status == "broken"
    assert yard.get_image_status("a", disk).status == "broken"
    assert yard.get_image_status("a", lower).status == "optimized"
    assert code_of(lambda: yard.prepare_image("a", disk)) == "ImageBroken"
    assert code_of(lambda: yard.copy_image("b", disk)) == "ImageBroken"
    assert run_fix(rig.host("two"), "a", mend).changed
    assert yard.get_image_status("a", disk).status == "optimized"
    rig.expect("a", snapshot, picture(SIZE, (1, 0, MiB), (2, MiB, MiB)))
    rig.expect("a", disk, picture(SIZE, (1, 0, MiB), (2, MiB, MiB), (3, 2 * MiB, MiB)))
    rig.expect("a", lower, picture(SIZE, (1, 0, MiB)))
    settle(yard, "a", "b")
    rig.clean_slate("a", "b")


def test_a_broken_snapshot_is_mended_by_copying_it_there(rig: Rig) -> None:
    """Asking for the copy again is the same as running its mend."""
    yard = rig.yard
    snapshot = yard.create_snapshot("a", rig.disk("a", (1, 0, MiB)))
    yard.copy_image("b", snapshot)
    rig.wait()
    rig.volume_path("b", snapshot).unlink()
    assert yard.get_image_status("b", snapshot).status == "broken"
    assert yard.copy_image("b", snapshot) == snapshot
    rig.wait()
    assert yard.get_image_status("b", snapshot).status == "optimized"
    rig.expect("b", snapshot, picture(SIZE, (1, 0, MiB)))


def test_a_disk_whose_volume_is_missing_stays_listed_as_broken(rig: Rig) -> None:
    """There is no source for a disk's own bytes: it is broken, and nothing hides that."""
    disk = rig.disk("a", (1, 0, MiB))
    rig.volume_path("a", disk).unlink()
    assert rig.yard.get_image_status("a", disk).status == "broken"
    page = rig.yard.list_images("a", status="broken")
    assert [image.image_id for image in page.images] == [disk]
    rig.yard.remove_image("a", disk)
    rig.wait()
    rig.clean_slate("a")


def test_snapshots_on_two_sides_are_one(rig: Rig) -> None:
    """A difference on a Snapshot that both sides have needs neither its bytes nor a freeze."""
    yard = rig.yard
    disk = rig.disk("a", (1, 0, SIZE))
    first = yard.create_snapshot("a", disk)
    yard.copy_image("b", first)
    rig.wait()
    rig.write("a", disk, (2, 0, 64 * KiB))
    second = yard.create_snapshot("a", disk)
    yard.copy_image("b", second, first)
    rig.wait()
    assert rig.allocated("b", second) <= 64 * KiB * 1.1 + MiB
    mine = yard.create_virtual_disk("b", SIZE, second, options={"new_image_id": str(uuid.uuid4())})
    rig.expect("b", mine, picture(SIZE, (1, 0, SIZE), (2, 0, 64 * KiB)))
    rig.clean_slate("a", "b")


def test_copies_in_a_row_wait_for_each_other(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference to a Snapshot that is still being copied is completed after it.

    So it is on a busy host, where the first copy's task takes long to begin.
    """
    yard = rig.yard
    intercept(monkeypatch, fix_module("runner"), "mend", before=lambda: time.sleep(2.5))
    stretches = [(number + 1, number * 8 * MiB, 6 * MiB) for number in range(8)]
    disk = rig.disk("a", *stretches, size=BIG)
    first = yard.create_snapshot("a", disk)
    rig.write("a", disk, (99, 0, MiB))
    second = yard.create_snapshot("a", disk)
    yard.copy_image("b", first, options={"rate_limit": 24 * MiB})
    yard.copy_image("b", second, first)
    assert yard.wait_for_image("b", second, 60).status == "optimized"
    rig.expect("b", first, picture(BIG, *stretches))
    rig.expect("b", second, picture(BIG, *stretches, (99, 0, MiB)))
    assert rig.allocated("b", second) <= 2 * MiB
