"""A state folder that is really full: tokens are revoked all the same, one after the other."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.daemon.newest_time import NewestTime
from diskyard.daemon.tokens import Tokens
from diskyard.host import Host
from diskyard.testing.mounted import MOUNTED_KINDS, mounted, unmount, why_not_mounted

_PIECES_BYTES = (1 << 20, 64 << 10, 4 << 10, 512, 1)


@pytest.fixture(params=("tmpfs", *MOUNTED_KINDS))
def place(request: pytest.FixtureRequest, quick_folder: Path) -> Iterator[Path]:
    """A small file system of a kind."""
    why = why_not_mounted(*({request.param} & set(MOUNTED_KINDS)))
    if why is not None:
        pytest.skip(why)
    if request.param != "tmpfs":
        with mounted(request.param, quick_folder / "fs") as made:
            yield made.place
        return
    made_here = quick_folder / "tmpfs"
    made_here.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(made_here)], check=True)
    yield made_here
    unmount(made_here)


def fill(folder: Path) -> None:
    """Take all room there is, however little it is, as a guest would."""
    fd = os.open(folder / "filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for piece in _PIECES_BYTES:
            with contextlib.suppress(OSError):
                while True:
                    os.write(fd, bytes(piece))
                    if piece < _PIECES_BYTES[0]:
                        os.fsync(fd)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            os.write(fd, bytes(_PIECES_BYTES[0]))
    finally:
        os.close(fd)


def test_tokens_are_revoked_where_nothing_is_free(place: Path) -> None:
    state = place / "state"
    tokens, host = Tokens(str(state)), Host.real()
    made = [tokens.create(f"t{number}", "read")[1] for number in range(12)]
    NewestTime(host, str(state)).keep()
    fill(place)
    for number, text in enumerate(made[:10]):
        tokens.revoke(f"t{number}", "user:root")
        fill(place)
        assert Tokens(str(state)).verify(text) is None
    assert [Tokens(str(state)).verify(text) is not None for text in made] == [False] * 10 + [True] * 2
    assert [one.name for one in tokens.revoked()] == [f"t{number}" for number in range(10)]
    with contextlib.suppress(errors.NoSpace):
        tokens.create("late", "read")
    assert Tokens(str(state)).verify(made[0]) is None
