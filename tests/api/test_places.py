"""What a file system cannot hold or do is refused before work starts, and never listed as runnable."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard import MiB, errors
from diskyard.host import Files
from diskyard.planner.common import CHAIN_DEPTH_OPENED
from tests import transports
from tests.api.helpers import SIZE, Rig, fixes, graph, intercept, picture, run, run_fix, same_bytes, settle
from tests.mounts import mounted

GiB = 1 << 30
ONE = (1, 0, MiB)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system whose files are shorter than 17 GiB: ext3 with blocks of 1 KiB."""
    with mounted(tmp_path_factory.mktemp("ext3"), ["mkfs.ext3", "-q", "-b", "1024"]) as place:
        yield place


@pytest.fixture
def rig(small: Path, quick_folder: Path) -> Iterator[Rig]:
    """A host with its repositories there."""
    folder = small / quick_folder.name
    folder.mkdir()
    made = Rig(quick_folder, folder)
    yield made
    made.close()


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A host of this process, whose door to the file system a test may change."""
    monkeypatch.setattr(transports, "current", "embedded")
    made = Rig(tmp_path)
    yield made
    made.close()


def _format(rig: Rig, repo: str, image: str) -> str:
    return rig.volume_path(repo, image).suffix


def _runnable(rig: Rig, *repos: str) -> list[str]:
    return [fix.description for repo in repos for fix in fixes(rig.yard, repo) if fix.runnable]


def test_a_disk_larger_than_any_file(rig: Rig) -> None:
    """It is qcow2, holds what is written at its end, and its better representation waits."""
    assert rig.repository("a").storage.capabilities.longest_bytes == 17_247_252_480
    disk = rig.disk("a", (7, 20 * GiB - MiB, MiB), size=20 * GiB)
    assert _format(rig, "a", disk) == ".qcow2"
    assert _format(rig, "a", rig.disk("a", size=12 * GiB)) == ".raw"
    copy = rig.yard.copy_image("b", disk)
    rig.wait()
    assert _format(rig, "b", copy) == ".qcow2"
    assert rig.yard.get_image_status("b", copy).status == "optimized"
    rig.yard.set_strategy("a", disk, "performance")
    (fix,) = fixes(rig.yard, "a", "optimize")
    assert not fix.runnable
    assert "longer than a file can be" in (fix.waits_for or "")
    with pytest.raises(errors.Unsupported, match="longer than a file can be"):
        run_fix(rig.yard, "a", fix)


def test_a_disk_from_a_snapshot_and_back(rig: Rig) -> None:
    """Over a raw base one may grow beyond what raw can have; merged, it keeps the larger size."""
    disk = rig.disk("a", ONE, size=GiB)
    with pytest.raises(errors.Unsupported, match="longer than a file can be") as caught:
        rig.yard.extend_virtual_disk("a", disk, 20 * GiB)
    assert "Snapshot" in caught.value.advice
    snapshot = rig.yard.create_snapshot("a", disk)
    rig.yard.extend_virtual_disk("a", disk, 20 * GiB)
    rig.write("a", disk, (3, 20 * GiB - MiB, MiB))
    rig.yard.remove_image("a", snapshot)
    rig.wait()
    settle(rig.yard, "a")
    assert fixes(rig.yard, "a") == []
    attached = rig.yard.prepare_image("a", disk, options={"read_only": True})
    assert len(rig.files("a")) == 1
    commands = ("-c", "read -P 1 0 1M", "-c", f"read -P 3 {20 * GiB - MiB} 1M")
    assert "failed" not in run("qemu-io", "-r", *commands, graph(attached))


def test_files_larger_than_any_file_here_come_in(rig: Rig) -> None:
    """Import makes a qcow2; what cannot be written out as raw is refused at once."""
    big = rig.folder / "big.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(big), str(20 * GiB))
    image = rig.yard.import_image("a", str(big), "qcow2")
    rig.wait()
    assert _format(rig, "a", image) == ".qcow2"
    assert _runnable(rig, "a") == []
    out = rig.repositories / "out.raw"
    with pytest.raises(errors.InvalidParameter, match="the longest file there has") as caught:
        rig.yard.export_image("a", image, str(out), "raw")
    assert "qcow2" in caught.value.advice
    assert {path.name for path in rig.repositories.iterdir()} == {"repo-a", "repo-b"}
    assert rig.yard.list_tasks()[-1].verb != "exportImage"


def _refuse_below(patch: pytest.MonkeyPatch, files: Files, name: str, folder: Path, number: int) -> None:
    """Have calls with a name in a folder fail as on another file system."""
    real = getattr(files, name)

    def call(source: str, target: str) -> None:
        if os.path.realpath(source).startswith(str(folder)):
            raise OSError(number, os.strerror(number), source)
        real(source, target)

    patch.setattr(files, name, call)


@pytest.mark.parametrize("refuses_to_rename_over", [True, False])
def test_an_export_needs_no_hard_links(
    local: Rig, monkeypatch: pytest.MonkeyPatch, refuses_to_rename_over: bool
) -> None:
    """The file is there whole, under its name alone; one that somebody made meanwhile stays."""
    stick, files = local.folder / "stick", local.yard.service.host.files
    stick.mkdir()
    _refuse_below(monkeypatch, files, "link", stick, errno.EPERM)
    if not refuses_to_rename_over:
        _refuse_below(monkeypatch, files, "rename_to_new", stick, errno.EINVAL)
    disk = local.disk("a", ONE)
    out = stick / "out.raw"
    task = local.yard.export_image("a", disk, str(out), "raw")
    assert local.yard.wait_for_task(task.task_id, 60).state == "done"
    same_bytes(out.read_bytes(), picture(SIZE, ONE))
    out.unlink()
    with monkeypatch.context() as patch:
        intercept(patch, files, "rename_to_new", before=lambda: out.write_text("mine"))
        task = local.yard.export_image("a", disk, str(out), "raw")
        with pytest.raises(errors.NotEmpty):
            local.yard.wait_for_task(task.task_id, 60)
    assert out.read_text() == "mine"
    assert list(stick.iterdir()) == [out]
    settle(local.yard, "a")
    local.clean_slate("a")


def test_an_export_onto_exfat(local: Rig) -> None:
    """By way of FUSE, which knows neither hard links nor a rename that refuses."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("mkfs.exfat", "mount.exfat-fuse"))):
        pytest.skip("needs root and exFAT (Debian: exfatprogs, exfat-fuse)")
    disk_file, stick = local.folder / "exfat", local.folder / "stick"
    stick.mkdir()
    with disk_file.open("wb") as file:
        file.truncate(64 * MiB)
    run("mkfs.exfat", str(disk_file))
    loop = run("losetup", "--find", "--show", str(disk_file)).strip()
    run("mount.exfat-fuse", loop, str(stick))
    try:
        disk = local.disk("a", ONE)
        for format in ("raw", "qcow2"):
            out = stick / f"out.{format}"
            task = local.yard.export_image("a", disk, str(out), format)
            assert local.yard.wait_for_task(task.task_id, 60).state == "done"
            same_bytes(local.convert(str(out), format), picture(SIZE, ONE))
        assert {path.name for path in stick.iterdir()} == {"out.raw", "out.qcow2"}
        place = {"path": str(stick / "repo")}
        assert local.refusal("createStorageRepository", **_localfs(place)) == "Unsupported"
        with pytest.raises(errors.Unsupported, match="hard links"):
            local.call("createStorageRepository", **_localfs({**place, "sharedByOneHost": True}))
    finally:
        run("umount", str(stick))
        run("losetup", "--detach", loop)


