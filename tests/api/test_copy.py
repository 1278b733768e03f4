"""copyImage in all its forms: the bytes of both sides, and where images are looked for."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

import pytest

from diskyard import KiB, MiB, errors
from diskyard.operations import freeze
from diskyard.repository.repository import volume_name
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
    wait_until,
)

ONE = (1, 0, MiB)
TWO = (2, MiB // 2, MiB)
THREE = (3, 3 * MiB, 64 * KiB)


@pytest.mark.parametrize("target", ["a", "b"])
def test_a_disk_is_copied_whole(rig: Rig, target: str) -> None:
    """The copy has the moment of the call; both go on by themselves, and nothing is left."""
    disk = rig.disk("a", ONE)
    copy = rig.yard.copy_image(target, disk, user_data={"copy": True}, options=COMMIT_ONLY)
    rig.write("a", disk, TWO)
    assert rig.yard.get_image_status(target, copy).status == "broken"
    assert code_of(lambda: rig.yard.prepare_image(target, copy)) == "ImageBroken"
    settle(rig.yard, target, "a")
    rig.expect(target, copy, picture(SIZE, ONE))
    rig.expect("a", disk, picture(SIZE, ONE, TWO))
    rig.write(target, copy, THREE)
    rig.expect("a", disk, picture(SIZE, ONE, TWO))
    info = rig.yard.get_image_info(target, copy)
    assert (info.kind, info.user_data, info.status) == ("virtual_disk", {"copy": True}, "optimized")
    assert info.exclusive_bytes <= MiB + 64 * KiB
    settle(rig.yard, "a")
    rig.clean_slate("a", "b")
    assert len(rig.files("a")) == (2 if target == "a" else 1)


def test_a_lost_answer_is_asked_for_after_the_source_has_gone(rig: Rig) -> None:
    """Who has the copy may remove the source before the caller asks again."""
    disk, new_id = rig.disk("a", ONE), str(uuid.uuid4())
    ask = partial(rig.yard.copy_image, "b", disk, options={"new_image_id": new_id})
    assert ask() == new_id
    rig.wait()
    rig.yard.remove_image("a", disk)
    assert ask() == new_id
    rig.wait()
    rig.expect("b", new_id, picture(SIZE, ONE))
    assert code_of(partial(ask, user_data="other")) == "ImageNotFound"


def test_a_snapshot_keeps_its_id(rig: Rig) -> None:
    """Copying it again is a no-op that keeps the userData there; a removed one comes back."""
    disk = rig.disk("a", ONE)
    snapshot = rig.yard.create_snapshot("a", disk, {"where": "a"})
    assert rig.yard.copy_image("b", snapshot, user_data={"where": "b"}) == snapshot
    rig.wait()
    rig.expect("b", snapshot, picture(SIZE, ONE))
    version = rig.repository("b").state().version
    assert rig.yard.copy_image("b", snapshot, user_data={"where": "c"}) == snapshot
    rig.wait()
    assert rig.repository("b").state().version == version
    assert rig.yard.get_image_info("a", snapshot).user_data == {"where": "a"}
    assert rig.yard.get_image_info("b", snapshot).user_data == {"where": "b"}
    reader = rig.yard.create_virtual_disk("b", SIZE, snapshot)
    rig.write("b", reader, TWO)
    rig.yard.remove_image("b", snapshot, options=COMMIT_ONLY)
    assert rig.yard.copy_image("b", snapshot, user_data={"where": "d"}) == snapshot
    rig.wait()
    assert rig.yard.get_image_info("b", snapshot).user_data == {"where": "d"}
    rig.expect("b", snapshot, picture(SIZE, ONE))
    assert len(rig.files("b")) == 2
    rig.clean_slate("a", "b")
    other = {"new_image_id": str(uuid.uuid4())}
    assert code_of(lambda: rig.yard.copy_image("b", snapshot, options=other)) == "InvalidParameter"


@pytest.mark.parametrize("target_has_it", ["damaged", "missing", "missing and weak"])
def test_a_snapshot_that_is_broken_where_it_is_copied_to(rig: Rig, target_has_it: str) -> None:
    """Once a copy is answered the source may go: what restores the Snapshot is kept."""
    disk = rig.disk("a", (7, 0, SIZE))
    snapshot = rig.yard.create_snapshot("a", disk)
    rig.yard.copy_image("b", snapshot)
    rig.wait()
    if target_has_it == "missing and weak":
        rig.yard.create_virtual_disk("b", SIZE, snapshot)
        rig.yard.remove_image("b", snapshot, options=COMMIT_ONLY)
    if target_has_it == "damaged":
        rig.damage("b", snapshot)
    else:
        rig.volume_path("b", snapshot).unlink()
    assert rig.yard.copy_image("b", snapshot, options=COMMIT_ONLY) == snapshot
    for image in (disk, snapshot):
        rig.yard.remove_image("a", image)
    rig.wait()
    settle(rig.yard, "a")
    settle(rig.yard, "b", "a")
    rig.expect("b", snapshot, picture(SIZE, (7, 0, SIZE)))
    rig.clean_slate("a", "b")
    assert rig.files("a") == []


def test_a_broken_snapshot_that_turns_out_whole_again(rig: Rig) -> None:
    """Its volume was put back: what was kept to restore it is let go."""
    snapshot = rig.yard.create_snapshot("a", rig.disk("a", ONE))
    rig.yard.copy_image("b", snapshot)
    rig.wait()
    path, aside = rig.volume_path("b", snapshot), rig.folder / "aside"
    path.rename(aside)
    rig.yard.copy_image("b", snapshot, options=COMMIT_ONLY)
    assert len(rig.repository("a").state().images[snapshot].held_for) == 1
    aside.rename(path)
    settle(rig.yard, "a")
    assert rig.repository("a").state().images[snapshot].held_for == ()


@pytest.mark.parametrize("target", ["b", "c"])
def test_a_disk_under_the_id_of_a_snapshot(rig: Rig, target: str) -> None:
    """A host that does not see the one can use the id for the other: only the caller knows which is meant."""
    rig.yard.create_storage_repository(rig.format, rig.place("c"))
    snapshot = rig.yard.create_snapshot("a", rig.disk("a", ONE))
    apart = rig.host("two", connect=("b",))
    apart.create_virtual_disk("b", SIZE, options={"new_image_id": snapshot})
    rig.write("b", snapshot, TWO)
    yard = rig.host("three", connect=("b", "a", "c"))
    assert code_of(lambda: yard.copy_image(target, snapshot)) == "ImageIdInUse"
    copy = yard.copy_image(target, snapshot, options={"image_hints": {snapshot: "b"}})
    assert yard.wait_for_tasks(60)
    rig.expect(target, copy, picture(SIZE, TWO), yard)


def test_as_snapshot(rig: Rig) -> None:
    """A disk's copy can be immutable from the beginning, under an id of its own."""
    disk = rig.disk("a", ONE)
    copy = rig.yard.copy_image("b", disk, options={"as": "snapshot"})
    rig.wait()
    assert copy != disk
    assert rig.yard.get_image_info("b", copy).kind == "snapshot"
    assert rig.yard.prepare_image("b", copy).mode == "read_only"
    rig.expect("b", copy, picture(SIZE, ONE))
    rig.yard.teardown_image("b", copy)


