"""Creating, connecting, listing and removing repositories; room that adds up."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from diskyard import KiB, MiB, errors
from diskyard.host import HostIdentity
from tests.api.helpers import COMMIT_ONLY, SIZE, Rig, code_of, intercept, kill, picture, settle


def test_create_refuses_a_place_that_holds_anything(rig: Rig) -> None:
    """A repository, or a file of somebody else, is left as it is."""
    yard, place = rig.yard, rig.place("a")
    assert code_of(lambda: yard.create_storage_repository("localfs-1.0", place)) == "NotEmpty"
    other = rig.folder / "other"
    other.mkdir()
    (other / "file").write_text("mine")
    where = {"path": str(other)}
    assert code_of(lambda: yard.create_storage_repository("localfs-1.0", where)) == "NotEmpty"
    assert [path.name for path in other.iterdir()] == ["file"]
    assert code_of(lambda: yard.connect_storage_repository("x", "localfs-1.0", where)) == "NotARepository"


@pytest.mark.parametrize("parameters", [{}, {"path": "relative"}, {"path": 1}, {"path": "/x", "more": 1}])
def test_bad_connection_parameters(rig: Rig, parameters: dict[str, object]) -> None:
    """The format's own parameters are checked, also for what is too much."""
    yard = rig.yard
    for verb in (
        lambda: yard.create_storage_repository("localfs-1.0", parameters),
        lambda: yard.connect_storage_repository("x", "localfs-1.0", parameters),
    ):
        assert code_of(verb) == "InvalidParameter"


@pytest.mark.parametrize(
    "path", ["none/x", "file", "file/x", "loop", "loop/x", "dangling", "a" * 256, "ä" * 128, "b/" * 1000]
)
def test_paths_where_no_folder_can_be(rig: Rig, path: str) -> None:
    """They are the caller's error, not the storage's; nothing is made above the repository's own folder."""
    (rig.folder / "file").write_text("mine")
    (rig.folder / "loop").symlink_to("loop")
    (rig.folder / "dangling").symlink_to(rig.folder / "nowhere" / "x")
    before = sorted(rig.folder.rglob("*"))
    where = {"path": str(rig.folder / path)}
    yard = rig.yard
    assert code_of(lambda: yard.create_storage_repository("localfs-1.0", where)) == "InvalidParameter"
    assert code_of(lambda: yard.connect_storage_repository("x", "localfs-1.0", where)) == "NotARepository"
    assert sorted(rig.folder.rglob("*")) == before


def test_unknown_formats(rig: Rig) -> None:
    """The error lists the formats there are."""
    for name in ("localfs", "localfs-2.0", "nonsense", ""):
        with pytest.raises(errors.UnknownRepositoryFormat, match=r"localfs-1\.0"):
            rig.yard.connect_storage_repository("x", name, rig.place("a"))


def test_connecting_twice(rig: Rig) -> None:
    """The same connection is a no-op; another place under the repoId is refused."""
    yard = rig.yard
    yard.connect_storage_repository("a", rig.format, rig.place("a"))
    with pytest.raises(errors.RepositoryIdInUse):
        yard.connect_storage_repository("a", rig.format, rig.place("b"))
    assert [found.repo_id for found in yard.list_storage_repositories()] == ["a", "b"]


@pytest.mark.parametrize("repo_id", ["ü/..", "a" * 255, "a\nb", "", "a" * 256, "ü" * 128])
def test_repo_ids(rig: Rig, repo_id: str) -> None:
    """A repoId is any text of 1-255 bytes without control characters; nothing is a path."""

    def connect() -> None:
        rig.yard.connect_storage_repository(repo_id, rig.format, rig.place("a"))

    if repo_id.isprintable() and 1 <= len(repo_id.encode()) <= 255:
        connect()
        assert rig.yard.create_virtual_disk(repo_id, MiB)
    else:
        assert code_of(connect) == "InvalidParameter"


