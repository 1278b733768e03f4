"""One child process that speaks QMP over a socket pair, while the caller needs no event loop.

The protocol is `qemu.qmp`'s. This module has the child's start and end, the time-outs, and the
translation of every way in which the child can fail into one of Diskyard's errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Coroutine, Mapping, Sequence
from typing import TypeVar

from qemu.qmp import QMPClient, QMPError
from qemu.qmp.message import Message
from qemu.qmp.qmp_client import ExecuteError

from diskyard import errors
from diskyard.host import Host, Limits
from diskyard.mover.qemu.failures import failure

# A daemon's death is reported once, by the error raised here; qemu.qmp would log it too.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())
logging.getLogger("qemu.qmp").propagate = False

_T = TypeVar("_T")
_QUIT_TIMEOUT_S = 5.0
_CONNECTION_ERRORS = (QMPError, OSError, EOFError, TimeoutError, ValueError)

# Glibc gives freed buffers back to the kernel and faults them in again for each request. If it keeps
# them, an NBD stream rises from 0.9 to 2.7 GiB/s.
_ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.top_pad=67108864"
    ":glibc.malloc.trim_threshold=536870912"
    ":glibc.malloc.mmap_threshold=33554432"
}


class _UnloggedClient(QMPClient):
    """A client that does not write every message out for a log that nobody reads.

    That, done for each before anyone is asked who wants it, was a quarter of the processor's work of a merge.
    """

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


class QmpChild:
    """A running program and its QMP connection, for the thread that made it.

    :param words: the command line; ``{fd}`` in a word is replaced by the socket's descriptor.
    :param timeout_s: how long each command may take before the child counts as hung.
    """

    def __init__(
        self,
        host: Host,
        words: Sequence[str],
        *,
        inherit_fds: Sequence[int],
        limits: Limits | None,
        timeout_s: float,
    ) -> None:
        self._host = host
        self._timeout_s = min(timeout_s, host.commands.timeout_most_s)
        self._loop = asyncio.new_event_loop()
        self._client = _UnloggedClient("diskyard")
        self._connected = False
        self._failed = False
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._child = host.commands.start(
                    [word.replace("{fd}", str(theirs.fileno())) for word in words],
                    limits=limits,
                    inherit_fds=(*inherit_fds, theirs.fileno()),
                    environment=None if limits else _ENVIRONMENT,
                )
        except BaseException:
            ours.close()
            self._loop.close()
            raise
        self._connect(ours)

    def _connect(self, ours: socket.socket) -> None:
        try:
            self._wait(self._client.connect(ours), self._timeout_s)
        except _CONNECTION_ERRORS as error:
            ours.close()
            words = self._last_words(error)
            self.end()
            raise errors.StorageError(
                f"qemu-storage-daemon did not start: {words}.",
                advice="Check that the host has memory left, and that 'qemu-storage-daemon --version' works.",
            ) from error
        except BaseException:
            ours.close()
            self.end()
            raise
        self._connected = True

    def command(self, name: str, arguments: Mapping[str, object] | None = None, *, doing: str) -> object:
        """Execute one QMP command and return its answer.

        :param doing: for the error, as in "opening a volume".
        :raises diskyard.errors.StorageError: QEMU refused it, died, or did not answer in time.
        :raises diskyard.errors.NoSpace: QEMU's words say that the storage is full.
        """
        try:
            with self._telling(name):
                request = self._client.execute(name, dict(arguments or {}))
                answer: object = self._wait(request, self._timeout_s)
        except ExecuteError as error:
            raise failure(str(error), doing) from error
        except TimeoutError as error:
            self._failed = True
            raise errors.StorageError(
                f"QEMU did not answer within {self._timeout_s:g} seconds while {doing}.",
                advice="The storage hangs, or the host is too busy. Check both, then try again; "
                "checkStorageRepository lists the work that was begun.",
            ) from error
        except _CONNECTION_ERRORS as error:
            self._failed = True
            words = self._last_words(error)
            raise errors.StorageError(
                f"qemu-storage-daemon died while {doing}: {words}.",
                advice="Check the kernel's log: it may have been killed for lack of memory. Then try again; "
                "checkStorageRepository lists the work that was begun.",
            ) from error
        return answer

    def end(self, *, gently: bool = True) -> bool:
        """End the child, flushing what it has open if ``gently``. Nothing is left running.

        :returns: whether it ended by itself, with everything flushed.
        """
        ended = False
        if gently and self._connected and not self._failed and self._quit():
            ended = self._host.commands.wait(self._child, self._timeout_s) and not self._child.returncode
        if self._child.poll() is None:
            self._child.kill()
        self._host.commands.stop(self._child)
        with contextlib.suppress(*_CONNECTION_ERRORS):
            self._wait(self._client.disconnect(), _QUIT_TIMEOUT_S)
        # After an error the socket is closed only in the loop's next turn.
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()
        return ended

    def _quit(self) -> bool:
        """Tell the child to quit. Return False if it refuses."""
        try:
            with self._telling("quit"):
                self._wait(self._client.execute("quit"), _QUIT_TIMEOUT_S)
        except ExecuteError:
            return False
        except _CONNECTION_ERRORS:
            return True  # it may have ended before it sent its answer
        return True

    def _telling(self, name: str) -> contextlib.AbstractContextManager[None]:
        """The door for a command: queries change nothing."""
        commands = self._host.commands
        return (
            commands.asking(f"qmp {name}") if name.startswith("query-") else commands.telling(f"qmp {name}")
        )

    def _wait(self, work: Coroutine[object, object, _T], timeout_s: float) -> _T:
        return self._loop.run_until_complete(asyncio.wait_for(work, timeout_s))

    def _last_words(self, error: BaseException) -> str:
        """The output of a dying child, or else the error itself."""
        if not self._host.commands.wait(self._child, 1.0):
            return str(error) or type(error).__name__
        stderr = self._child.stderr
        printed = stderr.read(4096).decode(errors="replace").strip() if stderr else ""
        return printed or str(error) or f"exit status {self._child.returncode}"
