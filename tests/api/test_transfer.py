"""importImage and exportImage: five formats, sparse, safe against the file, named when durable."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    python,
    run,
    run_fix,
    same_bytes,
    settle,
)

ONE = (1, MiB, MiB)
TWO = (2, 3 * MiB, 64 * KiB)
QEMU_NAMES = {"raw": "raw", "qcow2": "qcow2", "vmdk": "vmdk", "vdi": "vdi", "vhdx": "vhdx"}
FORMATS = list(QEMU_NAMES)


def foreign(rig: Rig, name: str, data: bytes) -> Path:
    """A file of another format with these bytes."""
    raw, file = rig.folder / "source.raw", rig.folder / f"source.{name}"
    raw.write_bytes(data)
    if name != "raw":
        run("qemu-img", "convert", "-f", "raw", "-O", QEMU_NAMES[name], str(raw), str(file))
    return file


@pytest.mark.parametrize("name", FORMATS)
def test_import(rig: Rig, name: str) -> None:
    """The image has the file's bytes, is sparse where they are zero, and the file is let go."""
    file = foreign(rig, name, picture(SIZE, ONE, TWO))
    image = rig.yard.import_image("a", str(file), name, {"from": name})
    rig.wait()
    info = rig.yard.get_image_info("a", image)
    assert (info.kind, info.user_data, info.size_bytes) == ("virtual_disk", {"from": name}, SIZE)
    assert info.exclusive_bytes <= 2 * MiB
    file.unlink()
    rig.expect("a", image, picture(SIZE, ONE, TWO))
    rig.write("a", image, (3, 0, MiB))
    rig.expect("a", image, picture(SIZE, ONE, TWO, (3, 0, MiB)))
    rig.clean_slate("a")


@pytest.mark.parametrize("name", FORMATS)
def test_export(rig: Rig, name: str) -> None:
    """Any QEMU tool reads what a chain of volumes held; the disk can be written meanwhile."""
    disk = rig.disk("a", ONE)
    rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, TWO)
    path = rig.folder / f"out.{name}"
    task = rig.yard.export_image("a", disk, str(path), name)
    assert rig.yard.wait_for_task(task.task_id, 60).state == "done"
    same_bytes(rig.convert(str(path), QEMU_NAMES[name]), picture(SIZE, ONE, TWO))
    assert path.stat().st_blocks * 512 <= 3 * MiB
    assert [item.name for item in rig.folder.iterdir() if item.name.startswith("tmp.")] == []
    settle(rig.yard, "a")
    rig.expect("a", disk, picture(SIZE, ONE, TWO))
    rig.clean_slate("a")


def test_export_overwrites_nothing(rig: Rig) -> None:
    """A path that exists, or has no folder, or is not absolute, is refused at once."""
    disk = rig.disk("a", ONE)
    mine = rig.folder / "mine"
    mine.write_text("mine")
    (rig.folder / "link").symlink_to(rig.folder / "nowhere")
    (rig.folder / "loop").symlink_to("loop")
    for path, code in {
        str(mine): "NotEmpty",
        str(rig.folder / "link"): "NotEmpty",
        str(rig.folder / "no" / "out"): "InvalidParameter",
        str(rig.folder / "loop" / "out"): "InvalidParameter",
        str(rig.folder / "mine" / "out"): "InvalidParameter",
        str(rig.folder / ("a" * 300)): "InvalidParameter",
        str(rig.folder / ("b/" * 3000) / "out"): "InvalidParameter",
        "out.raw": "InvalidParameter",
        "": "InvalidParameter",
        str(rig.folder / "x\0y"): "InvalidParameter",
    }.items():
        words = {"repositoryId": "a", "imageId": disk, "path": path, "format": "raw"}
        assert rig.refusal("exportImage", **words) == code
    assert mine.read_text() == "mine"
    assert rig.refusal("exportImage", repositoryId="a", imageId=disk, path="/x", format="vpc") == (
        "InvalidParameter"
    )


def test_import_as_snapshot_of_an_odd_size(rig: Rig) -> None:
    """An immutable image; a file that does not end at a sector is filled up with zeros."""
    file = rig.folder / "odd.raw"
    file.write_bytes(b"\1" * 1000)
    image = rig.yard.import_image("a", str(file), "raw", options={"as": "snapshot"})
    rig.wait()
    assert rig.yard.get_image_info("a", image).kind == "snapshot"
    rig.expect("a", image, b"\1" * 1000 + bytes(24))


