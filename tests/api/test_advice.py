"""Each refusal says its own reason and what helps, and what is advised does help."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from diskyard import MiB, errors
from diskyard.mover.advice import LIES
from tests.api.helpers import SIZE, Rig, picture, run
from tests.mounts import mounted

ONE = (1, 0, MiB)


def _raw(folder: Path) -> Path:
    path = folder / "plain.raw"
    path.write_bytes(picture(SIZE, ONE))
    return path


def _with_snapshot(folder: Path) -> Path:
    path = folder / "it.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", str(_raw(folder)), str(path))
    run("qemu-img", "snapshot", "-c", "one", str(path))
    return path


def _killed(folder: Path) -> Path:
    path = folder / "it.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", str(path), "4M")
    run("qemu-io", "-c", "write -P 1 0 1M", "-c", "abort", str(path), check=False)
    return path


def _encrypted(folder: Path) -> Path:
    path = folder / "it.qcow2"
    luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"  # ms; of itself it takes seconds
    secret = ["--object", "secret,id=s,data=x", "-o", luks]
    run("qemu-img", "create", "-q", "-f", "qcow2", *secret, str(path), "1M")
    return path


def _with_backing(folder: Path) -> Path:
    path = folder / "it.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(_raw(folder)), str(path))
    return path


def _with_data_file(folder: Path) -> Path:
    path = folder / "it.qcow2"
    words = ["-f", "qcow2", "-o", f"data_file={folder / 'data'}"]
    run("qemu-img", "create", "-q", *words, str(path), "4M")
    return path


def _vmdk(subformat: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "it.vmdk"
        run("qemu-img", "convert", "-O", "vmdk", "-o", f"subformat={subformat}", str(_raw(folder)), str(path))
        return path

    return make


def _ova(folder: Path) -> Path:
    path = folder / "it.ova"
    with tarfile.open(path, "w") as archive:
        archive.add(_vmdk("streamOptimized")(folder), "disk1.vmdk")
    return path


def _packed(folder: Path) -> Path:
    path = folder / "it.qcow2.gz"
    with path.open("wb") as file:
        subprocess.run(["gzip", "-c", str(_with_snapshot(folder))], stdout=file, check=True)
    return path


def _empty(folder: Path) -> Path:
    path = folder / "it.raw"
    path.touch()
    return path


def _truncated(folder: Path) -> Path:
    path = folder / "it.vdi"
    run("qemu-img", "convert", "-O", "vdi", str(_raw(folder)), str(path))
    os.truncate(path, path.stat().st_size - MiB)
    return path


def _link(folder: Path) -> Path:
    path = folder / "link"
    path.symlink_to(_raw(folder))
    return path


def _folder(folder: Path) -> Path:
    return folder


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def _lying(folder: Path) -> Path:
    path = folder / "it.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(path), "4M")
    with path.open("r+b") as file:
        file.seek(36)
        file.write(struct.pack(">I", 0))  # no L1 table
    return path


@pytest.mark.parametrize(
    ("make", "format", "reason", "cure"),
    [
        (_with_snapshot, "qcow2", "internal snapshots", "qemu-img snapshot -d"),
        (_killed, "qcow2", "not closed", "qemu-img check -r all"),
        (_encrypted, "qcow2", "encrypted", "--object secret"),
        (_with_backing, "qcow2", "backing file", "qemu-img convert"),
        (_with_data_file, "qcow2", "data file", "qemu-img convert"),
        (_vmdk("monolithicFlat"), "vmdk", "only names files", "Its data is in other files"),
        (_vmdk("twoGbMaxExtentSparse"), "vmdk", "only names files", "Its data is in other files"),
        (_ova, "vmdk", "no VMDK file", "tar xf"),
        (_packed, "qcow2", "not a qcow2", "gzip"),
        (_empty, "raw", "0 bytes", "createVirtualDisk"),
        (_empty, "qcow2", "not a qcow2", "empty"),
        (_truncated, "vdi", "not inside it", "fetch it again"),
        (_link, "raw", "is a link", "readlink -f"),
        (_folder, "raw", "is a directory", "image file in it"),
        (_fifo, "raw", "not a regular file", "to a file"),
        (_with_snapshot, "vhdx", "no VHDX", "give qcow2"),
        (_vmdk("streamOptimized"), "vdi", "no VDI", "give vmdk"),
        (_raw, "qcow2", "not a qcow2", "is raw"),
        (_lying, "qcow2", "L1 table", LIES),
    ],
)
def test_a_refused_file(rig: Rig, make: Callable[[Path], Path], format: str, reason: str, cure: str) -> None:
    """Told at once why, and what to do; the file is only distrusted if no program writes such files."""
    folder = rig.folder / "files"
    folder.mkdir()
    with pytest.raises(errors.UnsafeImage, match=reason) as caught:
        rig.yard.import_image("a", str(make(folder)), format)
    assert cure in caught.value.advice
    assert ("Do not trust" in caught.value.advice) == (cure == LIES)
    assert "run the fix" not in caught.value.advice


def test_what_is_advised_helps(rig: Rig) -> None:
    """A file after its cure is imported, with its bytes."""
    (rig.folder / "files").mkdir()
    path = _with_snapshot(rig.folder / "files")
    run("qemu-img", "snapshot", "-d", "one", str(path))
    image = rig.yard.import_image("a", str(path), "qcow2")
    rig.wait()
    rig.expect("a", image, picture(SIZE, ONE))
    path = _killed(rig.folder / "files")
    run("qemu-img", "check", "-q", "-r", "all", str(path), check=False)
    image = rig.yard.import_image("a", str(path), "qcow2")
    rig.wait()
    rig.expect("a", image, picture(SIZE, ONE))


def test_an_export_to_a_full_file_system(rig: Rig) -> None:
    """Nothing of it is listed as a fix, so none is advised."""
    disk = rig.disk("a", (1, 0, SIZE))
    with mounted(rig.folder / "full", ["mkfs.ext4", "-q"], 4 * MiB) as place:
        task = rig.yard.export_image("a", disk, str(place / "out.raw"), "raw")
        with pytest.raises(errors.NoSpace) as caught:
            rig.yard.wait_for_task(task.task_id, 60)
        assert "export it again" in caught.value.advice
        assert [path.name for path in place.iterdir()] == ["lost+found"]


def test_links_to_block_devices(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Those of root's in /dev are followed, as udev makes them; any other is told what to give."""
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        pytest.skip("a block device needs root and losetup")
    loop = run("losetup", "--find", "--show", str(_raw(rig.folder))).strip()
    # A folder in memory may itself be in /dev.
    link, other = Path("/dev/diskyard-test-link"), tmp_path_factory.mktemp("elsewhere") / "link"
    try:
        link.symlink_to(loop)
        other.symlink_to(loop)
        image = rig.yard.import_image("a", str(link), "raw")
        rig.wait()
        rig.expect("a", image, picture(SIZE, ONE))
        with pytest.raises(errors.UnsafeImage, match="is a link") as caught:
            rig.yard.import_image("a", str(other), "raw")
        assert "device" in caught.value.advice
        with pytest.raises(errors.UnsafeImage, match="block device") as caught:
            rig.yard.import_image("a", loop, "qcow2")
        assert "raw" in caught.value.advice
    finally:
        link.unlink(missing_ok=True)
        run("losetup", "--detach", loop)