def _localfs(place: dict[str, object] | dict[str, str]) -> dict[str, object]:
    return {"repoFormat": "localfs-1.0", "connectionParameters": place}


@pytest.mark.parametrize(
    ("name", "number", "words"),
    [
        ("link", errno.EPERM, "hard links"),
        ("try_lock_byte", errno.ENOSYS, "OFD locks"),
        ("sync_folder", errno.EINVAL, "fsync"),
    ],
)
def test_what_a_repository_needs_of_its_file_system(
    local: Rig, monkeypatch: pytest.MonkeyPatch, name: str, number: int, words: str
) -> None:
    """Refused when it is created, and when it is connected, with words; nothing is left there."""
    files = local.yard.service.host.files

    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, name, refused)
    place = local.folder / "new"
    for verb, more in (
        ("createStorageRepository", _localfs({"path": str(place)})),
        ("connectStorageRepository", {"repoId": "x", **_localfs(local.place("a"))}),
    ):
        with pytest.raises(errors.Unsupported, match=words) as caught:
            local.call(verb, **more)
        assert "file system" in caught.value.advice
    assert list(place.iterdir()) == []
    assert list(Path(local.place("a")["path"], "temporary").iterdir()) == []


@pytest.mark.parametrize("kind", ["virtiofs", "fuse.ceph", "gpfs", "fuse.juicefs", "nfs4", "exfat", ""])
def test_only_file_systems_that_are_known_to_be_local(
    local: Rig, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Any other only where the caller says that no other host uses it; kept for the next process."""
    with monkeypatch.context() as patch:
        patch.setattr(local.yard.service.host.files, "file_system", lambda _: kind)
        place: dict[str, object] = {"path": str(local.folder / "new")}
        known = {**place, "sharedByOneHost": True}
        with pytest.raises(errors.Unsupported, match=kind or "unknown") as caught:
            local.call("createStorageRepository", **_localfs(place))
        assert "sharedByOneHost=true" in caught.value.advice
        local.call("createStorageRepository", **_localfs(known))
        assert local.refusal("connectStorageRepository", repoId="x", **_localfs(place)) == "Unsupported"
        asked = {"repoId": "x", **_localfs({**place, "sharedByOneHost": "true"})}
        assert local.refusal("connectStorageRepository", **asked) == "InvalidParameter"
        local.call("connectStorageRepository", repoId="x", **_localfs(known))
        local.yard.create_virtual_disk("x", SIZE)
    (found,) = [info for info in local.yard.list_storage_repositories() if info.repo_id == "x"]
    assert (found.health, found.connection_parameters) == ("ok", known)


def test_a_chain_too_deep_to_be_opened(local: Rig) -> None:
    """Neither copied nor exported, nor taken for a new disk elsewhere; nothing was begun."""
    disk = local.disk("a", ONE)
    repository = local.repository("a")
    snapshots = [local.yard.create_snapshot("a", disk) for _ in range(CHAIN_DEPTH_OPENED + 1)]
    before = repository.state().version
    out = local.folder / "out.raw"
    for attempt in (
        lambda: local.yard.copy_image("b", disk),
        lambda: local.yard.export_image("a", disk, str(out), "raw"),
        lambda: local.yard.prepare_image("a", disk),
    ):
        with pytest.raises(errors.Unsupported, match=f"at most {CHAIN_DEPTH_OPENED}") as caught:
            attempt()
        assert "merge" in caught.value.advice
    deep = local.yard.create_snapshot("a", disk)
    with pytest.raises(errors.Unsupported, match="at most"):
        local.yard.create_virtual_disk("b", SIZE, deep)
    assert repository.state().version == before + 2  # the two of createSnapshot
    assert not out.exists()
    local.yard.copy_image("b", snapshots[-2], options={"auto_fix": False})


def test_a_new_file_system_is_empty(local: Rig, tmp_path: Path) -> None:
    """What mke2fs makes in its root is no content, and stays; anything else is named."""
    with mounted(tmp_path / "new", ["mkfs.ext4", "-q"]) as place:
        assert (place / "lost+found").is_dir()
        (place / "letter").write_text("mine")
        with pytest.raises(errors.NotEmpty, match="letter"):
            local.call("createStorageRepository", **_localfs({"path": str(place)}))
        (place / "letter").unlink()
        local.call("createStorageRepository", **_localfs({"path": str(place)}))
        local.call("connectStorageRepository", repoId="x", **_localfs({"path": str(place)}))
        local.yard.remove_storage_repository("x")
        assert [path.name for path in place.iterdir()] == ["lost+found"]