def test_files_that_cannot_be_imported(rig: Rig) -> None:
    """Not there, a folder, empty, not of the format: each refused before anything is made."""
    text = rig.folder / "text"
    text.write_text("no image at all")
    empty = rig.folder / "empty"
    empty.touch()
    for path, name in (
        (rig.folder / "missing", "raw"),
        (rig.folder, "raw"),
        (empty, "raw"),
        (text, "qcow2"),
        (text, "vmdk"),
        (Path("/dev/zero"), "raw"),
    ):
        words = {"targetRepoId": "a", "path": str(path), "format": name}
        assert rig.refusal("importImage", **words) in ("InvalidParameter", "UnsafeImage")
    assert rig.files("a") == []
    assert rig.yard.list_images("a").images == ()


def hostile(rig: Rig, kind: str) -> Path:
    """A qcow2 file that refers to another file."""
    secret, file = rig.folder / "secret", rig.folder / "hostile.qcow2"
    secret.write_bytes(b"s" * MiB)
    words = ["qemu-img", "create", "-q", "-f", "qcow2"]
    if kind == "backing":
        run(*words, "-b", str(secret), "-F", "raw", str(file))
    else:
        run(*words, "-o", f"data_file={rig.folder / 'data'}", str(file), "1M")
    return file


@pytest.mark.parametrize("kind", ["backing", "data file"])
def test_hostile_files_are_refused(rig: Rig, kind: str) -> None:
    """A file that refers to others is UnsafeImage, and nothing of those is read."""
    file = hostile(rig, kind)
    words = {"targetRepoId": "a", "path": str(file), "format": "qcow2"}
    assert rig.refusal("importImage", **words) == "UnsafeImage"
    assert rig.yard.list_images("a").images == ()
    assert rig.files("a") == []


def test_a_raw_file_is_never_probed(rig: Rig) -> None:
    """A qcow2 imported as raw stays what it is, byte for byte."""
    file = foreign(rig, "qcow2", picture(SIZE, ONE))
    data = file.read_bytes()
    image = rig.yard.import_image("a", str(file), "raw")
    rig.wait()
    rig.expect("a", image, data + bytes(-len(data) % 512))


def test_a_file_that_changes_before_it_is_read(rig: Rig) -> None:
    """The image is not completed from other bytes than those committed, and says why."""
    file = foreign(rig, "raw", picture(SIZE, ONE))
    image = rig.yard.import_image("a", str(file), "raw", options=COMMIT_ONLY)
    (fix,) = fixes(rig.yard, "a")
    file.write_bytes(picture(SIZE, TWO))
    os.utime(file, (1, 1))
    (listed,) = fixes(rig.yard, "a")
    assert not listed.runnable
    assert "changed" in (listed.waits_for or "")
    with pytest.raises(errors.UnsafeImage, match="changed"):
        run_fix(rig.host("two"), "a", fix)
    status = rig.yard.get_image_status("a", image)
    assert (status.status, "changed" in status.last_error) == ("broken", True)
    rig.yard.remove_image("a", image)
    rig.wait()
    settle(rig.yard, "a")
    rig.clean_slate("a")


def test_import_left_to_another_process(rig: Rig) -> None:
    """It is committed with the id, and completed by whichever process of this host runs its mend."""
    file = foreign(rig, "vmdk", picture(SIZE, ONE))
    image = rig.yard.import_image("a", str(file), "vmdk", options=COMMIT_ONLY)
    assert code_of(lambda: rig.yard.prepare_image("a", image)) == "ImageBroken"
    settle(rig.host("one"), "a")
    rig.expect("a", image, picture(SIZE, ONE))
    rig.clean_slate("a")


@pytest.mark.parametrize("name", ["raw", "qcow2"])
def test_links_are_not_imported(rig: Rig, name: str) -> None:
    """Neither when it is asked for, nor one that has taken the file's place since."""
    file = foreign(rig, name, picture(SIZE, ONE))
    link = rig.folder / "link"
    link.symlink_to(file)
    words = {"targetRepoId": "a", "path": str(link), "format": name}
    assert rig.refusal("importImage", **words) == "UnsafeImage"
    image = rig.yard.import_image("a", str(file), name, options=COMMIT_ONLY)
    file.rename(rig.folder / "moved")
    file.symlink_to(rig.folder / "moved")
    (fix,) = fixes(rig.yard, "a")
    assert not fix.runnable
    with pytest.raises(errors.UnsafeImage, match="changed"):
        run_fix(rig.yard, "a", fix)
    file.unlink()
    (rig.folder / "moved").rename(file)  # a rename tells as much as a write would
    with pytest.raises(errors.UnsafeImage, match="changed"):
        run_fix(rig.yard, "a", fix)
    assert rig.yard.get_image_status("a", image).status == "broken"


