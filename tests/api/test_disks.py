"""createVirtualDisk, createSnapshot, removeImage, revert, extend, userData, lists."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from diskyard import KiB, MiB, errors
from tests.api.helpers import COMMIT_ONLY, SIZE, Rig, code_of, fixes, intercept, kill, picture, settle

ONE = (1, 0, MiB)
TWO = (2, MiB // 2, MiB)
THREE = (3, 3 * MiB, 64 * KiB)


def new_id() -> str:
    return str(uuid.uuid4())


def test_a_new_disk_reads_zeros(rig: Rig) -> None:
    """It costs no room, is optimized at once, and nothing is left to do."""
    disk = rig.call("createVirtualDisk", targetRepoId="a", size=SIZE, userData={"n": 1})
    rig.expect("a", disk, bytes(SIZE))
    info = rig.yard.get_image_info("a", disk)
    assert (info.status, info.kind, info.strategy, info.exclusive_bytes) == (
        "optimized", "virtual_disk", "space", 0,
    )  # fmt: skip
    rig.clean_slate("a")


def test_a_disk_from_a_snapshot(rig: Rig) -> None:
    """It has the Snapshot's bytes, zeros beyond, and a life of its own."""
    disk = rig.disk("a", ONE)
    base = rig.yard.create_snapshot("a", disk)
    other = rig.yard.create_virtual_disk("a", 2 * SIZE, base)
    rig.expect("a", other, picture(2 * SIZE, ONE))
    rig.write("a", other, TWO, (9, 2 * SIZE - MiB, MiB))
    rig.write("a", disk, THREE)
    rig.expect("a", other, picture(2 * SIZE, ONE, TWO, (9, 2 * SIZE - MiB, MiB)))
    rig.expect("a", disk, picture(SIZE, ONE, THREE))
    rig.expect("a", base, picture(SIZE, ONE))
    too_small = {"targetRepoId": "a", "size": SIZE - 512, "baseSnapshotId": base}
    assert rig.refusal("createVirtualDisk", **too_small) == "InvalidParameter"
    rig.clean_slate("a")


def test_a_disk_from_a_snapshot_elsewhere(rig: Rig) -> None:
    """It is committed at once and complete when its mend is done."""
    base = rig.yard.create_snapshot("a", rig.disk("a", ONE))
    disk = rig.yard.create_virtual_disk("b", 2 * SIZE, base)
    assert rig.yard.wait_for_image("b", disk, 30).status == "optimized"
    rig.expect("b", disk, picture(2 * SIZE, ONE))
    too_small = {"targetRepoId": "b", "size": SIZE - 512, "baseSnapshotId": base}
    assert rig.refusal("createVirtualDisk", **too_small) == "InvalidParameter"
    rig.wait()
    rig.clean_slate("a", "b")


def test_a_snapshot_keeps_its_moment(rig: Rig) -> None:
    """The disk goes on; every Snapshot has what the disk had then."""
    disk, wanted = rig.disk("a"), []
    for number in range(6):
        rig.write("a", disk, (number + 1, number * 256 * KiB, 512 * KiB))
        stretches = [(n + 1, n * 256 * KiB, 512 * KiB) for n in range(number + 1)]
        wanted.append((rig.yard.create_snapshot("a", disk, {"n": number}), picture(SIZE, *stretches)))
    rig.write("a", disk, (99, 0, SIZE))
    for snapshot, data in wanted:
        rig.expect("a", snapshot, data)
    rig.expect("a", disk, picture(SIZE, (99, 0, SIZE)))
    info = rig.yard.get_image_info("a", wanted[3][0])
    assert (info.kind, info.user_data, info.size_bytes) == ("snapshot", {"n": 3}, SIZE)


@pytest.mark.parametrize("verb", ["createVirtualDisk", "createSnapshot", "copyImage", "importImage"])
def test_new_image_id_makes_repeating_safe(rig: Rig, verb: str, tmp_path: Path) -> None:
    """The same request is a no-op, wherever it is sent; another with the id is refused."""
    disk, image = rig.disk("a", ONE), new_id()
    (tmp_path / "file.raw").write_bytes(picture(SIZE, ONE))
    calls: dict[str, dict[str, Any]] = {
        "createVirtualDisk": {"targetRepoId": "b", "size": SIZE},
        "createSnapshot": {"targetRepoId": "a", "baseVirtualDiskId": disk},
        "copyImage": {"targetRepoId": "b", "imageId": disk},
        "importImage": {"targetRepoId": "b", "path": str(tmp_path / "file.raw"), "format": "raw"},
    }
    words = calls[verb]
    options = {"newImageId": image}
    repo = str(words["targetRepoId"])
    assert rig.call(verb, **words, userData={"x": 1}, options=options) == image
    rig.wait()
    version = rig.repository(repo).state().version
    again = {"newImageId": image, "AutoFix": False, "imageHints": {}}
    assert rig.call(verb, **words, userData={"x": 1}, options=again) == image
    assert rig.repository(repo).state().version == version
    other = rig.refusal(verb, **words, userData={"x": 2}, options=options)
    assert other == "ImageIdInUse"
    used = {"newImageId": image, "strategy": "performance"}
    assert rig.refusal(verb, **words, userData={"x": 1}, options=used) == "ImageIdInUse"
    rig.expect(repo, image, bytes(SIZE) if verb == "createVirtualDisk" else picture(SIZE, ONE))
    rig.wait()