def test_a_difference_to_a_snapshot(rig: Rig) -> None:
    """The copy stores what differs and reads the rest from its base."""
    disk = rig.disk("a", (1, 0, 3 * MiB))
    base = rig.yard.create_snapshot("a", disk)
    rig.yard.copy_image("b", base)
    rig.wait()
    rig.write("a", disk, THREE)
    copy = rig.yard.copy_image("b", disk, base)
    rig.wait()
    rig.expect("b", copy, picture(SIZE, (1, 0, 3 * MiB), THREE))
    assert rig.allocated("b", copy) <= 64 * KiB * 1.1 + MiB
    rig.yard.remove_image("b", base)
    rig.wait()
    settle(rig.yard, "a", "b")
    rig.expect("b", copy, picture(SIZE, (1, 0, 3 * MiB), THREE))
    rig.clean_slate("a", "b")


def test_a_disk_as_base_is_frozen(rig: Rig) -> None:
    """Writing to the base afterwards changes nothing of the copy."""
    disk = rig.disk("a", ONE)
    base = rig.disk("b", ONE, (9, 2 * MiB, MiB))
    copy = rig.yard.copy_image("b", disk, base)
    rig.wait()
    rig.write("b", base, (8, 0, SIZE))
    rig.expect("b", copy, picture(SIZE, ONE))
    rig.expect("b", base, picture(SIZE, (8, 0, SIZE)))
    rig.yard.remove_image("b", base)
    rig.wait()
    settle(rig.yard, "a", "b")
    rig.expect("b", copy, picture(SIZE, ONE))
    rig.clean_slate("a", "b")


