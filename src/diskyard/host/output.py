"""What a program prints, read while it runs and kept within bounds."""

from __future__ import annotations

import os
import selectors
import subprocess
from types import TracebackType
from typing import Self

_PIECE_BYTES = 64 << 10
_STDERR_KEPT_BYTES = 64 << 10


class Output:
    """Both pipes of a running program; a context manager.

    All output is read, because the program would wait otherwise, but little of it is kept:
    the end of stderr, and the beginning of stdout.

    :param stdout_kept_bytes: how much of stdout is kept.
    :ivar stdout: the beginning of stdout.
    :ivar stdout_bytes: how many bytes came from stdout.
    """

    def __init__(self, child: subprocess.Popen[bytes], stdout_kept_bytes: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._stdout_kept_bytes = stdout_kept_bytes
        self._stderr = bytearray()
        self.stdout = bytearray()
        self.stdout_bytes = 0
        for pipe, keep in ((child.stdout, self._keep_stdout), (child.stderr, self._keep_stderr)):
            if pipe is not None:
                self._selector.register(pipe, selectors.EVENT_READ, keep)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._selector.close()

    def read(self, timeout_s: float) -> bool:
        """Wait for something to be printed, and read it; False once both pipes are closed."""
        if not self._selector.get_map():
            return False
        for key, _ in self._selector.select(timeout_s):
            piece = os.read(key.fd, _PIECE_BYTES)
            if piece:
                key.data(piece)
            else:
                self._selector.unregister(key.fileobj)
        return bool(self._selector.get_map())

    def stderr(self) -> str:
        """The end of stderr, as text."""
        return self._stderr.decode(errors="replace").strip()

    def _keep_stdout(self, piece: bytes) -> None:
        self.stdout_bytes += len(piece)
        self.stdout += piece[: max(0, self._stdout_kept_bytes - len(self.stdout))]

    def _keep_stderr(self, piece: bytes) -> None:
        self._stderr += piece
        del self._stderr[:-_STDERR_KEPT_BYTES]
