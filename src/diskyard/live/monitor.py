"""One conversation with the QEMU of a running guest, over the monitor that is meant for Diskyard."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

from diskyard import errors
from diskyard.host import Host
from diskyard.host.sockets import connect_unix, peer_process_id
from diskyard.live.process import Process, process_with
from diskyard.mover.qemu.failures import brief, expected

if TYPE_CHECKING:
    from diskyard.mover.qemu.connection import QmpConnection

GREETING_TIMEOUT_S = 2.0
COMMAND_TIMEOUT_S = 60.0
_OLDEST = (7, 2)
_NEEDED = "x-debug-query-block-graph"


class NobodyAnswers(errors.StorageError):
    """Nobody listens at a monitor's path: the guest has ended, or was never started with this monitor.

    It is no proof that the guest has ended: somebody may have removed the socket's name. Every other error
    of a monitor leaves open whether anybody is there. To callers of verbs it is a StorageError.
    """

    @property
    def code(self) -> str:
        """That of a StorageError."""
        return errors.StorageError.__name__


class _Numbers(msgspec.Struct):
    major: int
    minor: int


class _Version(msgspec.Struct):
    qemu: _Numbers


class _Command(msgspec.Struct):
    name: str


class Monitor:
    """A connection to a QMP monitor of a running QEMU; a context manager, used by one thread.

    QEMU serves one client of a monitor at a time, so nobody else can use it until this context ends.

    :param address: the path of the Unix socket (``-qmp unix:PATH,server=on,wait=off``).
    :param greeting_timeout_s: how long to wait until QEMU serves this client.
    :param timeout_s: how long each command may take.
    :raises NobodyAnswers: nobody listens there.
    :raises diskyard.errors.LeaseHeld: QEMU does not greet in time: another client has the monitor.
    :raises diskyard.errors.Unsupported: this QEMU is older than 7.2, or cannot show its block graph.
    :raises diskyard.errors.StorageError: it cannot be reached, who answers is no QEMU, or its process cannot
        be told.
    """

    def __init__(
        self,
        host: Host,
        address: str,
        *,
        greeting_timeout_s: float = GREETING_TIMEOUT_S,
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> None:
        self.host = host
        self._address = address
        self._greeting_timeout_s = greeting_timeout_s
        self._timeout_s = timeout_s
        self._connection: QmpConnection | None = None
        self._process: Process | None = None
        self._commands: frozenset[str] = frozenset()

    def __enter__(self) -> Self:
        # Not at the top: asyncio is slow to import, and most work is not about a running guest.
        from diskyard.mover.qemu.connection import QmpConnection

        self._connection = QmpConnection(self.host, timeout_s=self._timeout_s, unanswered=self._unanswered)
        try:
            self._open(self._connection)
            self._check()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @property
    def process(self) -> Process:
        """The process that listens at the socket."""
        if self._process is None:
            raise errors.InternalError("A monitor is used outside of its context.")
        return self._process

    def offers(self, name: str) -> bool:
        """Whether this program has a command."""
        return name in self._commands

    def command(self, name: str, arguments: Mapping[str, object] | None = None, *, doing: str) -> object:
        """Execute one QMP command and return its answer.

        :param doing: for the error, as in "switching a disk".
        :raises diskyard.errors.StorageError: QEMU refused it, and has changed nothing; or a query got no
            answer.
        :raises diskyard.errors.NoSpace: QEMU refused it, as the storage is full.
        :raises diskyard.errors.LeaseHeld: QEMU refused it, as a job or another program has what it needs.
        :raises diskyard.errors.UnknownOutcome: a command that changes something got no answer. It may have
            taken effect, or may still do so: nothing may be undone before QEMU has been asked how things
            stand.
        """
        if self._connection is None:
            raise errors.InternalError("A monitor is used outside of its context.")
        return self._connection.command(name, arguments, doing=doing)

    # -- the beginning ------------------------------------------------------------------

    def _open(self, connection: QmpConnection) -> None:
        from diskyard.mover.qemu.connection import CONNECTION_ERRORS

        try:
            with self.host.commands.asking("qmp connect"):
                connected = self._connect()
                pid = peer_process_id(connected)
                connection.open(connected, greeting_timeout_s=self._greeting_timeout_s)
        except TimeoutError as error:
            raise self._taken() from error
        except CONNECTION_ERRORS as error:
            raise errors.StorageError(
                f"What answers at {self._address} is no monitor of QEMU's: {_words(error)}.",
                advice="Check which program listens there, and that the guest was started with this monitor.",
            ) from error
        # Only now: the process has answered, so its number has not become another's.
        self._process = process_with(self.host, pid)
        if self._process is None:
            raise errors.StorageError(
                f"The process at the monitor {self._address} cannot be told.",
                advice="Run Diskyard where it sees the guest's process: in the same PID namespace, with a "
                "/proc that shows it.",
            )

    def _connect(self) -> socket.socket:
        try:
            return connect_unix(self._address)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NobodyAnswers(
                f"Nobody answers at the monitor {self._address}.",
                advice="Start the guest with this monitor. If it has ended, tear its attachment down.",
            ) from error
        except BlockingIOError as error:
            raise self._taken() from error
        except OSError as error:
            if error.errno is None:
                raise errors.StorageError(
                    f"The monitor {self._address} cannot be reached: {error}.",
                    advice="A socket's path has at most 107 bytes: start the guest with a shorter one.",
                ) from error
            raise errors.StorageError(
                f"The monitor {self._address} cannot be reached: {error.strerror}.",
                advice="Run Diskyard as a user who may enter the folder and write to the socket."
                if error.errno in (errno.EACCES, errno.EPERM)
                else "Check the path of the guest's monitor.",
            ) from error

    def _taken(self) -> errors.LeaseHeld:
        return errors.LeaseHeld(
            f"Another client has the monitor {self._address}: QEMU did not greet this one.",
            advice="Give Diskyard a monitor of its own. If it has, another of its tasks uses it, or QEMU "
            "hangs: try again later.",
        )

    def _check(self) -> None:
        doing = "opening the guest's monitor"
        version = expected(self.command("query-version", doing=doing), _Version, doing).qemu
        if (version.major, version.minor) < _OLDEST:
            raise errors.Unsupported(
                f"The guest's QEMU is version {version.major}.{version.minor}.",
                advice="Its disks can be changed while it runs with QEMU 7.2 or newer.",
            )
        # Not query-qmp-schema: it has 200 KiB, and the guest may stand still while QEMU makes it.
        commands = expected(self.command("query-commands", doing=doing), list[_Command], doing)
        self._commands = frozenset(command.name for command in commands)
        if not self.offers(_NEEDED):
            raise errors.Unsupported(
                f"The guest's QEMU does not have the command {_NEEDED}.",
                advice="Its disks can be changed while it runs with a QEMU that has it, as Debian's does.",
            )

    def _unanswered(self, error: Exception, name: str, doing: str) -> errors.DiskyardError:
        from diskyard.mover.qemu.connection import only_asks

        if isinstance(error, TimeoutError):
            said = f"The guest's QEMU did not answer within {self._timeout_s:g} seconds while {doing}."
            advice = "The guest's storage hangs, or the host is too busy. Check both, then try again."
        else:
            said = f"The guest's QEMU ended the conversation while {doing}: {_words(error)}."
            advice = "Check whether the guest still runs, then try again."
        kind: type[errors.DiskyardError] = errors.StorageError
        if not only_asks(name) and name != "qmp_capabilities":
            kind = errors.unknown_outcome(kind)
            advice += " It may have been done, or may still be done: look at the disk before repeating it."
        return kind(said, advice=advice)


def _words(error: Exception) -> str:
    return brief(str(error)) or type(error).__name__