def test_aliases_are_one_place(rig: Rig) -> None:
    """A place under two repoIds is searched once, works under both, and outlives either."""
    yard = rig.yard
    link = rig.folder / "link"
    link.symlink_to(rig.place("a")["path"])
    yard.connect_storage_repository("alias", "localfs-1.0", {"path": str(link)})
    disk = rig.disk("a", (7, 0, MiB))
    rig.expect("alias", disk, picture(SIZE, (7, 0, MiB)))
    with pytest.raises(errors.ImageNotFound, match=r"\(searched: b, a\)"):
        yard.copy_image("b", "00000000-0000-0000-0000-000000000001")
    yard.prepare_image("alias", disk)
    yard.disconnect_storage_repository("a")
    assert code_of(lambda: yard.disconnect_storage_repository("alias")) == "RepositoryInUse"
    rig.expect_in_use("alias", disk)
    yard.teardown_image("alias", disk)
    yard.disconnect_storage_repository("alias")


def test_a_copy_of_a_place_is_not_connected_beside_it(rig: Rig) -> None:
    """Both have one marker: by the log of the one, what only the other has is garbage."""
    yard = rig.yard
    copy = {"path": str(rig.folder / "copied")}
    shutil.copytree(rig.place("a")["path"], copy["path"])
    for repo_id in ("a", "copy"):
        with pytest.raises(errors.DiskyardError) as raised:
            yard.connect_storage_repository(repo_id, "localfs-1.0", copy)
        assert raised.value.code == ("RepositoryIdInUse" if repo_id == "a" else "NotARepository")
    assert [found.repo_id for found in yard.list_storage_repositories()] == ["a", "b"]
    yard.disconnect_storage_repository("a")
    yard.connect_storage_repository("copy", "localfs-1.0", copy)


def test_copy_to_an_alias_stays_in_one_place(rig: Rig) -> None:
    """Copying a Snapshot to the place it is in, under another name, does nothing."""
    yard = rig.yard
    yard.connect_storage_repository("alias", rig.format, rig.place("a"))
    snapshot = yard.create_snapshot("a", rig.disk("a", (7, 0, MiB)))
    before = rig.files("a")
    assert yard.copy_image("alias", snapshot) == snapshot
    rig.wait()
    assert rig.files("a") == before


def test_disconnect_while_in_use(rig: Rig) -> None:
    """An attachment of this host and a task keep a repository connected; the error names them."""
    yard = rig.yard
    disk = rig.disk("a", (1, 0, MiB))
    yard.prepare_image("a", disk, options={"owner": "vm1"})
    with pytest.raises(errors.RepositoryInUse, match=r"vm1"):
        yard.disconnect_storage_repository("a")
    rig.host("two").disconnect_storage_repository("a")  # it is not that host's attachment
    yard.teardown_image("a", disk, options={"owner": "vm1"})
    yard.copy_image("b", disk, options={"rate_limit": 1})
    task = next(task for task in yard.list_tasks() if task.verb == "mend")
    with pytest.raises(errors.RepositoryInUse, match=task.task_id):
        yard.disconnect_storage_repository("b")
    yard.stop_task(task.task_id)
    assert yard.wait_for_task(task.task_id, 20).state == "stopped"
    yard.disconnect_storage_repository("b")
    assert code_of(lambda: yard.disconnect_storage_repository("b")) == "RepositoryNotConnected"


def test_connections_are_remembered(rig: Rig) -> None:
    """Another process of the host has them; what was disconnected it has not."""
    rig.yard.disconnect_storage_repository("b")
    again = rig.host("one", connect=())
    assert [found.repo_id for found in again.list_storage_repositories()] == ["a"]
    assert again.create_virtual_disk("a", MiB)


