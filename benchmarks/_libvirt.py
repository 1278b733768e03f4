"""libvirt beside us, where it is installed (Debian: libvirt-clients, libvirt-daemon-system).

A daemon that runs is used; as root, one is started where none does, and ended again.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks._processes import Failed, run

MISSING = "virsh: libvirt is not installed, or not running (Debian: libvirt-clients, libvirt-daemon-system)"
_START_MOST_S = 20.0
_LOOK_S = 0.1
_READ_BYTES = 4096
_DAEMON = "/usr/sbin/libvirtd"


class Libvirt:
    """The words of virsh for this user's libvirt."""

    def __init__(self) -> None:
        scope = "system" if os.geteuid() == 0 else "session"
        self.storage = ("virsh", "-q", "-c", f"storage:///{scope}")
        self.guests = ("virsh", "-q", "-c", f"qemu:///{scope}")

    def answers(self) -> bool:
        """Whether there is one."""
        try:
            run(*self.storage, "pool-list")
        except (FileNotFoundError, Failed):
            return False
        return True

    @contextmanager
    def pool(self, folder: Path) -> Iterator[str]:
        """A pool of what is in a folder, which libvirt knows meanwhile."""
        name = f"diskyard-benchmark-{os.getpid()}"
        folder.mkdir(exist_ok=True)
        run(*self.storage, "pool-create-as", name, "dir", "--target", str(folder))
        try:
            yield name
        finally:
            run(*self.storage, "pool-destroy", name)


class Shell:
    """A virsh that has connected and takes one command after another, as a program with the library does."""

    def __init__(self, found: Libvirt) -> None:
        # To a pipe, virsh would keep what it says to itself until there is a lot of it.
        self._process = subprocess.Popen(
            ["stdbuf", "-o0", *found.storage],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        self._said = 0

    def __enter__(self) -> Self:
        self.run("pool-list")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def run(self, *words: str) -> None:
        """One command, to its end.

        :raises Failed: it said that something is wrong.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._said += 1
        # It repeats each command behind a prompt; only what it says begins a line.
        end, said = f"\nsaid-{self._said}".encode(), b""
        self._process.stdin.write(f"{' '.join(words)}\necho said-{self._said}\n".encode())
        while end not in said:
            more = self._process.stdout.read(_READ_BYTES)
            if not more or b"error:" in said:
                raise Failed(f"virsh {' '.join(words)}: {said.decode(errors='replace')}")
            said += more


@contextmanager
def libvirt() -> Iterator[Libvirt | None]:
    """libvirt, or None where it cannot be had."""
    found = Libvirt()
    if found.answers():
        yield found
        return
    if os.geteuid() != 0 or not os.path.exists(_DAEMON):
        yield None
        return
    daemon = subprocess.Popen([_DAEMON], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + _START_MOST_S
        while not (answers := found.answers()) and time.monotonic() < deadline_s:
            time.sleep(_LOOK_S)
        yield found if answers else None
    finally:
        daemon.terminate()
        daemon.wait()
