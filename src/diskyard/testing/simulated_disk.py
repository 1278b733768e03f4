"""A disk in memory, mounted, that records all changes to it and all syncs.

The file system is served by a process of its own, so that those who use it, QEMU's programs
among them, can wait for it. It needs root and ``/dev/fuse``.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from diskyard.testing.forking import FORKING
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
    ours, theirs = FORKING.Pipe()
    server = FORKING.Process(target=_serve, args=(str(folder), str(mount), str(journal), theirs))
    server.start()
    theirs.close()
    try:
        with ours:  # its end ends the server
            assert _is_mounted(ours), "the simulated disk was not mounted"
            yield
    finally:
        server.join(_ENDS_WITHIN_S)
        server.kill()
        server.join()
    assert server.exitcode == 0, "the simulated disk did not end well"


def _is_mounted(pipe: Connection) -> bool:
    try:
        return bool(pipe.recv())
    except EOFError:
        return False


def read_journal(path: Path) -> list[Record]:
    """The journal of a disk that was unmounted."""
    return msgspec.msgpack.decode(path.read_bytes(), type=list[Record])


def _unmount_at_end(mount: str, pipe: Connection, unmounted: int) -> None:
    """Who started this is done, or dead: nothing stays mounted, be it still in use.

    :param unmounted: the end of a pipe for writing, which is closed once nobody uses it any more.
    """
    with suppress(EOFError):
        pipe.recv()
    plain = subprocess.run(["umount", mount], capture_output=True, check=False)
    if plain.returncode:
        subprocess.run(["umount", "--lazy", mount], check=True)
    else:
        os.close(unmounted)


def _serve(folder: str, mount: str, journal: str, pipe: Connection) -> None:
    """Mount what is in a folder, and once it is unmounted write the journal to a file."""
    files = SimulatedFiles.loaded(Path(folder))
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,default_permissions"
    words = ["mount", "-i", "-t", "fuse", "-o", options, "diskyard-simulated-disk", mount]
    subprocess.run(words, check=True, pass_fds=[descriptor])
    unmounted, end = os.pipe()
    threading.Thread(target=_unmount_at_end, args=(mount, pipe, end), daemon=True).start()
    pipe.send(True)
    serve(descriptor, files, unmounted)
    Path(journal).write_bytes(msgspec.msgpack.encode(files.journal))
