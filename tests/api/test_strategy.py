"""strategy performance, optimizeNow, and chains that grow too deep."""

from __future__ import annotations

from typing import Any

import pytest

from diskyard import KiB, MiB
from tests.api.helpers import COMMIT_ONLY, SIZE, Rig, fixes, intercept, picture, run_fix, settle

ONE = (1, 0, MiB)
TWO = (2, MiB, MiB)
FAST = {"strategy": "performance"}


def test_performance_is_raw_and_reserved(rig: Rig) -> None:
    """A new disk is optimized at once: its blocks are reserved, and read zeros."""
    disk = rig.yard.create_virtual_disk("a", SIZE, options=FAST)
    assert rig.volume_path("a", disk).suffix == ".raw"
    assert rig.allocated("a", disk) >= SIZE
    assert rig.yard.get_image_status("a", disk).status == "optimized"
    rig.expect("a", disk, bytes(SIZE))
    rig.clean_slate("a")


def test_performance_from_a_snapshot_is_degraded_until_optimized(rig: Rig) -> None:
    """What is quicker to reach is reached; the rest is listed, and flattens the chain."""
    base = rig.yard.create_snapshot("a", rig.disk("a", ONE))
    disk = rig.yard.create_virtual_disk("a", SIZE, base, options=FAST)
    rig.write("a", disk, TWO)
    assert rig.yard.get_image_status("a", disk).status == "degraded"
    (fix,) = fixes(rig.yard, "a")
    assert (fix.type, fix.image_id, fix.needs_bytes) == ("optimize", disk, SIZE)
    assert run_fix(rig.host("two"), "a", fix).changed
    assert rig.yard.get_image_status("a", disk).status == "optimized"
    assert rig.volume_path("a", disk).suffix == ".raw"
    assert rig.allocated("a", disk) >= SIZE
    rig.expect("a", disk, picture(SIZE, ONE, TWO))
    rig.expect("a", base, picture(SIZE, ONE))
    rig.clean_slate("a")


@pytest.mark.parametrize("verb", ["createVirtualDisk", "copyImage", "importImage"])
def test_optimize_now(rig: Rig, verb: str) -> None:
    """It goes on to optimized without being asked again."""
    source = rig.disk("a", ONE)
    base = rig.yard.create_snapshot("a", source)
    file = rig.folder / "file.raw"
    file.write_bytes(picture(SIZE, ONE))
    calls: dict[str, dict[str, Any]] = {
        "createVirtualDisk": {"targetRepoId": "a", "size": SIZE, "baseSnapshotId": base},
        "copyImage": {"targetRepoId": "a", "imageId": source, "baseImageId": base},
        "importImage": {"targetRepoId": "a", "path": str(file), "format": "raw"},
    }
    image = rig.call(verb, **calls[verb], options={"strategy": "performance", "optimizeNow": True})
    rig.wait()
    assert rig.yard.get_image_status("a", image).status == "optimized"
    assert rig.allocated("a", image) >= SIZE
    rig.expect("a", image, picture(SIZE, ONE))
    assert "optimize" in {task.verb for task in rig.yard.list_tasks(image)}
    settle(rig.yard, "a")
    rig.clean_slate("a")


def test_performance_keeps_a_copys_base_until_optimized(rig: Rig) -> None:
    """BaseImageId wins over strategy: the copy stores the difference first."""
    disk = rig.disk("a", (1, 0, 3 * MiB))
    base = rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, (2, 0, 64 * KiB))
    copy = rig.yard.copy_image("a", disk, base, options=FAST)
    rig.wait()
    assert rig.allocated("a", copy) <= MiB
    assert rig.yard.get_image_status("a", copy).status == "degraded"
    settle(rig.yard, "a")
    assert rig.yard.get_image_status("a", copy).status == "optimized"
    rig.expect("a", copy, picture(SIZE, (1, 0, 3 * MiB), (2, 0, 64 * KiB)))


def test_a_performance_disk_that_was_extended(rig: Rig) -> None:
    """What is new is reserved too."""
    disk = rig.yard.create_virtual_disk("a", SIZE, options=FAST)
    rig.write("a", disk, ONE)
    rig.yard.extend_virtual_disk("a", disk, 2 * SIZE)
    assert rig.allocated("a", disk) >= 2 * SIZE
    assert rig.yard.get_image_status("a", disk).status == "optimized"
    rig.expect("a", disk, picture(2 * SIZE, ONE))


def test_a_performance_disk_after_its_snapshots_are_removed(rig: Rig) -> None:
    """Removing the last Snapshot and merging brings it back to one reserved raw volume."""
    disk = rig.yard.create_virtual_disk("a", SIZE, options=FAST)
    rig.write("a", disk, ONE)
    snapshot = rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, TWO)
    rig.yard.remove_image("a", snapshot)
    rig.wait()
    settle(rig.yard, "a")
    assert rig.yard.get_image_status("a", disk).status == "optimized"
    assert len(rig.files("a")) == 1
    assert rig.allocated("a", disk) >= SIZE
    rig.expect("a", disk, picture(SIZE, ONE, TWO))


def test_a_deep_chain_is_shortened(rig: Rig) -> None:
    """Beyond 32 volumes check lists a fix that shortens the chain; every Snapshot keeps its bytes."""
    disk = rig.disk("a")
    wanted = []
    stretches: list[tuple[int, int, int]] = []
    for number in range(40):
        stretches.append((number + 1, number * 64 * KiB, 96 * KiB))
        rig.write("a", disk, stretches[-1])
        wanted.append((rig.yard.create_snapshot("a", disk), picture(SIZE, *stretches)))
    deep = {fix.image_id for fix in fixes(rig.yard, "a", "optimize")}
    assert disk in deep
    assert wanted[10][0] not in deep
    assert rig.yard.get_image_status("a", disk).status == "degraded"
    settle(rig.yard, "a")
    state = rig.repository("a").state()
    for image in state.images.values():
        assert len(list(state.chain(image))) <= 32
        assert rig.yard.get_image_status("a", image.id).status == "optimized"
    rig.expect("a", disk, picture(SIZE, *stretches))
    for snapshot, data in wanted[::5]:
        rig.expect("a", snapshot, data)
    rig.clean_slate("a")


def test_optimize_without_room(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not begun, and the image says why."""
    storage = rig.repository("a").storage
    capacity = storage.capacity()
    base = rig.yard.create_snapshot("a", rig.disk("a", ONE))
    disk = rig.yard.create_virtual_disk("a", SIZE, base, options=FAST)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "capacity", lambda: type(capacity)(capacity.capacity_bytes, MiB))
        rig.yard.fix_storage_repository("a", fixes(rig.yard, "a")[0])
        assert rig.yard.wait_for_tasks(30)
    assert "free" in rig.yard.get_image_status("a", disk).last_error
    assert len(rig.files("a")) == 3
    settle(rig.yard, "a")
    assert rig.yard.get_image_status("a", disk).last_error == ""


def test_optimize_is_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second host that runs the same fix later finds nothing to do."""
    base = rig.yard.create_snapshot("a", rig.disk("a", ONE))
    rig.yard.create_virtual_disk("a", SIZE, base, options={**FAST, **COMMIT_ONLY})
    (fix,) = fixes(rig.yard, "a")
    assert run_fix(rig.yard, "a", fix).changed
    other = rig.host("two")
    calls = intercept(monkeypatch, rig.repository("a", other).storage, "create_volume")
    assert run_fix(other, "a", fix).changed is False
    assert calls == []
