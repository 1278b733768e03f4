"""A repository that cannot be written to: all can be got out of it, and what writes is refused with words."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diskyard import KiB, MiB, errors
from diskyard.operations import sizes
from tests.api.helpers import (
    COMMIT_ONLY,
    SIZE,
    Rig,
    code_of,
    fixes,
    graph,
    intercept,
    kill,
    picture,
    run,
    run_fix,
    same_bytes,
)
from tests.mounts import mounted, remount

ONE = (1, 0, MiB)
TWO = (2, 2 * MiB, 64 * KiB)
_NOBODY = 65534


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A host whose repository ``c`` is on a file system of its own, beside ``a`` and ``b``."""
    made = Rig(tmp_path)
    with mounted(tmp_path / "fs", ["mkfs.ext4", "-q"], 128 * MiB) as place:
        (tmp_path / "repo-c").symlink_to(place)
        made.yard.create_storage_repository("localfs-1.0", made.place("c"))
        made.yard.connect_storage_repository("c", "localfs-1.0", made.place("c"))
        try:
            yield made
        finally:
            remount(place, "rw")
            made.close()


def _mount(rig: Rig) -> Path:
    return (rig.folder / "repo-c").resolve()


def _tree(folder: Path) -> dict[str, tuple[int, int]]:
    found = sorted(folder.rglob("*"))
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


@pytest.mark.parametrize("connected", ["before", "after"])
def test_all_can_be_got_out(rig: Rig, connected: str) -> None:
    """Read, listed, checked, exported, prepared, whether it was connected before or is now."""
    disk = rig.disk("c", ONE)
    snapshot = rig.yard.create_snapshot("c", disk)
    rig.write("c", disk, TWO)
    remount(_mount(rig), "ro")
    before = _tree(_mount(rig))
    yard = rig.yard if connected == "before" else rig.host("two", connect=("a", "b", "c"))
    assert {image.image_id for image in yard.list_images("c").images} == {disk, snapshot}
    assert yard.get_image_status("c", disk).status == "optimized"
    (info,) = [found for found in yard.list_storage_repositories() if found.repo_id == "c"]
    assert info.health == "read-only: its file system is mounted read-only"
    assert yard.check_storage_repository("c", options={"deep": True}) == []
    wanted = {disk: picture(SIZE, ONE, TWO), snapshot: picture(SIZE, ONE)}
    for image, data in wanted.items():
        for format in ("raw", "qcow2"):
            out = rig.folder / f"{image}.{format}"
            task = yard.export_image("c", image, str(out), format)
            assert yard.wait_for_task(task.task_id, 60).state == "done"
            same_bytes(rig.convert(str(out), format), data)
        attached = yard.prepare_image("c", image, options={"read_only": True, "owner": "vm"})
        same_bytes(rig.convert(graph(attached)), data)
        assert attached.mode == "read_only"
        again = yard.prepare_image("c", image, options={"read_only": True, "owner": "vm"})
        assert again == attached
        yard.teardown_image("c", image, options={"owner": "vm"})
    out = rig.folder / f"{snapshot}.qcow2"
    imported = yard.import_image("b", str(out), "qcow2")
    assert yard.wait_for_tasks(60)
    rig.expect("b", imported, wanted[snapshot])
    assert fixes(yard, "b") == fixes(yard, "c") == []
    assert _tree(_mount(rig)) == before