def test_a_repository_that_is_gone_is_listed_so(rig: Rig) -> None:
    """A place that does not answer says so, is skipped in searches, and harms no other."""
    disk = rig.disk("a", (1, 0, MiB))
    Path(rig.place("b")["path"]).rename(rig.folder / "away")
    again = rig.host("one", connect=())
    sick = {found.repo_id: found for found in again.list_storage_repositories()}["b"]
    assert sick.health != "ok"
    assert sick.used_bytes is None
    assert code_of(lambda: again.create_virtual_disk("b", MiB)) == "RepositoryUnavailable"
    again.copy_image("a", disk)
    assert again.wait_for_tasks(20)
    again.disconnect_storage_repository("b")


def test_remove_needs_an_empty_repository(rig: Rig) -> None:
    """It is refused while there is an image, and leaves nothing on the storage after."""
    yard = rig.yard
    disk = rig.disk("a", (1, 0, MiB))
    with pytest.raises(errors.NotEmpty, match="1 image"):
        yard.remove_storage_repository("a")
    rig.expect("a", disk, picture(SIZE, (1, 0, MiB)))
    yard.remove_image("a", disk, options=COMMIT_ONLY)
    yard.remove_storage_repository("a")
    folder = Path(rig.place("a")["path"])
    assert not folder.exists() or list(folder.iterdir()) == []
    assert [found.repo_id for found in yard.list_storage_repositories()] == ["b"]
    yard.create_storage_repository(rig.format, rig.place("a"))


def test_remove_keeps_what_a_copy_elsewhere_still_reads(rig: Rig) -> None:
    """A removed disk whose copy is not complete yet is all that the copy can be made from."""
    yard = rig.yard
    disk = rig.disk("a", (5, 0, MiB))
    copy = yard.copy_image("b", disk, options=COMMIT_ONLY)
    yard.remove_image("a", disk)
    rig.wait()
    assert code_of(lambda: yard.remove_storage_repository("a")) == "NotEmpty"
    settle(yard, "b", "a")
    rig.expect("b", copy, picture(SIZE, (5, 0, MiB)))
    settle(yard, "b", "a")
    yard.remove_storage_repository("a")


def test_room_adds_up(rig: Rig) -> None:
    """What is used is the sum of why it is used, and what the file system says is used."""
    yard = rig.yard
    disk = rig.disk("a", (1, 0, MiB))
    first = yard.create_snapshot("a", disk)
    rig.write("a", disk, (2, MiB, MiB))
    second = yard.create_snapshot("a", disk)
    other = yard.create_virtual_disk("a", SIZE, first)
    rig.write("a", other, (3, 2 * MiB, MiB))
    rig.write("a", disk, (9, 3 * MiB, 64 * KiB))
    yard.copy_image("a", disk, options=COMMIT_ONLY)
    yard.remove_image("a", first, options=COMMIT_ONLY)
    yard.remove_image("a", second, options=COMMIT_ONLY)
    gone = rig.disk("a", (4, 0, MiB))
    yard.remove_image("a", gone, options=COMMIT_ONLY)
    info = next(found for found in yard.list_storage_repositories() if found.repo_id == "a")
    parts = [
        info.strong_bytes, info.retained_bytes, info.mergeable_bytes, info.building_bytes,
        info.reclaimable_bytes,
    ]  # fmt: skip
    assert all(part is not None for part in parts)
    assert sum(part or 0 for part in parts) == info.used_bytes
    assert info.used_bytes == sum(path.stat().st_blocks * 512 for path in rig.files("a"))
    assert info.reclaimable_bytes == MiB
    assert (info.retained_bytes or 0) >= MiB
    assert (info.mergeable_bytes or 0) >= MiB
    assert info.provisioned_bytes == 3 * SIZE
    settle(yard, "a")
    info = next(found for found in yard.list_storage_repositories() if found.repo_id == "a")
    assert info.reclaimable_bytes == 0
    assert info.mergeable_bytes == 0
    rig.expect("a", disk, picture(SIZE, (1, 0, MiB), (2, MiB, MiB), (9, 3 * MiB, 64 * KiB)))
    rig.expect("a", other, picture(SIZE, (1, 0, MiB), (3, 2 * MiB, MiB)))


