"""The daemon does all its work under the restrictions of the unit that it ships with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diskyard import Diskyard, errors
from diskyard.testing.daemon_process import DaemonProcess
from tests.daemon import unit_sandbox

UNIT = Path(__file__).parents[2] / "packaging" / "diskyard.service"
SIZE = 4 << 20
HALF = SIZE // 2
SLOW_BYTES_PER_S = 256 << 10


def _why_not() -> str | None:
    if os.geteuid() != 0:
        return "mounting needs root"
    done = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True, text=True)
    return None if done.returncode == 0 else f"there are no mount namespaces: {done.stderr.strip()}"


@pytest.fixture
def daemon(quick_folder: Path) -> Iterator[DaemonProcess]:
    if reason := _why_not():
        pytest.skip(reason)
    for name in ("run", "transfer"):
        (quick_folder / name).mkdir()
    sandbox = [sys.executable, unit_sandbox.__file__, str(UNIT), str(quick_folder), "--"]
    with DaemonProcess(
        quick_folder,
        {"transfer": {"folders": [str(quick_folder / "transfer")]}, "tasks": {"resume": True}},
        {"TMPDIR": str(quick_folder / "run")},
        through=["unshare", "--mount", "--propagation", "private", "--", *sandbox],
    ) as started:
        yield started


def _guest(daemon: DaemonProcess, image: str, pattern: int, offset_bytes: int, size_bytes: int) -> None:
    """A guest, which runs outside, writes to a disk."""
    of = {"repositoryId": "A", "imageId": image}
    graph = daemon.call("prepareImage", **of)["blockdev"]
    words = ("qemu-io", "-c", f"write -P {pattern} {offset_bytes} {size_bytes}", "json:" + json.dumps(graph))
    subprocess.run(words, check=True, capture_output=True)
    daemon.call("teardownImage", **of)


def _done(daemon: DaemonProcess, task: Any) -> None:
    ended = daemon.wait_for_task(task["taskId"])
    assert ended["state"] == "done", ended


def _expect(daemon: DaemonProcess, repository: str, image: str, *halves: int) -> None:
    """Both halves of an image, by an export and over NBD."""
    path = daemon.folder / "transfer" / f"{repository}-{image}.qcow2"
    of = {"repositoryId": repository, "imageId": image}
    _done(daemon, daemon.call("exportImage", **of, path=str(path), format="qcow2"))
    raw = path.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(path), str(raw)], check=True)
    wanted = b"".join(bytes([half]) * HALF for half in halves)
    assert raw.read_bytes() == wanted
    served = daemon.call("prepareImage", **of, options={"readOnly": True, "serve": "nbd"})
    uri = str(served["nbdUri"])
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", uri, str(raw)], check=True)
    daemon.call("teardownImage", **of)
    assert raw.read_bytes() == wanted


def test_all_of_the_work(daemon: DaemonProcess) -> None:
    """What the demo does: import, snapshot, copy, a daemon that is killed in a copy, merge, export, serve."""
    status = Path(f"/proc/{daemon.pid}/status").read_text(encoding="utf-8")
    assert "Seccomp:\t2" in status
    for name in "AB":
        daemon.call(
            "createStorageRepository", repoFormat="localfs-1.0", connectionParameters=daemon.place(name)
        )
        daemon.call(
            "connectStorageRepository",
            repoId=name,
            repoFormat="localfs-1.0",
            connectionParameters=daemon.place(name),
        )
    source = daemon.folder / "transfer" / "source.raw"
    source.write_bytes(b"\1" * SIZE)
    disk = daemon.call("importImage", targetRepoId="A", path=str(source), format="raw")
    assert daemon.wait_for_image("A", disk) == "optimized"
    golden = daemon.call("createSnapshot", targetRepoId="A", baseVirtualDiskId=disk)
    web = daemon.call("createVirtualDisk", targetRepoId="A", size=SIZE, baseSnapshotId=golden)
    _guest(daemon, web, 2, 0, HALF)
    monday = daemon.call("copyImage", targetRepoId="B", imageId=disk, options={"as": "snapshot"})
    assert daemon.wait_for_image("B", monday) == "optimized"
    _guest(daemon, disk, 3, HALF, HALF)
    tuesday = daemon.call("copyImage", targetRepoId="B", imageId=disk, baseImageId=monday)
    daemon.wait_for_image("B", tuesday)
    slow = daemon.call("copyImage", targetRepoId="B", imageId=golden, options={"rateLimit": SLOW_BYTES_PER_S})
    daemon.stop(signal.SIGKILL)
    daemon.start()
    middle = daemon.call("createSnapshot", targetRepoId="A", baseVirtualDiskId=web)
    _guest(daemon, web, 4, 0, HALF)
    daemon.call("removeImage", repositoryId="A", imageId=middle, options={"AutoFix": False})
    for fix in daemon.call("checkStorageRepository", repositoryId="A", options={"types": ["merge"]}):
        _done(daemon, daemon.call("fixStorageRepository", repositoryId="A", fix=fix))
    deadline_s = time.monotonic() + 60
    while daemon.wait_for_image("B", slow) != "optimized":  # the daemon goes on with it by itself
        assert time.monotonic() < deadline_s, daemon.log_path.read_text()
        time.sleep(0.1)
    for repository, image, first, second in (
        ("A", disk, 1, 3), ("A", golden, 1, 1), ("A", web, 4, 1),
        ("B", monday, 1, 1), ("B", tuesday, 1, 3), ("B", slow, 1, 1),
    ):  # fmt: skip
        _expect(daemon, repository, image, first, second)
    for name in "AB":
        for fix in daemon.call("checkStorageRepository", repositoryId=name):
            _done(
                daemon, daemon.call("fixStorageRepository", repositoryId=name, fix=fix)
            )  # what the kill left
        assert daemon.call("checkStorageRepository", repositoryId=name, options={"deep": True}) == []


def test_roots_own_command_reaches_what_the_unit_hides(daemon: DaemonProcess, tmp_path: Path) -> None:
    """Files in /tmp, which the daemon has for itself alone: it gets them open, and opens no path."""
    place = daemon.place("A")
    daemon.call("createStorageRepository", repoFormat="localfs-1.0", connectionParameters=place)
    daemon.call("connectStorageRepository", repoId="A", repoFormat="localfs-1.0", connectionParameters=place)
    source, target = tmp_path / "source.qcow2", tmp_path / "target.raw"
    raw = tmp_path / "source.raw"
    raw.write_bytes(os.urandom(SIZE))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(source)], check=True)
    with Diskyard(daemon.url, hands_over=True) as yard:
        image = yard.import_image("A", str(source), "qcow2", options={"rate_limit": 4 * SLOW_BYTES_PER_S})
        daemon.stop(signal.SIGKILL)
        daemon.start()
        # It has lost what it was handed and cannot open the path. It says so; handing it over again helps.
        (fix,) = daemon.call("checkStorageRepository", repositoryId="A", options={"types": ["mend"]})
        assert "cannot be read" in fix["waitsFor"], fix
        with pytest.raises(errors.ImageBroken):
            yard.export_image("A", image, str(target), "raw")
        again = {"new_image_id": image, "rate_limit": 4 * SLOW_BYTES_PER_S}
        assert yard.import_image("A", str(source), "qcow2", options=again) == image
        yard.wait_for_image("A", image)
        yard.export_image("A", image, str(target), "raw")
    assert target.read_bytes() == raw.read_bytes()