def test_a_file_that_is_replaced_while_it_is_imported(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked at is read, not what has its name by then; and the image is not completed."""
    file = foreign(rig, "raw", picture(SIZE, ONE))
    other = rig.folder / "other"
    other.write_bytes(picture(SIZE, TWO))
    image = rig.yard.import_image("a", str(file), "raw", options=COMMIT_ONLY)
    (fix,) = fixes(rig.yard, "a")
    intercept(monkeypatch, fix_module("importing"), "copy_view", before=lambda: other.replace(file))
    with pytest.raises(errors.UnsafeImage, match="changed"):
        run_fix(rig.yard, "a", fix)
    # It may have been noticed before all was read.
    assert set(rig.volume_path("a", image).read_bytes()) <= {0, 1}
    assert rig.yard.get_image_status("a", image).status == "broken"


@pytest.mark.parametrize("name", ["raw", "qcow2"])
def test_an_import_without_room(rig: Rig, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before anything is written; a private copy needs room too."""
    file = foreign(rig, name, picture(SIZE, ONE))
    image = rig.yard.import_image("a", str(file), name, options=COMMIT_ONLY)
    (fix,) = fixes(rig.yard, "a")
    storage = rig.repository("a").storage
    capacity = storage.capacity()
    free_bytes = file.stat().st_blocks * 512 * (1 if name == "raw" else 2) - 1
    with monkeypatch.context() as patch:
        patch.setattr(storage, "capacity", lambda: type(capacity)(capacity.capacity_bytes, free_bytes))
        assert code_of(lambda: run_fix(rig.yard, "a", fix)) == "NoSpace"
        assert rig.files("a") == []
        patch.setattr(storage, "capacity", lambda: type(capacity)(capacity.capacity_bytes, free_bytes + 1))
        run_fix(rig.yard, "a", fix)
    rig.expect("a", image, picture(SIZE, ONE))


def test_an_export_stays_in_the_folder_that_was_looked_at(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may write into a transfer folder can make a link of a folder in it at any moment."""
    disk = rig.disk("a", ONE)
    out, moved, elsewhere = (rig.folder / name for name in ("out", "moved", "elsewhere"))
    out.mkdir()
    elsewhere.mkdir()

    def swap(*_: object) -> None:
        out.rename(moved)
        out.symlink_to(elsewhere)

    monkeypatch.setattr(fix_module("exporting"), "_remove_leftovers", swap)
    task = rig.yard.export_image("a", disk, str(out / "x.qcow2"), "qcow2")
    assert rig.yard.wait_for_task(task.task_id, 60).state == "done"
    assert list(elsewhere.iterdir()) == []
    same_bytes(rig.convert(str(moved / "x.qcow2"), "qcow2"), picture(SIZE, ONE))


def test_the_next_export_removes_what_a_killed_one_left(rig: Rig) -> None:
    """Only files of a process that is gone; those of one that may live, and others', stay."""
    disk = rig.disk("a", (1, 0, SIZE))
    out = rig.folder / "out"
    out.mkdir()
    mine = out / "tmp.mine"
    mine.touch()
    program = f"""
import os, threading, time
threading.Timer(60, os._exit, [1]).start()
yard.export_image("a", {disk!r}, {str(out / "x.raw")!r}, "raw", options={{"rate_limit": 4096}})
while not any(name.count(".") > 2 for name in os.listdir({str(out)!r})):
    time.sleep(0.01)
print("begun", flush=True)
time.sleep(60)
"""
    process = python(rig, "one", program)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "begun"
    for name, left in (("first.raw", 2), ("second.raw", 1)):
        task = rig.yard.export_image("a", disk, str(out / name), "raw")
        assert rig.yard.wait_for_task(task.task_id, 60).state == "done"
        assert len([path for path in out.iterdir() if path.name.startswith("tmp.")]) == left
        process.kill()
        process.communicate()
    assert mine.exists()
    settle(rig.yard, "a")
    rig.clean_slate("a")


def _moments(rig: Rig, name: str) -> dict[str, tuple[object, str]]:
    """Steps of an import after which the file can be another."""
    importing, transfer = fix_module("importing"), importlib.import_module("diskyard.operations.transfer")
    return {
        "after its headers": (transfer, "parse_import"),
        "before the mend": (fix_module("mend"), "require_free_space_to_import"),
        "once it is open": (importing, "open_given"),
        "before it is read": (importing, "import_layer"),
        "after it was read": (importing, "copy_view" if name == "raw" else "private_copy"),
    }


MOMENTS = (
    "after its headers",
    "before the mend",
    "once it is open",
    "before it is read",
    "after it was read",
)


def _shrink(file: Path) -> None:
    os.truncate(file, SIZE // 8 + 70_000 % 512)


def _shrink_and_grow(file: Path) -> None:
    size_bytes = file.stat().st_size
    _shrink(file)
    os.truncate(file, size_bytes)


def _write_in_place(file: Path) -> None:
    """With the time of change of its contents set back: the inode's own tells it all the same."""
    info = file.stat()
    with file.open("r+b") as repository:
        repository.seek(MiB + 7)
        repository.write(b"another")
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))


@pytest.mark.parametrize("name", ["raw", "qcow2"])
@pytest.mark.parametrize("change", [_shrink, _shrink_and_grow, _write_in_place])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_file_that_changes_while_it_is_imported(
    rig: Rig, name: str, change: Callable[[Path], None], moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused, whichever step sees it first; nothing of it can be read."""
    file = foreign(rig, name, picture(SIZE, ONE))
    target, step = _moments(rig, name)[moment]
    calls = intercept(monkeypatch, target, step, after=lambda: change(file))

    def import_it() -> None:
        rig.yard.import_image("a", str(file), name, options=COMMIT_ONLY)
        (fix,) = fixes(rig.yard, "a")
        run_fix(rig.yard, "a", fix)

    with pytest.raises(errors.UnsafeImage, match="changed") as caught:
        import_it()
    assert calls
    assert "import the file again" in caught.value.advice
    for found in rig.yard.list_images("a").images:
        assert rig.yard.get_image_status("a", found.image_id).status == "broken"
        rig.yard.remove_image("a", found.image_id)
    assert rig.yard.wait_for_tasks(60)
    settle(rig.yard, "a")
    rig.clean_slate("a")


def test_a_file_of_an_import_of_an_earlier_version(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was recorded of it cannot tell whether it has changed: it is refused with words."""
    file = foreign(rig, "raw", picture(SIZE, ONE))
    transfer = importlib.import_module("diskyard.operations.transfer")
    with monkeypatch.context() as patch:
        source = transfer.FileSource

        def as_before(**fields: Any) -> Any:
            return source(**{**fields, "fingerprint": fields["fingerprint"].rpartition(":")[0]})

        patch.setattr(transfer, "FileSource", as_before)
        rig.yard.import_image("a", str(file), "raw", options=COMMIT_ONLY)
    (fix,) = fixes(rig.yard, "a")
    assert not fix.runnable
    assert "import it again" in (fix.waits_for or "")
    with pytest.raises(errors.UnsafeImage, match="import it again"):
        run_fix(rig.yard, "a", fix)


def test_nothing_is_called_durable_of_a_file_that_has_changed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each checkpoint the file is looked at before what was read of it is recorded."""
    file = foreign(rig, "raw", picture(SIZE, ONE))
    image = rig.yard.import_image("a", str(file), "raw", options=COMMIT_ONLY)
    (fix,) = fixes(rig.yard, "a")
    moving = importlib.import_module("diskyard.mover.copying.moving")
    intercept(monkeypatch, moving.Mover, "_flush_all", after=lambda: _write_in_place(file))
    with pytest.raises(errors.UnsafeImage, match="changed"):
        run_fix(rig.yard, "a", fix)
    progress = rig.repository("a").progress(image)
    assert progress is not None
    assert progress.durable_bytes == 0


def test_a_file_that_is_being_written_is_not_imported(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was written a moment ago is looked at twice: within one tick its times stay the same."""
    file = foreign(rig, "raw", picture(SIZE, ONE))
    clock = type(rig.yard.service.host.clock)
    with monkeypatch.context() as patch:
        patch.setattr(clock, "wall_s", lambda _: file.stat().st_ctime)
        calls = intercept(patch, clock, "sleep", before=lambda: _write_in_place(file))
        with pytest.raises(errors.UnsafeImage, match="changed"):
            rig.yard.import_image("a", str(file), "raw")
    assert calls
    assert rig.yard.list_images("a").images == ()
    image = rig.yard.import_image("a", str(file), "raw")
    rig.wait()
    rig.expect("a", image, file.read_bytes())
