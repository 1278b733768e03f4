"""Whether QEMU has a file open for writing, asked of QEMU's own locks: with the real programs."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from diskyard.host import Host
from tests.live_qemu import LiveQemu

FORMATS = ("raw", "qcow2")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder whose name leaves room for that of a socket."""
    with tempfile.TemporaryDirectory(prefix="dy-") as folder:
        yield Path(folder)


def _image(place: Path, format: str) -> Path:
    path = place / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", format, str(path), "8M"], check=True)
    return path


def _written(path: Path) -> bool:
    """By its name and as an open file, which must be the same."""
    files = Host.real().files
    by_name = files.name_is_written_by_qemu(str(path))
    for flags in (os.O_RDONLY, os.O_RDWR):
        fd = os.open(path, flags)
        try:
            assert files.is_written_by_qemu(fd) == by_name
        finally:
            os.close(fd)
    return by_name


@contextmanager
def _serving(place: Path, export: str, *words: str) -> Iterator[None]:
    """A program that serves, once it has answered a client: until then it may not have opened the file."""
    with subprocess.Popen(words, stderr=subprocess.PIPE) as child:
        try:
            deadline_s = time.monotonic() + 60
            while not (place / "socket").exists():
                assert child.poll() is None, child.communicate()
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            uri = f"nbd+unix:///{export}?socket={place / 'socket'}"
            subprocess.run(["qemu-img", "info", uri], check=True, stdout=subprocess.DEVNULL)
            yield
        finally:
            child.kill()  # qemu-nbd does not hear a SIGTERM that comes just after its socket
            child.communicate()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("read_only", [False, True])
def test_qemu_io(place: Path, format: str, read_only: bool) -> None:
    """Who writes is seen from its opening to its end; a reader never is."""
    path = _image(place, format)
    assert not _written(path)
    with LiveQemu(path, format, read_only=read_only):
        assert _written(path) != read_only
    assert not _written(path)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("read_only", [False, True])
def test_qemu_nbd(place: Path, format: str, read_only: bool) -> None:
    path = _image(place, format)
    mode = ["-r"] if read_only else []
    words = ("qemu-nbd", *mode, "-f", format, "-t", "-k", str(place / "socket"), str(path))
    with _serving(place, "", *words):
        assert _written(path) != read_only


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("read_only", [False, True])
def test_qemu_storage_daemon(place: Path, format: str, read_only: bool) -> None:
    path = _image(place, format)
    mode = "on" if read_only else "off"
    words = (
        "qemu-storage-daemon",
        "--blockdev", f"driver=file,filename={path},node-name=f,read-only={mode}",
        "--blockdev", f"driver={format},file=f,node-name=q,read-only={mode}",
        "--nbd-server", f"addr.type=unix,addr.path={place / 'socket'}",
        "--export", f"type=nbd,id=e,node-name=q,writable={'off' if read_only else 'on'}",
    )  # fmt: skip
    with _serving(place, "q", *words):
        assert _written(path) != read_only


def test_a_backing_file_of_a_writer_is_read(place: Path) -> None:
    """Only what a guest writes to is written; what is below is everybody's to read."""
    base = _image(place, "raw")
    top = place / "top"
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(top)]
    subprocess.run(words, check=True)
    with LiveQemu(top, "qcow2"):
        assert _written(top)
        assert not _written(base)


def test_what_is_no_file(place: Path) -> None:
    """It is not waited for, and nobody writes an image in it."""
    fifo = place / "fifo"
    os.mkfifo(fifo)
    files = Host.real().files
    assert not files.name_is_written_by_qemu(str(fifo))
    assert not files.name_is_written_by_qemu(str(place))
    assert not files.name_is_written_by_qemu(str(place / "missing"))