@pytest.mark.parametrize(
    ("source_size", "base_size"), [(SIZE, 2 * SIZE), (2 * SIZE, SIZE), (MiB + 512, SIZE)]
)
def test_sizes_that_differ(rig: Rig, source_size: int, base_size: int) -> None:
    """Beyond the shorter there are zeros; the copy has the source's size."""
    disk = rig.disk("a", (1, 0, source_size), size=source_size)
    base = rig.disk("b", (2, 0, base_size), size=base_size)
    copy = rig.yard.copy_image("b", disk, base)
    rig.wait()
    rig.expect("b", copy, picture(source_size, (1, 0, source_size)))
    rig.write("a", disk, (0, 0, 512))
    sparse = rig.yard.create_virtual_disk("a", source_size)
    empty = rig.yard.copy_image("b", sparse, base)
    rig.wait()
    rig.expect("b", empty, bytes(source_size))
    rig.expect("b", base, picture(base_size, (2, 0, base_size)))
    settle(rig.yard, "b")
    rig.expect("b", empty, bytes(source_size))
    rig.expect("b", copy, picture(source_size, (1, 0, source_size)))


def test_bases_that_cannot_be(rig: Rig) -> None:
    """A disk of another repository, the image itself, and one that is nowhere are refused."""
    disk, other = rig.disk("a", ONE), rig.disk("a")
    snapshot = rig.yard.create_snapshot("a", disk)
    yard = rig.yard
    assert code_of(lambda: yard.copy_image("b", disk, other)) == "NotASnapshot"
    assert code_of(lambda: yard.copy_image("b", disk, str(uuid.uuid4()))) == "ImageNotFound"
    assert code_of(lambda: yard.copy_image("b", snapshot, snapshot)) == "InvalidParameter"
    broken = yard.copy_image("b", disk, options=COMMIT_ONLY)
    assert code_of(lambda: yard.copy_image("b", other, broken)) == "ImageBroken"
    assert code_of(lambda: yard.copy_image("a", broken)) == "ImageBroken"
    settle(yard, "b", "a")
    rig.clean_slate("a", "b")


def test_copies_that_wait_for_one_another(rig: Rig) -> None:
    """Two differences each with the other as base can never be completed: the second is refused."""
    disk = rig.disk("a", ONE)
    first = rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, TWO)
    second = rig.yard.create_snapshot("a", disk)
    rig.yard.copy_image("b", first, second, options=COMMIT_ONLY)
    waits = code_of(lambda: rig.yard.copy_image("b", second, first, options=COMMIT_ONLY))
    assert waits == "InvalidParameter"
    assert all(
        image.held_for == () or image.id == first for image in rig.repository("a").state().images.values()
    )


def test_participating_repositories_and_hints(rig: Rig) -> None:
    """They narrow where an image is looked for, and fail where it is not."""
    snapshot = rig.yard.create_snapshot("a", rig.disk("a", ONE))
    place = rig.place("c")
    rig.yard.create_storage_repository(rig.format, place)
    rig.yard.connect_storage_repository("c", rig.format, place)

    def copy(**options: Any) -> str:
        found: str = rig.call("copyImage", targetRepoId="c", imageId=snapshot, options=options)
        return found

    with pytest.raises(errors.ImageNotFound, match=r"\(searched: b\)"):
        copy(participatingRepositories=["b"])
    assert code_of(lambda: copy(participatingRepositories=[])) == "ImageNotFound"
    assert code_of(lambda: copy(imageHints={snapshot: "b"})) == "ImageNotFound"
    assert code_of(lambda: copy(imageHints={snapshot: "nowhere"})) == "RepositoryNotConnected"
    assert code_of(lambda: copy(participatingRepositories=["nowhere"])) == "RepositoryNotConnected"
    assert copy(participatingRepositories=["b", "a"], imageHints={snapshot: "a"}) == snapshot
    rig.wait()
    rig.expect("c", snapshot, picture(SIZE, ONE))
    base = {"targetRepoId": "b", "size": SIZE, "baseSnapshotId": snapshot}
    refused = rig.refusal("createVirtualDisk", **base, options={"imageHints": {snapshot: "b"}})
    assert refused == "ImageNotFound"
    disk = rig.call("createVirtualDisk", **base, options={"imageHints": {snapshot: "c"}})
    rig.wait()
    rig.expect("b", disk, picture(SIZE, ONE))


