"""The program's own streams, which may be closed, full, or read by nobody."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

from diskyard import errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import ReadableBuffer

_STDIN, _STDOUT, _STDERR = range(3)
#: The exit status of a program that SIGPIPE ended.
_NOBODY_READS = 141


class Streams:
    """stdin, stdout and stderr of this process, made so that using them never fails.

    If output cannot be written, a command still does its work; the exit status shows the failure. A stream
    that was closed before the program began counts as /dev/null, so that no file that the program opens
    gets its number.
    """

    def __init__(self) -> None:
        self._closed = [_devnull(fd) for fd in (_STDIN, _STDOUT, _STDERR) if not _is_open(fd)]
        if sys.stdin is None:
            sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(_STDIN, closefd=False)))
        self._stdout = _Written(_STDOUT)
        sys.stdout = self._stdout.text(sys.stdout)
        sys.stderr = _Written(_STDERR).text(sys.stderr, line_buffering=True)

    def end(self, status: int, arguments: Sequence[str]) -> int:
        """The exit status of a command that ended with ``status``. Report lost output."""
        from diskyard.cli.output import print_error

        sys.stdout.flush()
        failed = self._stdout.failed
        if failed is None or status != 0:
            return status
        if isinstance(failed, BrokenPipeError):
            return _NOBODY_READS
        error = errors.StorageError(
            f"The command's output could not be written: {failed.strerror or failed}.",
            advice="The work itself is done. Send the output somewhere else.",
        )
        print_error(error, as_json="--json" in arguments or "call" in arguments[:1])
        return error.exit_status


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _devnull(fd: int) -> io.FileIO:
    """Open /dev/null. It gets the lowest free number, which is that of the closed stream."""
    null = io.FileIO("/dev/null", "r+")
    if null.fileno() != fd:
        raise errors.InternalError(f"/dev/null was opened as {null.fileno()}, not as {fd}.")
    return null


class _Written(io.BufferedIOBase):
    """A stream that accepts all output, and writes each byte at most once.

    If an interrupt comes during a write, Python's own stream would write the same bytes again at its end.

    :ivar failed: why some output was lost.
    """

    def __init__(self, fd: int) -> None:
        self._file = io.FileIO(fd, "w", closefd=False)
        self.name = f"<descriptor {fd}>"
        self._pending = bytearray()
        self.failed: OSError | None = None

    def text(self, instead_of: TextIO | None, *, line_buffering: bool = False) -> io.TextIOWrapper:
        """The stream for text, in another stream's encoding. On a terminal each line appears at once."""
        return io.TextIOWrapper(
            self,
            encoding="utf-8" if instead_of is None else instead_of.encoding,
            errors="backslashreplace",
            line_buffering=line_buffering or self.isatty(),
        )

    def writable(self) -> bool:
        """True: the stream is for writing."""
        return True

    def fileno(self) -> int:
        """Its descriptor."""
        return self._file.fileno()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._file.isatty()

    def write(self, data: ReadableBuffer, /) -> int:
        """Accept bytes, and write them now and then."""
        taken = memoryview(data).nbytes
        self._pending += data
        if len(self._pending) >= io.DEFAULT_BUFFER_SIZE:
            self.flush()
        return taken

    def flush(self) -> None:
        """Write the accepted bytes, or record why that is not possible."""
        rest, self._pending = memoryview(bytes(self._pending)), bytearray()
        try:
            while rest:
                written = self._file.write(rest)
                if written is None:
                    self._wait()
                else:
                    rest = rest[written:]
        except OSError as error:
            self.failed = self.failed or error

    def _wait(self) -> None:
        """Wait until the stream accepts more: another process that shares it made it non-blocking."""
        import select

        select.select([], [self._file], [])