def test_exclusive_and_shared_bytes(rig: Rig) -> None:
    """Removing an image frees its exclusive bytes; what it reads besides is shared."""
    yard = rig.yard
    disk = rig.disk("a", (1, 0, MiB))
    snapshot = yard.create_snapshot("a", disk)
    rig.write("a", disk, (2, MiB, MiB))
    info = yard.get_image_info("a", disk)
    assert info.shared_bytes == MiB
    assert MiB <= info.exclusive_bytes <= 2 * MiB
    assert yard.get_image_info("a", snapshot).exclusive_bytes == 0
    yard.remove_image("a", snapshot)
    rig.wait()
    info = yard.get_image_info("a", disk)
    assert info.shared_bytes == 0
    used = sum(path.stat().st_blocks * 512 for path in rig.files("a"))
    assert info.exclusive_bytes == used
    yard.remove_image("a", disk)
    rig.wait()
    assert rig.files("a") == []


def test_memory_repositories_work_alike(rig: Rig) -> None:
    """Create, snapshot, copy in and out, fix and remove, with the bytes right."""
    yard = rig.yard
    place = {"name": "of-this-test"}
    yard.create_storage_repository("memory-1.0", place)
    yard.connect_storage_repository("m", "memory-1.0", place)
    assert code_of(lambda: yard.create_storage_repository("memory-1.0", place)) == "NotEmpty"
    disk = rig.disk("m", (1, 0, MiB))
    snapshot = yard.create_snapshot("m", disk)
    rig.write("m", disk, (2, MiB, MiB))
    yard.copy_image("a", snapshot)
    rig.wait()
    copy = yard.copy_image("a", disk, snapshot)
    rig.wait()
    rig.expect("a", copy, picture(SIZE, (1, 0, MiB), (2, MiB, MiB)))
    back = yard.copy_image("m", copy)
    rig.wait()
    rig.expect("m", back, picture(SIZE, (1, 0, MiB), (2, MiB, MiB)))
    yard.remove_image("m", snapshot)
    rig.wait()
    settle(yard, "m")
    rig.expect("m", disk, picture(SIZE, (1, 0, MiB), (2, MiB, MiB)))
    assert yard.check_storage_repository("m") == []
    for image in (disk, back):
        yard.remove_image("m", image)
    rig.wait()
    yard.remove_storage_repository("m")


def test_hosts_differ(rig: Rig) -> None:
    """Two hosts of these tests are two to the program as well."""
    found: list[HostIdentity] = [yard.service.host.identity for yard in (rig.yard, rig.host("two"))]
    assert [identity.host_id for identity in found] == ["one", "two"]


