"""A QEMU program that has a file open, as a guest does that nobody has told Diskyard of."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self


class LiveQemu:
    """``qemu-io`` with a file open and QEMU's own locks on it, until the context is left.

    :param read_only: open it as a reader does.
    """

    def __init__(self, source: Path | str, format: str | None = None, *, read_only: bool = False) -> None:
        given = ["-f", format] if format else []
        mode = ["-r"] if read_only else []
        self._words = ["qemu-io", *mode, *given, str(source)]

    def __enter__(self) -> Self:
        self._child = subprocess.Popen(
            self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.ask("read 0 512")  # it answers once it has the file open, and its locks
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def ask(self, command: str) -> None:
        """One command of qemu-io that reads or writes, done when this returns; nothing is flushed."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(command.encode() + b"\n")
        self._child.stdin.flush()
        said = b""
        while b"ops" not in said:
            line = self._child.stdout.readline()
            assert line, f"{command}: {said.decode()}"
            said = said + line
        assert b"failed" not in said, said

    def end(self) -> None:
        """End as a guest that is shut down does: what it wrote is flushed."""
        self._child.communicate()