@pytest.mark.parametrize("format", ["raw", "qcow2"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_disk_whose_extend_was_cut(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, format: str, moment: str
) -> None:
    """Nobody can take it back there: it is read up to where its record says, or refused for what it is."""
    disk = rig.disk("c", ONE)
    if format == "qcow2":
        rig.yard.create_snapshot("c", disk)
    with monkeypatch.context() as patch:
        intercept(patch, sizes, "grow", **{moment: kill})
        assert code_of(lambda: rig.yard.extend_virtual_disk("c", disk, 2 * SIZE)) == "InternalError"
    remount(_mount(rig), "ro")
    if format == "qcow2" and moment == "after":
        with pytest.raises(errors.ImageBroken, match=f"has {2 * SIZE} bytes") as caught:
            rig.read("c", disk)
        assert "Mount" in caught.value.advice
    else:
        rig.expect("c", disk, picture(SIZE, ONE))
    out = rig.folder / "out.raw"
    rig.yard.wait_for_task(rig.yard.export_image("c", disk, str(out), "raw").task_id, 60)
    same_bytes(out.read_bytes(), picture(SIZE, ONE))
    remount(_mount(rig), "rw")
    rig.expect("c", disk, picture(SIZE, ONE))
    rig.clean_slate("c")


def test_no_copy_is_promised_whose_source_nothing_keeps(rig: Rig) -> None:
    """Who has it mounted writable may remove the source before the copy is made."""
    yard = rig.yard
    disk = rig.disk("c", ONE)
    snapshot = yard.create_snapshot("c", disk)
    kept = yard.create_snapshot("c", disk)
    assert yard.copy_image("b", kept) == kept
    rig.wait()
    remount(_mount(rig), "ro")
    states = {repo: rig.repository(repo).state() for repo in "abc"}
    attempts: list[Callable[[], str]] = [
        lambda: yard.copy_image("b", disk),
        lambda: yard.copy_image("b", snapshot),
        lambda: yard.copy_image("b", snapshot, kept),
        lambda: yard.create_virtual_disk("b", SIZE, snapshot),
    ]
    for attempt in attempts:
        with pytest.raises(errors.Unsupported, match="nothing would keep its bytes") as caught:
            attempt()
        assert "Export" in caught.value.advice
    assert {repo: rig.repository(repo).state() for repo in "abc"} == states
    # What is there already needs no source.
    assert yard.copy_image("b", kept) == kept
    # A hold of before lasts: the copy is completed though its source became read-only.
    remount(_mount(rig), "rw")
    copy = yard.copy_image("b", disk, options=COMMIT_ONLY)
    remount(_mount(rig), "ro")
    (mend,) = fixes(yard, "b")
    assert run_fix(yard, "b", mend).state == "done"
    rig.expect("b", copy, picture(SIZE, ONE))


def test_what_writes_is_refused_with_words(rig: Rig) -> None:
    """Every verb that changes it says that the file system is read-only; later all goes on."""
    yard = rig.yard
    disk = rig.disk("c", ONE)
    snapshot = yard.create_snapshot("c", disk)
    other = rig.disk("a", ONE)
    kept = yard.create_snapshot("c", disk)
    yard.remove_image("c", snapshot, options={"auto_fix": False})
    remount(_mount(rig), "ro")
    attempts: dict[str, Callable[[], object]] = {
        "createVirtualDisk": lambda: yard.create_virtual_disk("c", SIZE),
        "createSnapshot": lambda: yard.create_snapshot("c", disk),
        "copyImage": lambda: yard.copy_image("c", other),
        "removeImage": lambda: yard.remove_image("c", kept),
        "extendVirtualDisk": lambda: yard.extend_virtual_disk("c", disk, 2 * SIZE),
        "revertVirtualDisk": lambda: yard.revert_virtual_disk("c", disk, kept),
        "setUserData": lambda: yard.set_user_data("c", disk, {"a": 1}),
        "prepareImage": lambda: yard.prepare_image("c", disk),
        "importImage": lambda: yard.import_image("c", str(rig.volume_path("a", other)), "raw"),
    }
    for verb, attempt in attempts.items():
        with pytest.raises(errors.StorageError, match="mounted read-only") as caught:
            attempt()
        assert "Mount" in caught.value.advice, verb
    listed = fixes(yard, "c")
    assert listed
    assert not any(fix.runnable for fix in listed)
    assert {fix.waits_for for fix in listed} == {"its file system is mounted read-only"}
    for fix in listed:
        with pytest.raises(errors.StorageError, match="mounted read-only"):
            yard.fix_storage_repository("c", fix)
    remount(_mount(rig), "rw")
    assert all(fix.runnable for fix in fixes(yard, "c"))
    attempts["createSnapshot"]()


def test_an_image_that_others_change_is_not_exported_by_halves(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing holds it: what was read counts only if it is what it was when that ends."""
    disk = rig.disk("c", ONE)
    snapshot = rig.yard.create_snapshot("c", disk)
    remount(_mount(rig), "ro")
    import diskyard.fixes.exporting as exporting

    def change() -> None:
        remount(_mount(rig), "rw")
        rig.host("two", connect=("c",)).remove_image("c", snapshot)
        remount(_mount(rig), "ro")

    intercept(monkeypatch, exporting, "export_view", after=change)
    out = rig.folder / "out.raw"
    task = rig.yard.export_image("c", snapshot, str(out), "raw")
    with pytest.raises(errors.LeaseHeld, match="was changed while it was read"):
        rig.yard.wait_for_task(task.task_id, 60)
    assert not out.exists()


@pytest.fixture
def open_to_all() -> Iterator[Rig]:
    """A host whose repositories every user may read, and root alone may write."""
    if os.geteuid() != 0:
        pytest.skip("being another user needs root")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        made = Rig(Path(folder))
        yield made
        made.close()


def test_a_user_who_may_not_write_there(open_to_all: Rig) -> None:
    """The same for another user's repository; it says so of the user, not of the file system."""
    rig = open_to_all
    disk = rig.disk("a", ONE)
    snapshot = rig.yard.create_snapshot("a", disk)
    run("chmod", "-R", "a+rX,go-w", rig.place("a")["path"])
    mine = rig.folder / "nobody"
    mine.mkdir()
    os.chown(mine, _NOBODY, _NOBODY)
    out = mine / "out.raw"
    program = f"""
import os
os.setgroups([]); os.setgid({_NOBODY}); os.setuid({_NOBODY})
from diskyard import Diskyard, errors
with Diskyard(state_folder={str(mine / "state")!r}) as yard:
    yard.connect_storage_repository("a", "localfs-1.0", {rig.place("a")!r})
    assert len(yard.list_images("a").images) == 2
    assert yard.check_storage_repository("a") == []
    task = yard.export_image("a", {disk!r}, {str(out)!r}, "raw")
    assert yard.wait_for_task(task.task_id, 60).state == "done"
    try:
        yard.create_virtual_disk("a", 1 << 20)
    except errors.StorageError as error:
        print(error)
    place = {{"path": {str(mine / "own")!r}}}
    yard.create_storage_repository("localfs-1.0", place)
    yard.connect_storage_repository("own", "localfs-1.0", place)
    try:
        yard.copy_image("own", {snapshot!r})
    except errors.Unsupported as error:
        print(error)
    assert yard.list_images("own").images == ()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("this user may not write to it") == 2
    same_bytes(out.read_bytes(), picture(SIZE, ONE))