def test_the_fix_of_a_copy_can_be_told_where_to_read(rig: Rig) -> None:
    """With participatingRepositories a mend reads from these only."""
    snapshot = rig.yard.create_snapshot("a", rig.disk("a", ONE))
    rig.yard.copy_image("b", snapshot, options=COMMIT_ONLY)
    only = {"participating_repositories": ["b"]}
    (fix,) = rig.yard.check_storage_repository("b", options=only)
    assert (fix.type, fix.runnable) == ("mend", False)
    task = rig.yard.fix_storage_repository("b", fix, options=only)
    with pytest.raises(errors.ImageBroken):
        rig.yard.wait_for_task(task.task_id, 20)
    (fix,) = fixes(rig.yard, "b")
    assert run_fix(rig.yard, "b", fix).changed
    rig.expect("b", snapshot, picture(SIZE, ONE))


def test_removing_a_copy_cancels_it(rig: Rig) -> None:
    """The source is let go, and nothing of the copy is left."""
    disk = rig.disk("a", ONE)
    copy = rig.yard.copy_image("b", disk, options=COMMIT_ONLY)
    rig.yard.remove_image("b", copy)
    rig.wait()
    settle(rig.yard, "a", "b")
    assert rig.files("b") == []
    assert len(rig.files("a")) == 1
    rig.expect("a", disk, picture(SIZE, ONE))
    rig.clean_slate("a", "b")


def test_removing_a_copy_stops_its_worker(rig: Rig) -> None:
    """A copy under way notices that its image is gone, and ends."""
    disk = rig.disk("a", (1, 0, SIZE))
    copy = rig.yard.copy_image("b", disk, options={"rate_limit": 64 * KiB})
    rig.host("two").remove_image("b", copy)
    assert rig.yard.wait_for_tasks(30)
    settle(rig.yard, "a", "b")
    assert rig.files("b") == []
    rig.clean_slate("a", "b")


def test_removing_a_difference_stops_its_worker(rig: Rig) -> None:
    """Though it is a program of QEMU that writes it: one of the worker's own."""
    disk = rig.disk("a", (1, 0, MiB))
    monday = rig.yard.copy_image("b", disk)
    rig.wait()
    rig.write("a", disk, (2, 0, SIZE))
    tuesday = rig.yard.copy_image("b", disk, monday, options={"rate_limit": 64 * KiB})
    volume = rig.repository("b").state().volumes[rig.repository("b").state().images[tuesday].volume_id or ""]
    wait_until(lambda: rig.repository("b").storage.volume_is_written(volume_name(volume)))
    rig.host("two").remove_image("b", tuesday)
    assert rig.yard.wait_for_tasks(30)
    settle(rig.yard, "a", "b")
    assert len(rig.files("b")) == 1


def test_removing_the_source_at_once(rig: Rig) -> None:
    """A copy that was committed is completed though its source was removed."""
    disk = rig.disk("a", ONE)
    copy = rig.yard.copy_image("b", disk, options=COMMIT_ONLY)
    rig.yard.remove_image("a", disk)
    rig.wait()
    settle(rig.yard, "b", "a")
    rig.expect("b", copy, picture(SIZE, ONE))
    assert rig.files("a") == []
    rig.clean_slate("a", "b")


