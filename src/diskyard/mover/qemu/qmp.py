"""One child process that speaks QMP over a socket pair: its start, its end, and its last words."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from diskyard import errors
from diskyard.host import Host, Limits
from diskyard.mover.qemu.connection import CONNECTION_ERRORS, QmpConnection

_QUIT_TIMEOUT_S = 5.0

# Glibc gives freed buffers back to the kernel and faults them in again for each request. If it keeps
# them, an NBD stream rises from 0.9 to 2.7 GiB/s.
_ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.top_pad=67108864"
    ":glibc.malloc.trim_threshold=536870912"
    ":glibc.malloc.mmap_threshold=33554432"
}


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
        self._connection = QmpConnection(host, timeout_s=timeout_s, unanswered=self._unanswered)
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
            self._connection.close()
            raise
        self._connect(ours)

    def _connect(self, ours: socket.socket) -> None:
        try:
            self._connection.open(ours)
        except CONNECTION_ERRORS as error:
            refused = self._did_not_start(error)
            self.end()
            raise refused from error
        except BaseException:
            self.end()
            raise

    def command(self, name: str, arguments: Mapping[str, object] | None = None, *, doing: str) -> object:
        """Execute one QMP command and return its answer.

        :param doing: for the error, as in "opening a volume".
        :raises diskyard.errors.StorageError: QEMU refused it, died, or did not answer in time.
        :raises diskyard.errors.NoSpace: QEMU's words say that the storage is full.
        """
        return self._connection.command(name, arguments, doing=doing)

    def end(self, *, gently: bool = True) -> bool:
        """End the child, flushing what it has open if ``gently``. Nothing is left running.

        :returns: whether it ended by itself, with everything flushed.
        """
        ended, connection = False, self._connection
        if gently and connection.is_open and not connection.has_failed and connection.quit(_QUIT_TIMEOUT_S):
            ended = self._host.commands.wait(self._child, connection.timeout_s) and not self._child.returncode
        if self._child.poll() is None:
            self._child.kill()
        self._host.commands.stop(self._child)
        connection.close()
        return ended

    def _unanswered(self, error: Exception, name: str, doing: str) -> errors.DiskyardError:
        if not self._connection.is_open:
            return self._did_not_start(error)
        if isinstance(error, TimeoutError):
            return errors.StorageError(
                f"QEMU did not answer within {self._connection.timeout_s:g} seconds while {doing}.",
                advice="The storage hangs, or the host is too busy. Check both, then try again; "
                "checkStorageRepository lists the work that was begun.",
            )
        return errors.StorageError(
            f"qemu-storage-daemon died while {doing}: {self._last_words(error)}.",
            advice="Check the kernel's log: it may have been killed for lack of memory. Then try again; "
            "checkStorageRepository lists the work that was begun.",
        )

    def _did_not_start(self, error: Exception) -> errors.StorageError:
        return errors.StorageError(
            f"qemu-storage-daemon did not start: {self._last_words(error)}.",
            advice="Check that the host has memory left, and that 'qemu-storage-daemon --version' works.",
        )

    def _last_words(self, error: BaseException) -> str:
        """The output of a dying child, or else the error itself."""
        if not self._host.commands.wait(self._child, 1.0):
            return str(error) or type(error).__name__
        stderr = self._child.stderr
        printed = stderr.read(4096).decode(errors="replace").strip() if stderr else ""
        return printed or str(error) or f"exit status {self._child.returncode}"