@pytest.mark.parametrize("verb", ["createVirtualDisk", "createSnapshot", "copyImage", "revertVirtualDisk"])
def test_killed_before_the_commit_and_asked_again(
    rig: Rig, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a verb left when it was killed making a volume is found, and the retry succeeds."""
    disk, image = rig.disk("a", ONE), new_id()
    base = rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, TWO)
    calls: dict[str, dict[str, Any]] = {
        "createVirtualDisk": {"targetRepoId": "a", "size": SIZE, "baseSnapshotId": base},
        "createSnapshot": {"targetRepoId": "a", "baseVirtualDiskId": disk},
        "copyImage": {"targetRepoId": "b", "imageId": disk},
        "revertVirtualDisk": {"repositoryId": "a", "imageId": disk, "snapshotId": base},
    }
    words = calls[verb]
    if verb != "revertVirtualDisk":
        words["options"] = {"newImageId": image}
    with monkeypatch.context() as patch:
        intercept(patch, rig.repository("a").storage, "create_volume", after=kill)
        assert rig.refusal(verb, **words) == "InternalError"
    rig.expect("a", disk, picture(SIZE, ONE, TWO))
    assert fixes(rig.yard, "a", "clean") != []
    rig.call(verb, **words)
    rig.wait()
    settle(rig.host("two"), "a", "b")
    rig.expect("a", base, picture(SIZE, ONE))
    rig.expect("a", disk, picture(SIZE, ONE) if verb == "revertVirtualDisk" else picture(SIZE, ONE, TWO))
    if verb != "revertVirtualDisk":
        wanted = picture(SIZE, ONE) if verb == "createVirtualDisk" else picture(SIZE, ONE, TWO)
        rig.expect("b" if verb == "copyImage" else "a", image, wanted)
    rig.clean_slate("a", "b")


def test_remove_from_the_middle(rig: Rig) -> None:
    """Others keep their bytes, and the space comes back once it is merged and cleaned."""
    disk = rig.disk("a", ONE)
    first = rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, TWO)
    second = rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, THREE)
    rig.yard.remove_image("a", second)
    assert code_of(lambda: rig.yard.get_image_info("a", second)) == "ImageNotFound"
    assert len(rig.files("a")) == 3
    rig.wait()
    settle(rig.yard, "a")
    assert len(rig.files("a")) == 2
    rig.expect("a", first, picture(SIZE, ONE))
    rig.expect("a", disk, picture(SIZE, ONE, TWO, THREE))
    rig.yard.remove_image("a", first)
    rig.wait()
    settle(rig.yard, "a")
    rig.expect("a", disk, picture(SIZE, ONE, TWO, THREE))
    assert len(rig.files("a")) == 1
    rig.clean_slate("a")


def test_remove_merges_in_both_directions(rig: Rig) -> None:
    """The side that moves less is moved: into the parent, or up into a large overlay."""
    disk = rig.disk("a", (1, 0, SIZE))
    rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, (2, 0, 64 * KiB))
    small = rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, (3, MiB, 2 * MiB))
    rig.yard.remove_image("a", small, options=COMMIT_ONLY)
    (fix,) = fixes(rig.yard, "a", "merge")
    assert "up" in fix.description
    assert fix.moves_bytes is not None
    assert fix.moves_bytes <= MiB
    settle(rig.yard, "a")
    rig.expect("a", disk, picture(SIZE, (1, 0, SIZE), (2, 0, 64 * KiB), (3, MiB, 2 * MiB)))
    large = rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, (4, 3 * MiB, 64 * KiB))
    rig.yard.remove_image("a", large, options=COMMIT_ONLY)
    (fix,) = fixes(rig.yard, "a", "merge")
    assert "down" in fix.description
    settle(rig.yard, "a")
    pieces = [(1, 0, SIZE), (2, 0, 64 * KiB), (3, MiB, 2 * MiB), (4, 3 * MiB, 64 * KiB)]
    rig.expect("a", disk, picture(SIZE, *pieces))
    rig.clean_slate("a")


def test_revert(rig: Rig) -> None:
    """The disk has the Snapshot's bytes and size under its own id, and goes on from there."""
    disk = rig.disk("a", ONE)
    base = rig.yard.create_snapshot("a", disk)
    rig.yard.extend_virtual_disk("a", disk, 2 * SIZE)
    rig.write("a", disk, TWO, (8, SIZE, MiB))
    later = rig.yard.create_snapshot("a", disk)
    rig.yard.revert_virtual_disk("a", disk, base)
    rig.expect("a", disk, picture(SIZE, ONE))
    rig.write("a", disk, THREE)
    rig.expect("a", base, picture(SIZE, ONE))
    rig.yard.revert_virtual_disk("a", disk, later)
    rig.expect("a", disk, picture(2 * SIZE, ONE, TWO, (8, SIZE, MiB)))
    rig.wait()
    settle(rig.yard, "a")
    rig.expect("a", disk, picture(2 * SIZE, ONE, TWO, (8, SIZE, MiB)))
    rig.clean_slate("a")


def test_extend(rig: Rig) -> None:
    """What is new reads zeros, whether the disk is raw or reads a Snapshot; it never shrinks."""
    disk = rig.disk("a", (1, 0, SIZE))
    rig.yard.extend_virtual_disk("a", disk, 2 * SIZE)
    rig.expect("a", disk, picture(2 * SIZE, (1, 0, SIZE)))
    rig.yard.create_snapshot("a", disk)
    rig.yard.extend_virtual_disk("a", disk, 3 * SIZE)
    rig.yard.extend_virtual_disk("a", disk, 3 * SIZE)
    rig.write("a", disk, (2, 3 * SIZE - 512, 512))
    rig.expect("a", disk, picture(3 * SIZE, (1, 0, SIZE), (2, 3 * SIZE - 512, 512)))
    assert code_of(lambda: rig.yard.extend_virtual_disk("a", disk, SIZE)) == "InvalidParameter"
    rig.clean_slate("a")


def test_extend_over_a_larger_base(rig: Rig) -> None:
    """What a larger base holds beyond a smaller copy's end never shows through."""
    base = rig.yard.create_snapshot("a", rig.disk("a", (7, 0, 2 * SIZE), size=2 * SIZE))
    disk = rig.disk("b", ONE)
    copy = rig.yard.copy_image("a", disk, base)
    rig.wait()
    rig.expect("a", copy, picture(SIZE, ONE))
    rig.yard.extend_virtual_disk("a", copy, SIZE + 512)
    rig.expect("a", copy, picture(SIZE + 512, ONE))
    rig.yard.extend_virtual_disk("a", copy, 3 * SIZE)
    rig.expect("a", copy, picture(3 * SIZE, ONE))
    rig.yard.remove_image("a", base)
    rig.wait()
    settle(rig.yard, "a", "b")
    rig.expect("a", copy, picture(3 * SIZE, ONE))


def test_set_user_data_if_revision(rig: Rig) -> None:
    """A caller that read an older revision is told; without a revision the last one wins."""
    disk = rig.call("createVirtualDisk", targetRepoId="a", size=MiB, userData=1)
    read = rig.yard.get_image_info("a", disk).revision
    rig.call("setUserData", repositoryId="a", imageId=disk, userData=[2], options={"ifRevision": read})
    late = {"repositoryId": "a", "imageId": disk, "userData": 3, "options": {"ifRevision": read}}
    assert rig.refusal("setUserData", **late) == "RevisionMismatch"
    assert rig.yard.get_image_info("a", disk).user_data == [2]
    rig.call("setUserData", repositoryId="a", imageId=disk, userData=None)
    assert rig.yard.get_image_info("a", disk).user_data is None


def test_list_images_pages_and_filters(rig: Rig) -> None:
    """Pages follow each other without gap or repeat, and filters say what is in them."""
    disks = [rig.yard.create_virtual_disk("a", MiB) for _ in range(5)]
    snapshots = [rig.yard.create_snapshot("a", disk) for disk in disks[:3]]
    performance = rig.yard.create_virtual_disk("a", MiB, snapshots[0], options={"strategy": "performance"})
    copy = rig.yard.copy_image("b", disks[0], options=COMMIT_ONLY)
    every = sorted([*disks, *snapshots, performance])
    found, cursor = [], None
    while True:
        page = rig.yard.list_images("a", limit=4, cursor=cursor)
        assert len(page.images) <= 4
        found += [image.image_id for image in page.images]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == every

    def listed(repo: str = "a", **words: object) -> list[str]:
        page = rig.call("listImages", repositoryId=repo, **words)
        return [image["imageId"] for image in page["images"]]

    assert listed(kind="snapshot") == sorted(snapshots)
    assert listed(status="degraded") == [performance]
    assert listed("b", status="broken") == [copy]
    assert listed("b", status="optimized") == []
    assert listed(imageIds=[disks[1], new_id()]) == [disks[1]]
    assert listed(imageIds=[]) == []
    wrong: list[dict[str, Any]] = [{"limit": 0}, {"limit": 10**6}, {"kind": "disk"}, {"status": "fine"}]
    for bad in wrong:
        assert rig.refusal("listImages", repositoryId="a", **bad) == "InvalidParameter"


def test_set_strategy(rig: Rig) -> None:
    """It changes what is better, and check lists how to get there."""
    disk = rig.disk("a", ONE)
    rig.yard.create_snapshot("a", disk)
    assert fixes(rig.yard, "a") == []
    rig.yard.set_strategy("a", disk, "performance")
    assert rig.yard.get_image_status("a", disk).status == "degraded"
    assert [fix.type for fix in fixes(rig.yard, "a")] == ["optimize"]
    rig.yard.set_strategy("a", disk, "space")
    assert rig.yard.get_image_status("a", disk).status == "optimized"
    with pytest.raises(errors.InvalidParameter):
        rig.call("setStrategy", repositoryId="a", imageId=disk, strategy="speed")