def test_remove_closes_the_log_first(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another host publishes at the same time comes before, and is seen, or is refused."""
    yard, other = rig.yard, rig.host("two")
    with monkeypatch.context() as patch:
        # Another host's disk is committed between the look at the repository and its closing.
        intercept(
            patch, rig.repository("a").storage, "put", before=lambda: other.create_virtual_disk("a", MiB)
        )
        assert code_of(lambda: yard.remove_storage_repository("a")) == "NotEmpty"
    (disk,) = [info.image_id for info in yard.list_images("a").images]
    yard.remove_image("a", disk)
    rig.wait()
    with monkeypatch.context() as patch:
        # The removal is cut short after the entry that closes the log.
        patch.setattr("diskyard.storage.localfs.remove._remove_all", lambda *_: kill())
        assert code_of(lambda: yard.remove_storage_repository("a")) == "InternalError"
    for host in (yard, other, rig.host("three")):
        assert code_of(partial(host.create_virtual_disk, "a", MiB)) == "NotARepository"
        assert code_of(partial(host.copy_image, "a", rig.disk("b"))) == "NotARepository"
    assert rig.files("a") == []
    other.remove_storage_repository("a")
    assert list(Path(rig.place("a")["path"]).iterdir()) == []
    assert code_of(lambda: yard.create_virtual_disk("a", MiB)) == "RepositoryUnavailable"
    rig.yard.disconnect_storage_repository("a")


def test_remove_waits_for_other_hosts(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that another host is just making keeps the repository."""
    yard, other = rig.yard, rig.host("two")
    codes: list[str] = []
    intercept(
        monkeypatch,
        rig.repository("a", other).storage,
        "create_volume",
        before=lambda: codes.append(code_of(lambda: yard.remove_storage_repository("a"))),
    )
    disk = other.create_virtual_disk("a", MiB)
    assert codes == ["RepositoryInUse"]
    rig.expect("a", disk, bytes(MiB))


def test_a_repository_that_is_gone_does_not_break_others(rig: Rig) -> None:
    """One that was in use when it was unmounted is skipped, and named where nothing is found."""
    yard = rig.yard
    disk = rig.disk("b", (1, 0, MiB))
    place = rig.place("c")
    yard.create_storage_repository("localfs-1.0", place)
    yard.connect_storage_repository("c", "localfs-1.0", place)
    root = Path(rig.place("a")["path"])
    root.rename(rig.folder / "away")
    copy = yard.copy_image("c", disk)
    rig.wait()
    rig.expect("c", copy, picture(SIZE, (1, 0, MiB)))
    with pytest.raises(errors.RepositoryUnavailable, match=r"did not answer: a \("):
        yard.copy_image("c", "00000000-0000-0000-0000-000000000001")
    pending = yard.copy_image("c", disk, options=COMMIT_ONLY)
    root.mkdir()  # an empty mount point
    for verb in (
        lambda: yard.create_virtual_disk("a", MiB),
        lambda: yard.list_images("a"),
        lambda: yard.copy_image("a", disk),
        lambda: yard.check_storage_repository("a"),
    ):
        assert code_of(verb) == "RepositoryUnavailable"
    settle(yard, "c", "b")
    rig.expect("c", pending, picture(SIZE, (1, 0, MiB)))


@pytest.mark.parametrize("copy", ["a", "b"])
@pytest.mark.parametrize("damage", ["gone", "torn", "a link", "a folder"])
def test_a_copy_of_the_record_is_lost(rig: Rig, damage: str, copy: str) -> None:
    """The other is enough to connect, and writes the bad one again."""
    paths = [Path(rig.place("a")["path"]) / f"repository.{name}" for name in "ab"]
    whole = paths[0].read_bytes()
    bad = Path(rig.place("a")["path"]) / f"repository.{copy}"
    bad.unlink()
    if damage == "torn":
        bad.write_bytes(whole[:50])
    elif damage == "a link":
        bad.symlink_to("/dev/zero")
    elif damage == "a folder":
        bad.mkdir()
    host = rig.host("two")
    assert host.create_virtual_disk("a", MiB)
    assert [path.read_bytes() for path in paths] == [whole, whole]
    assert not bad.is_symlink()


def test_both_copies_of_the_record_are_lost(rig: Rig) -> None:
    """That is damage, and not a place where a repository may be created."""
    for name in "ab":
        (Path(rig.place("a")["path"]) / f"repository.{name}").write_bytes(b"?")
    assert code_of(lambda: rig.host("two", connect=("a",))) == "CorruptRecord"
    assert code_of(lambda: rig.yard.create_storage_repository(rig.format, rig.place("a"))) == "NotEmpty"


def test_the_source_of_a_running_copy_is_in_use(rig: Rig) -> None:
    """It cannot be disconnected while a task of this host copies from it."""
    disk = rig.disk("a", (1, 0, 8 * MiB), size=16 * MiB)
    copy = rig.yard.copy_image("b", disk, options={"rate_limit": 2 * MiB})
    assert code_of(lambda: rig.yard.disconnect_storage_repository("a")) == "RepositoryInUse"
    task = rig.yard.get_image_status("b", copy).task_id
    assert task is not None
    rig.yard.stop_task(task)
    rig.wait()
    rig.yard.disconnect_storage_repository("a")
