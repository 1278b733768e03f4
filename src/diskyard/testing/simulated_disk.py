"""A disk in memory, mounted, that records all changes to it and all syncs.

A process of its own serves the file system, so that the programs that use it, QEMU's among them,
can wait for it::

    python -m diskyard.testing.simulated_disk FOLDER MOUNT JOURNAL

mounts what is in FOLDER on MOUNT. When it is unmounted, it writes the journal to the file JOURNAL.
It needs root and ``/dev/fuse``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from diskyard.testing.fuse_protocol import serve
from diskyard.testing.simulated_files import Record, SimulatedFiles

_ENDS_WITHIN_S = 30.0


def why_not() -> str | None:
    """Why a disk cannot be simulated here; None if it can."""
    if os.geteuid() != 0:
        return "mounting a simulated disk needs root"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "a simulated disk needs /dev/fuse"
    return None


@contextmanager
def mounted(folder: Path, mount: Path, journal: Path) -> Iterator[None]:
    """Have a disk with what is in ``folder`` on ``mount``; afterwards its journal is in a file.

    In any case it is unmounted in the end, and its process has ended.
    """
    words = [sys.executable, "-m", __name__, str(folder), str(mount), str(journal)]
    server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"mounted\n", "the simulated disk was not mounted"
        yield
    finally:
        try:
            server.communicate(timeout=_ENDS_WITHIN_S)  # it ends when its input ends
        finally:
            server.kill()
            server.wait()
    assert server.returncode == 0, "the simulated disk did not end well"


def read_journal(path: Path) -> list[Record]:
    """The journal of a disk that was unmounted."""
    return msgspec.msgpack.decode(path.read_bytes(), type=list[Record])


def _unmount_at_end_of_input(mount: str) -> None:
    """Unmount when the starting process is done or dead, even if the disk is still in use."""
    sys.stdin.read()
    plain = subprocess.run(["umount", mount], capture_output=True, check=False)
    if plain.returncode:
        subprocess.run(["umount", "--lazy", mount], check=True)


def _main(folder: str, mount: str, journal: str) -> None:
    files = SimulatedFiles.loaded(Path(folder))
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,default_permissions"
    words = ["mount", "-i", "-t", "fuse", "-o", options, "diskyard-simulated-disk", mount]
    subprocess.run(words, check=True, pass_fds=[descriptor])
    sys.stdout.write("mounted\n")
    sys.stdout.flush()
    threading.Thread(target=_unmount_at_end_of_input, args=(mount,), daemon=True).start()
    serve(descriptor, files)
    Path(journal).write_bytes(msgspec.msgpack.encode(files.journal))


if __name__ == "__main__":
    _main(*sys.argv[1:])
