"""What the writing guests have in common: a process of QEMU's, its monitor, and the record of the writes."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from diskyard.testing.running_guest.record import Acknowledged

#: Only what has failed takes so long, on any machine.
AT_MOST_S = 120.0
_POLL_S = 0.005
_SOCKET_PATH_MOST_BYTES = 107


def option_value(path: Path) -> str:
    """A path as a value among QEMU's options."""
    return str(path).replace(",", ",,")


class RunningGuest(ABC):
    """A guest that writes numbered blocks to all its disks in turn; a context manager.

    When the context is entered, the guest has had its first write acknowledged. When it is left, the guest
    is killed, if it has not ended. It is also killed with the thread that entered the context, so that
    nothing is left of a test that was killed.

    :param folder: a folder of its own, which it makes if need be.
    :param graphs: for each disk its blockdev, as ``prepareImage`` returned it.
    :param after: the number after which it begins, for disks that already hold the writes up to there:
        :meth:`acknowledged` of the guest that wrote them, or what :func:`judge` said.
    :param first_sizes_bytes: the sizes that the disks had when a guest first wrote to them, if they have been
        extended since.
    :param gap_ms: how long it rests after each write.
    :param user: of this machine, as whom QEMU runs; the folder becomes theirs, and the disks have to be.
    :ivar monitor: the path of its QMP socket, which serves one client at a time. It uses none itself.
    """

    def __init__(
        self,
        folder: Path,
        graphs: Sequence[Mapping[str, object]],
        *,
        after: int = 0,
        first_sizes_bytes: Sequence[int] | None = None,
        gap_ms: float = 1.0,
        user: str | None = None,
    ) -> None:
        self.folder, self.monitor = folder, folder / "monitor"
        self._graphs = [{"node-name": f"disk{index}", **graph} for index, graph in enumerate(graphs)]
        self._after, self._gap_ms, self._user = after, gap_ms, user
        self._first_sizes_bytes = list(first_sizes_bytes or [0] * len(graphs))
        self._record_path = folder / "acknowledged"
        self._record = Acknowledged(self._record_path, after)
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        assert len(os.fsencode(self.monitor)) <= _SOCKET_PATH_MOST_BYTES, f"too long a path: {self.monitor}"
        for path in (self.monitor, self._record_path):
            path.unlink(missing_ok=True)
        try:
            self._start()
            self.wait_for(1)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    # -- what differs ------------------------------------------------------------------

    @abstractmethod
    def _start(self) -> None:
        """Start QEMU with :meth:`_start_program`, and what writes."""

    @abstractmethod
    def _stop_writing(self) -> None:
        """Let what writes end by itself, if it can be told to; it may be waiting for a disk."""

    @abstractmethod
    def _after_the_end(self) -> None:
        """QEMU has ended, or was never started: what writes ends too."""

    # -- the process -------------------------------------------------------------------

    def _start_program(self, words: Sequence[str]) -> None:
        as_user: list[str] = []
        if self._user is not None:
            who = pwd.getpwnam(self._user)
            as_user = [f"--reuid={who.pw_uid}", f"--regid={who.pw_gid}", "--clear-groups"]
        self._child = self._popen([*as_user, *words], "output", stdin=subprocess.DEVNULL)
        self._wait_until(self.monitor.exists, "has no monitor")

    def _popen(self, words: Sequence[str], output: str, stdin: int) -> subprocess.Popen[bytes]:
        with (self.folder / output).open("wb") as file:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *words], stdin=stdin, stdout=file, stderr=subprocess.STDOUT
            )

    def _wait_until(self, happens: Callable[[], bool], otherwise: str, timeout_s: float = AT_MOST_S) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not happens():
            assert self.is_alive(), f"the guest has ended: {self._last_words()}"
            assert time.monotonic() < deadline_s, f"the guest {otherwise}: {self._last_words()}"
            time.sleep(_POLL_S)

    def _last_words(self) -> str:
        words = [f"write {self.acknowledged()} was the last"]
        if self._child is not None and self._child.returncode is not None:
            words.append(f"exit status {self._child.returncode}")
        for path in sorted(self.folder.glob("*output")):
            words.append(path.read_bytes()[-2000:].decode(errors="replace").strip())
        return "; ".join(filter(None, words + self.errors()[-3:]))

    @property
    def pid(self) -> int:
        """The process id of QEMU, which has the disks open and the monitor."""
        assert self._child is not None, "the guest has not been started"
        return self._child.pid

    def is_alive(self) -> bool:
        """Whether QEMU runs. If it ends before :meth:`kill` or :meth:`end`, it has crashed."""
        return self._child is not None and self._child.poll() is None

    # -- what it has written -----------------------------------------------------------

    def acknowledged(self) -> int:
        """The number of the last write that every disk has acknowledged as durable."""
        return self._record.last()

    def wait_for(self, more: int, timeout_s: float = AT_MOST_S) -> int:
        """Until so many more writes are acknowledged; return the number of the last.

        :raises AssertionError: the guest has ended, or its I/O stands still for too long.
        """
        wanted = self.acknowledged() + more
        self._wait_until(lambda: self.acknowledged() >= wanted, f"does not get to write {wanted}", timeout_s)
        return self.acknowledged()

    def pause_longest_ms(self, since: int) -> float:
        """How long the longest turn took of those acknowledged after a write; see :class:`Acknowledged`."""
        return self._record.pause_longest_ms(since)

    def errors(self) -> list[str]:
        """I/O errors that it was told of, and wrong data that it has read. There should be none."""
        return self._record.errors()

    def sizes_bytes(self) -> list[int]:
        """The sizes of its disks, as it sees them."""
        return self._record.sizes_bytes()

    # -- its end -----------------------------------------------------------------------

    def kill(self) -> int:
        """Kill QEMU, at once. Return the number of the last write that was acknowledged."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._after_the_end()
        return self.acknowledged()

    def end(self) -> int:
        """End as a guest does that is shut down: it writes no more, QEMU flushes and closes everything.

        The monitor is not used for it, as Diskyard may be connected.

        :returns: the number of the last write that was acknowledged.
        :raises AssertionError: QEMU does not end, or ends with an error.
        """
        assert self._child is not None, "the guest has not been started"
        self._stop_writing()
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(signal.SIGTERM)
        try:
            status = self._child.wait(AT_MOST_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the guest does not end: {self._last_words()}") from None
        self._after_the_end()
        assert not status, f"the guest has not ended well: {self._last_words()}"
        return self.acknowledged()
