"""What others leave is named, and nothing of it is lost: snapshots in a volume, files beside it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from msgspec.structs import replace

from diskyard import KiB, MiB, errors
from diskyard.model.fix import Fix
from tests.api.helpers import SIZE, Rig, fixes, picture, run, run_fix, settle

FIRST, SECOND = (1, 0, SIZE // 2), (2, SIZE // 4, SIZE // 2)


def named(rig: Rig, repo: str = "a") -> Fix:
    """The one thing that is listed: of the type clean, and never to be run."""
    (found,) = rig.yard.check_storage_repository(repo)
    assert (found.type, found.runnable, found.frees_bytes) == ("clean", False, None)
    task = rig.yard.fix_storage_repository(repo, found, {"force": True})
    with pytest.raises(errors.Unsupported):
        rig.yard.wait_for_task(task.task_id)
    return found


def overlaid(rig: Rig) -> tuple[str, Path]:
    """A disk on a snapshot, so that its volume is a qcow2 file."""
    disk = rig.disk("a", FIRST)
    rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, SECOND)
    return disk, rig.volume_path("a", disk)


def snapshot_file(path: Path, *words: str) -> str:
    """What qemu-img does with the internal snapshots of a volume, whatever its header says of a backing."""
    alone = {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": str(path)}}
    return run("qemu-img", "snapshot", *words, f"json:{json.dumps(alone)}")


# -- internal snapshots ------------------------------------------------------------------


def test_a_disk_with_internal_snapshots_stays_usable(rig: Rig) -> None:
    disk, path = overlaid(rig)
    snapshot_file(path, "-c", "mine")
    rig.expect("a", disk, picture(SIZE, FIRST, SECOND))
    assert rig.yard.get_image_status("a", disk).status == "optimized"
    found = named(rig)
    assert found.image_id == disk
    (listing,) = re.findall(r"qemu-img snapshot -l '.*?'", found.waits_for or "")
    assert "mine" in run(*shlex.split(listing))
    assert rig.yard.check_storage_repository("a", options={"deep": True}) == [found]
    # All that does not give up the file works on.
    rig.write("a", disk, (3, 0, 64 * KiB))
    wanted = picture(SIZE, FIRST, SECOND, (3, 0, 64 * KiB))
    copy = rig.yard.copy_image("b", disk)
    assert rig.yard.wait_for_tasks(60)
    rig.expect("b", copy, wanted)
    rig.yard.extend_virtual_disk("a", disk, SIZE + MiB)
    rig.expect("a", disk, wanted + bytes(MiB))
    snapshot = rig.yard.create_snapshot("a", disk)
    rig.expect("a", snapshot, wanted + bytes(MiB))
    # Given up by its user, nothing is left of it.
    snapshot_file(path, "-d", "mine")
    settle(rig.yard, "a")  # the merge of what the copy was frozen by has waited for it
    rig.expect("a", disk, wanted + bytes(MiB))
    rig.clean_slate("a", "b")


def test_a_merge_waits_for_internal_snapshots(rig: Rig) -> None:
    disk, path = overlaid(rig)
    (snapshot,) = (found.image_id for found in rig.yard.list_images("a").images if found.kind == "snapshot")
    snapshot_file(path, "-c", "mine")
    rig.yard.remove_image("a", snapshot)
    assert rig.yard.wait_for_tasks(60)
    (merge,) = fixes(rig.yard, "a", "merge")
    assert not merge.runnable
    assert "internal snapshots" in (merge.waits_for or "")
    task = rig.yard.fix_storage_repository("a", merge)
    with pytest.raises(errors.ImageInUse, match="internal snapshots"):
        rig.yard.wait_for_task(task.task_id)
    assert "mine" in snapshot_file(path, "-l")
    rig.expect("a", disk, picture(SIZE, FIRST, SECOND))
    snapshot_file(path, "-d", "mine")
    rig.yard.fix_storage_repository("a", merge)
    assert rig.yard.wait_for_tasks(60)
    rig.expect("a", disk, picture(SIZE, FIRST, SECOND))
    rig.clean_slate("a")


def test_an_optimization_waits_for_internal_snapshots(rig: Rig) -> None:
    disk, path = overlaid(rig)
    snapshot_file(path, "-c", "mine")
    rig.yard.set_strategy("a", disk, "performance")
    (found,) = fixes(rig.yard, "a", "optimize")
    assert "internal snapshots" in (found.waits_for or "")
    task = rig.yard.fix_storage_repository("a", found)
    with pytest.raises(errors.ImageInUse, match="internal snapshots"):
        rig.yard.wait_for_task(task.task_id)
    snapshot_file(path, "-d", "mine")
    rig.yard.fix_storage_repository("a", found)
    assert rig.yard.wait_for_tasks(60)
    rig.expect("a", disk, picture(SIZE, FIRST, SECOND))


# -- files -----------------------------------------------------------------------------------


def overlay(path: Path, backing: str, *, name: str) -> Path:
    """An overlay beside a file, as libvirt makes one."""
    made = path.with_name(name)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", "-u", str(made), str(SIZE))
    return made


@pytest.mark.parametrize("how", ["path", "name", "json"])
def test_an_overlay_that_another_program_left(rig: Rig, how: str) -> None:
    disk, path = overlaid(rig)
    rig.yard.prepare_image("a", disk, options={"owner": "vm"})
    backing = {
        "path": str(path),
        "name": path.name,
        "json": f'json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{path}"}}}}',
    }[how]
    made = overlay(path, backing, name=f"{path.stem}.snap")
    assert disk in named(rig).description
    with pytest.raises(errors.ImageInUse, match="overlay") as raised:
        rig.yard.teardown_image("a", disk, options={"owner": "vm"})
    assert raised.value.details["imageId"] == disk
    rig.expect_in_use("a", disk)
    rig.yard.teardown_image("a", disk, options={"owner": "vm", "force": True})
    assert made.exists()
    made.unlink()
    rig.clean_slate("a")


def test_an_overlay_of_an_overlay(rig: Rig) -> None:
    disk, path = overlaid(rig)
    rig.yard.prepare_image("a", disk, options={"owner": "vm"})
    first = overlay(path, str(path), name="first.snap")
    overlay(path, str(first), name="second.snap")
    listed = rig.yard.check_storage_repository("a")
    assert [found.image_id for found in listed] == [disk, disk]
    first.unlink()
    (found,) = rig.yard.check_storage_repository("a")
    assert found.image_id is None  # what it was an overlay of is not here any more
    rig.yard.teardown_image("a", disk, options={"owner": "vm"})


def test_an_overlay_that_is_left_when_the_host_restarts(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing lets go of the disk by itself, as long as its newest bytes may be in the overlay."""
    disk, path = overlaid(rig)
    rig.yard.prepare_image("a", disk, options={"owner": "vm"})
    made = overlay(path, str(path), name="first.snap")
    rebooted = replace(rig.yard.service.host.identity, boot_id="0" * 32)
    monkeypatch.setattr("diskyard.host.this_host", lambda: rebooted)
    after = rig.host("one", connect=())
    (ended,) = [fix for fix in fixes(after, "a") if "attachment" in fix.description]
    assert not ended.runnable
    assert "first.snap is an overlay" in (ended.waits_for or "")
    with pytest.raises(errors.ImageInUse, match=r"first\.snap"):
        run_fix(after, "a", ended)
    assert after.get_image_info("a", disk).attachments
    made.rename(rig.folder / "elsewhere.snap")
    assert run_fix(after, "a", ended).changed
    assert after.get_image_info("a", disk).attachments == ()


def test_readers_and_other_images_are_not_kept_by_an_overlay(rig: Rig) -> None:
    disk, path = overlaid(rig)
    other = rig.disk("a", FIRST)
    overlay(path, str(path), name="first.snap")
    for image, options in ((disk, {"read_only": True}), (other, {})):
        rig.yard.prepare_image("a", image, options=options)
        rig.yard.teardown_image("a", image)


def test_strangers_are_named(rig: Rig) -> None:
    root = Path(rig.place("a")["path"])
    (root / "lost+found").mkdir()  # of the file system's
    rig.clean_slate("a")
    for name in ("notes.txt", "volumes/disk.qcow2"):
        (root / name).write_bytes(b"QFI\xfb" + bytes(8) + b"\xff" * 100)
        assert name in named(rig).description
        (root / name).unlink()
    (root / "volumes" / "link").symlink_to("/etc/hostname")
    assert "volumes/link" in named(rig).description
    (root / "volumes" / "link").unlink()
    for number in range(300):
        (root / "volumes" / f"{number:03}").touch()
    assert len(rig.yard.check_storage_repository("a")) == 100