def test_track_changes(rig: Rig) -> None:
    """The next difference moves what changed; the tracker moves on, and ends when told."""
    yard, track = rig.yard, {"track_changes": True}
    disk = rig.disk("a", (1, 0, 3 * MiB))
    first = yard.copy_image("b", disk, options=track)
    rig.wait()
    assert yard.get_image_info("a", disk).tracking == (first,)
    rig.write("a", disk, THREE)
    second = yard.copy_image("b", disk, first, options=track)
    rig.wait()
    moved = [task.total_bytes for task in yard.list_tasks(second) if task.verb == "mend"]
    assert moved[0] <= 128 * KiB
    assert yard.get_image_info("a", disk).tracking == (second,)
    rig.write("a", disk, TWO)
    third = yard.copy_image("b", disk, second, options=track)
    rig.wait()
    rig.expect("b", first, picture(SIZE, (1, 0, 3 * MiB)))
    rig.expect("b", second, picture(SIZE, (1, 0, 3 * MiB), THREE))
    rig.expect("b", third, picture(SIZE, (1, 0, 3 * MiB), THREE, TWO))
    assert fixes(yard, "a", "clean") == []
    yard.untrack_changes("a", disk, second)
    assert yard.get_image_info("a", disk).tracking == (third,)
    yard.untrack_changes("a", disk)
    assert yard.get_image_info("a", disk).tracking == ()
    settle(yard, "a", "b")
    assert len(rig.files("a")) == 1
    rig.expect("a", disk, picture(SIZE, (1, 0, 3 * MiB), THREE, TWO))
    rig.clean_slate("a", "b")


def test_removing_a_tracked_disk_ends_its_trackers(rig: Rig) -> None:
    """Nothing of it stays on the storage."""
    disk = rig.disk("a", ONE)
    rig.yard.copy_image("b", disk, options={"track_changes": True})
    rig.wait()
    rig.yard.remove_image("a", disk)
    rig.wait()
    settle(rig.yard, "a")
    assert rig.files("a") == []


def test_a_copy_of_a_snapshot_that_was_just_made(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two calls at one time the later finds the other's copy: no error, and no hold of its own."""
    yard, other = rig.yard, rig.host("two")
    for user_data in ({"by": "two"}, {"by": "one"}):
        snapshot = yard.create_snapshot("a", rig.disk("a", ONE))
        with monkeypatch.context() as patch:
            copy_too = partial(other.copy_image, "b", snapshot, user_data=user_data, options=COMMIT_ONLY)
            intercept(patch, rig.repository("b").storage, "try_lock", before=copy_too)
            assert yard.copy_image("b", snapshot, user_data={"by": "one"}, options=COMMIT_ONLY) == snapshot
        assert len(rig.repository("a").state().images[snapshot].held_for) == 1
        settle(yard, "b", "a")
        rig.expect("b", snapshot, picture(SIZE, ONE))
        assert yard.get_image_info("b", snapshot).user_data == user_data


def test_what_a_copy_of_a_snapshot_cannot_be(rig: Rig) -> None:
    """Options that would be ignored are refused, with what to do instead."""
    snapshot = rig.yard.create_snapshot("a", rig.disk("a", ONE))
    with pytest.raises(errors.InvalidParameter) as caught:
        rig.yard.copy_image("b", snapshot, options={"as": "virtual_disk"})
    assert "createVirtualDisk" in caught.value.advice
    track = {"track_changes": True}
    assert code_of(lambda: rig.yard.copy_image("b", snapshot, options=track)) == "InvalidParameter"
    assert rig.yard.copy_image("b", snapshot, options={"as": "snapshot"}) == snapshot
    rig.wait()


def test_a_snapshot_that_is_removed_while_it_is_copied(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not found any more, which is an error of the table."""
    yard, other = rig.yard, rig.host("two")
    disk = rig.disk("a", ONE)
    snapshot = yard.create_snapshot("a", disk)

    def remove() -> None:
        for image in (snapshot, disk):
            other.remove_image("a", image, options=COMMIT_ONLY)
        settle(other, "a")

    intercept(monkeypatch, freeze, "hold_snapshot", before=remove)
    monkeypatch.setattr("diskyard.operations.copy.hold_snapshot", freeze.hold_snapshot)
    assert code_of(lambda: yard.copy_image("b", snapshot)) == "ImageNotFound"
    rig.clean_slate("a", "b")
