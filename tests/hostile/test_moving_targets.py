"""Files whose owner changes them while they are imported, and a raw image that looks like another format."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from diskyard.mover.interface import ImportFormat
from diskyard.operations.transfer import QUIET_S
from diskyard.testing.hostile_images.cases import HONEST, Case, case
from diskyard.testing.hostile_images.judge import ImportJudge
from diskyard.testing.hostile_images.picture import SECTOR_BYTES, Picture
from diskyard.testing.hostile_images.qcow2_file import build
from diskyard.testing.hostile_images.site import Site
from tests.conftest import Tally

IMPORTS = 15
_TICK_S = 0.01  # of the kernel's clock: a file may be taken for so much older than it is
_CHANGED = ("UnsafeImage", "InvalidParameter", "ImageBroken")


def _link(site: Site, path: Path, honest: bytes) -> None:
    swapped = path.with_name("link")
    swapped.symlink_to(site.secret)
    swapped.rename(path)
    _put(path, honest)


def _fifo(site: Site, path: Path, honest: bytes) -> None:
    swapped = path.with_name("fifo")
    os.mkfifo(swapped)
    swapped.rename(path)
    _put(path, honest)


def _backing(site: Site, path: Path, honest: bytes) -> None:
    """In place, with its time of change set back: nothing tells that the file was another."""
    info = path.stat()
    evil = bytearray(honest)
    evil[1024:1200] = str(site.secret).encode().ljust(176, b"\0")
    evil[8:20] = (1024).to_bytes(8, "big") + len(str(site.secret)).to_bytes(4, "big")
    for data in (bytes(evil), honest):
        with path.open("r+b") as file:
            file.write(data)
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


_SHRUNK_BYTES = 70_000
_shrunk_s: list[float] = []  # when it was cut off, while it is; the longest that it was so at the end
_longest_shrunk_s = [0.0]


def _shrink(site: Site, path: Path, honest: bytes) -> None:
    begin_s = time.monotonic()
    _shrunk_s.append(begin_s)
    os.truncate(path, _SHRUNK_BYTES)
    _put(path, honest)
    _shrunk_s.clear()
    _longest_shrunk_s[0] = max(_longest_shrunk_s[0], time.monotonic() - begin_s)


def _put(path: Path, data: bytes) -> None:
    new = path.with_name("new")
    new.write_bytes(data)
    new.rename(path)


@dataclass(frozen=True, slots=True)
class _WholeOrShrunk(Picture):
    """A raw file that is cut off at times, or what is left of it where nobody was near it for long enough.

    A busy machine may keep the one who cuts it off from going on for as long as an import takes: then the
    file is shorter before, while and after it is read. An import that was quicker to take it for whole than
    the file is to be left alone is wrong.
    """

    def difference(self, other: Picture) -> str:
        """See :class:`Picture`."""
        whole = Picture(self.size_bytes, self.sectors)
        left = whole.resized(-(-_SHRUNK_BYTES // SECTOR_BYTES) * SECTOR_BYTES)
        last = _SHRUNK_BYTES // SECTOR_BYTES
        rest = left.sectors[last][: _SHRUNK_BYTES % SECTOR_BYTES].ljust(SECTOR_BYTES, b"\0")
        left = Picture(left.size_bytes, {**left.sectors, last: rest})
        lasts_s = max([_longest_shrunk_s[0], *(time.monotonic() - begin_s for begin_s in _shrunk_s)])
        if lasts_s >= QUIET_S - _TICK_S and not left.difference(other):
            return ""
        return whole.difference(other)


@pytest.mark.parametrize(
    ("format", "change"),
    [
        ("raw", _link),
        ("raw", _fifo),
        ("raw", _shrink),
        ("qcow2", _link),
        ("qcow2", _fifo),
        ("qcow2", _shrink),
        ("qcow2", _backing),
    ],
)
def test_a_file_that_is_changed_all_the_time(
    format: ImportFormat, change: Callable[[Site, Path, bytes], None], folder: Path, tally: Tally
) -> None:
    """It is refused, or imported as it was; nothing that takes its place is opened."""
    tally("hostile images")
    honest = bytes(build().data)
    raw = Picture.of(len(honest), {0: honest})
    _longest_shrunk_s[0] = 0.0
    holds = HONEST if format == "qcow2" else _WholeOrShrunk(raw.size_bytes, raw.sectors)
    wrong: list[str] = []
    with ImportJudge(folder / "judge") as judge:
        place = judge.site.folder / "place"
        place.mkdir()
        path = place / "image"
        path.write_bytes(honest)
        stop = threading.Event()

        def keep_changing() -> None:
            while not stop.is_set():
                change(judge.site, path, honest)

        subject = Case("changing", format, lambda *_: None, holds, may_be_refused=True, codes=_CHANGED)
        changer = threading.Thread(target=keep_changing)
        changer.start()
        try:
            for number in range(IMPORTS):
                wrong += judge.judge_file(subject, path, stepwise=number % 2 == 0).wrong
        finally:
            stop.set()
            changer.join()
    assert wrong == []
    tally("hostile images", runs=IMPORTS)


def test_the_judge_sees_a_raw_image_that_is_probed(folder: Path, tally: Tally) -> None:
    """A qcow2 with a backing file, imported as raw, is its own bytes, and no qcow2 to anybody."""
    tally("hostile images")
    image = build()
    data = image.with_field("backing_size", 6)
    data[8:16] = (1024).to_bytes(8, "big")
    data[1024:1030] = b"secret"
    holds = Picture.of(len(data), {0: bytes(data)})
    with ImportJudge(folder / "judge") as judge:
        for stepwise in (False, True):
            assert judge.judge(case("looks like qcow2", "raw", data, holds), stepwise=stepwise).wrong == []
    tally("hostile images", runs=2)
