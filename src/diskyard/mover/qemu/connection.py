"""One QMP connection over a socket, while the caller needs no event loop.

The protocol is `qemu.qmp`'s. This module has the time-outs, and the translation of every way in which
the other end can fail into one of Diskyard's errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import TypeVar

from qemu.qmp import QMPClient, QMPError
from qemu.qmp.error import ProtocolError
from qemu.qmp.message import Message
from qemu.qmp.qmp_client import ExecuteError

from diskyard import errors
from diskyard.host import Host
from diskyard.mover.qemu.failures import failure

# A program's death is reported once, by the error raised here; qemu.qmp would log it too.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())
logging.getLogger("qemu.qmp").propagate = False

_T = TypeVar("_T")
_CLOSE_TIMEOUT_S = 5.0
#: How a connection fails. The last is for an answer that is nested too deep to be read.
CONNECTION_ERRORS = (QMPError, OSError, EOFError, TimeoutError, ValueError, RecursionError)

Unanswered = Callable[[Exception, str, str], errors.DiskyardError]
"""Makes the error for a command without an answer, of: what was raised (a :class:`TimeoutError`, or what
ended the connection), the command's name, and what was being done."""


class _PlainClient(QMPClient):
    """A client that writes no log and keeps no events: nobody reads either.

    To write out every message for a log, before anyone is asked who wants it, was a quarter of the
    processor's work of a merge.
    """

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        if not isinstance(msg.get("id", ""), str):
            raise ProtocolError("The id of an answer is no text.")
        return msg

    async def _event_dispatch(self, msg: Message) -> None:
        return None


def only_asks(name: str) -> bool:
    """Whether a QMP command of this name changes nothing."""
    return name.startswith(("query-", "x-debug-query-"))


class QmpConnection:
    """A QMP connection, for the thread that made it. The one who made it calls :meth:`close` in the end.

    An answer may have 10 MiB; a longer one ends the connection.

    :param timeout_s: how long each command may take before the other end counts as hung.
    :param unanswered: makes the error for a command that was not answered.
    :ivar is_open: whether :meth:`open` has succeeded.
    :ivar has_failed: whether a command was not answered.
    """

    def __init__(self, host: Host, *, timeout_s: float, unanswered: Unanswered) -> None:
        self.timeout_s = min(timeout_s, host.commands.timeout_most_s)
        self.is_open = False
        self.has_failed = False
        self._commands = host.commands
        self._unanswered = unanswered
        self._loop = asyncio.new_event_loop()
        self._client = _PlainClient("diskyard")

    def open(self, connected: socket.socket, *, greeting_timeout_s: float | None = None) -> None:
        """Wait for the greeting and begin. The socket is this object's from now on.

        :param greeting_timeout_s: how long to wait for the greeting alone; the rest of the beginning is then
            a command like any other. By default all of it has the time of one command.
        :raises TimeoutError: there was no greeting in time.
        :raises Exception: another of :data:`CONNECTION_ERRORS`: what came was no greeting, or the connection
            ended.
        :raises diskyard.errors.DiskyardError: after the greeting, as for a command.
        """
        self._client.negotiate = greeting_timeout_s is None
        try:
            self._wait(self._client.connect(connected), greeting_timeout_s or self.timeout_s)
        except BaseException:
            connected.close()
            raise
        if not self._client.negotiate:
            name, doing = "qmp_capabilities", "opening QEMU's monitor"
            with self._translated(name, doing):
                self._wait(self._client.execute(name), self.timeout_s)
        self.is_open = True

    def command(self, name: str, arguments: Mapping[str, object] | None = None, *, doing: str) -> object:
        """Execute one QMP command and return its answer.

        :param doing: for the error, as in "opening a volume".
        :raises diskyard.errors.StorageError: QEMU refused it.
        :raises diskyard.errors.NoSpace: QEMU's words say that the storage is full.
        :raises diskyard.errors.LeaseHeld: QEMU's words say that somebody else has the file open, or that a
            block job has the node.
        :raises diskyard.errors.DiskyardError: what ``unanswered`` made.
        """
        with self._translated(name, doing), self._telling(name):
            answer: object = self._wait(self._client.execute(name, dict(arguments or {})), self.timeout_s)
        return answer

    @contextlib.contextmanager
    def _translated(self, name: str, doing: str) -> Iterator[None]:
        """A context in which a command is executed; what the door raises instead of it is translated too."""
        try:
            yield
        except ExecuteError as error:
            raise failure(str(error), doing) from error
        except CONNECTION_ERRORS as error:
            self.has_failed = True
            raise self._unanswered(error, name, doing) from error

    def quit(self, timeout_s: float) -> bool:
        """Tell the program to end. Return False if it refuses."""
        try:
            with self._telling("quit"):
                self._wait(self._client.execute("quit"), timeout_s)
        except ExecuteError:
            return False
        except CONNECTION_ERRORS:
            return True  # it may have ended before it sent its answer
        return True

    def close(self) -> None:
        """Close the connection. It may be broken, or never have been opened."""
        with contextlib.suppress(*CONNECTION_ERRORS):
            self._wait(self._client.disconnect(), _CLOSE_TIMEOUT_S)
        # After an error the socket is closed only in the loop's next turn.
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def _telling(self, name: str) -> contextlib.AbstractContextManager[None]:
        """The door for a command."""
        what = f"qmp {name}"
        return self._commands.asking(what) if only_asks(name) else self._commands.telling(what)

    def _wait(self, work: Coroutine[object, object, _T], timeout_s: float) -> _T:
        return self._loop.run_until_complete(asyncio.wait_for(work, timeout_s))
