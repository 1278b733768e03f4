"""What qemu-img prints while it works, line by line."""

from __future__ import annotations

import time
from collections.abc import Generator

from diskyard import errors
from diskyard.host import Child, Host
from diskyard.host.output import Output
from diskyard.mover.failures import failure

_LINE_MOST_BYTES = 1 << 20
_PIECE_BYTES = 64 << 10  # read at once, and kept no longer
_TIMEOUT_S = 60.0


def array_lines(host: Host, child: Child, doing: str) -> Generator[bytes]:
    """The objects that qemu-img map prints as a JSON array, one on each line, as they come.

    :param doing: for the error, as in "opening a volume".
    :raises diskyard.errors.StorageError: it fails, does not answer, or prints a line without end.
    """
    rest = b""
    with Output(child, _PIECE_BYTES) as output:
        goes_on = True
        while goes_on:
            with host.commands.asking("qemu-img map"):
                goes_on = _read_some(output, doing)
            *lines, rest = (rest + bytes(output.stdout)).split(b"\n")
            output.stdout.clear()
            yield from (line.strip(b"[], ") for line in lines if line.strip(b"[], "))
            if len(rest) > _LINE_MOST_BYTES:
                raise failure("qemu-img printed a line without end", doing)
        if not host.commands.wait(child, _TIMEOUT_S) or child.returncode != 0:
            raise failure(output.stderr(), doing)
    if last := rest.strip(b"[], "):  # of a program that printed something else, and no line of it
        yield last


def _read_some(output: Output, doing: str) -> bool:
    """Wait for what a program prints; False once it prints no more."""
    before_bytes = output.stdout_bytes
    deadline_s = time.monotonic() + _TIMEOUT_S
    while output.read(1.0):
        if output.stdout_bytes > before_bytes:
            return True
        if time.monotonic() > deadline_s:
            raise errors.StorageError(f"QEMU did not answer within {_TIMEOUT_S:g} seconds while {doing}.")
    return False
