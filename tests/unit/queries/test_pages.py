"""Pages of images while images come and go, and statuses while volumes do."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from diskyard.model.volume_name import VolumeName
from diskyard.storage.interface import StoredVolume
from tests.unit.queries.bench import LATER_S, Bench


@pytest.mark.parametrize("seed", range(6))
def test_what_is_there_throughout_is_listed_once(bench: Bench, seed: int) -> None:
    """Whatever is made and removed between two pages."""
    chosen = random.Random(seed)
    there = [bench.disk() for _ in range(12)]
    stays, goes = set(there[:8]), there[8:]
    seen: list[str] = []
    for page in bench.pages(limit=chosen.randint(1, 4)):
        seen += [info.image_id for info in page.images]
        if goes and chosen.random() < 0.7:
            bench.remove(goes.pop())
        for _ in range(chosen.randint(0, 2)):
            if len(seen) < 40:
                bench.disk()
    assert seen == sorted(set(seen))
    assert stays <= set(seen)


def test_a_page_goes_on_after_an_image_that_is_gone(bench: Bench) -> None:
    """Its end is a place, and not an image."""
    ids = sorted(bench.disk() for _ in range(5))
    first = bench.page(limit=2)
    assert first.next_cursor == ids[1]
    bench.remove(ids[1])
    assert [info.image_id for info in bench.page(limit=9, cursor=first.next_cursor).images] == ids[2:]


def test_the_last_page_is_known_to_be_it(bench: Bench) -> None:
    """Of all images, and of those of one kind or status, whatever else comes behind."""
    disks = sorted(bench.disk() for _ in range(4))
    for disk in disks:
        bench.snapshot(disk)
    assert bench.page(limit=8).next_cursor is None
    assert bench.page(limit=7).next_cursor is not None
    for words in ({"kind": "virtual_disk"}, {"status": "optimized", "image_ids": tuple(disks)}):
        assert bench.page(limit=4, **words).next_cursor is None
        assert bench.page(limit=3, **words).next_cursor == disks[2]
    bench.path(disks[0]).unlink()
    assert [i.image_id for i in bench.page(limit=1, status="broken").images] == disks[:1]
    assert bench.page(limit=1, status="broken").next_cursor is None
    assert bench.page(limit=3, status="optimized", kind="virtual_disk").next_cursor is None


# -- statuses ------------------------------------------------------------------------------------


def overwritten(path: Path) -> None:
    """The magic number of a header is not there any more."""
    with path.open("r+b") as file:
        file.write(b"XXXX")


def overwritten_and_dated_back(path: Path) -> None:
    """As :func:`overwritten`, by somebody who sets the time of change back."""
    before = path.stat()
    overwritten(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def another_file(path: Path) -> None:
    """A file of the same length and time of change that was renamed over it."""
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    before = copy.stat()
    overwritten(copy)
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    copy.rename(path)


def cut_short(path: Path) -> None:
    """A file whose tables are gone."""
    os.truncate(path, 4096)


def a_fifo(path: Path) -> None:
    """Nothing that could be opened without waiting."""
    path.unlink()
    os.mkfifo(path)


def a_link(path: Path) -> None:
    """A name that leads to the very file."""
    moved = path.with_name("moved")
    path.rename(moved)
    path.symlink_to(moved)


DAMAGES = [overwritten, overwritten_and_dated_back, another_file, cut_short, a_fifo, a_link, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("known", [False, True], ids=["unknown", "known to be sound"])
def test_what_a_damaged_volume_breaks(bench: Bench, damage: Callable[[Path], object], known: bool) -> None:
    """What reads it, and nothing else; also if its header was read before and found to be sound."""
    disk, other = bench.disk(), bench.disk()
    below = bench.snapshot(disk)
    middle = bench.snapshot(disk)
    if known:
        bench.clock.ahead_s = LATER_S
        assert set(bench.statuses().values()) == {"optimized"}
    damage(bench.path(middle))
    expected = {other: "optimized", below: "optimized", middle: "broken", disk: "broken"}
    for _ in range(2):
        assert bench.statuses() == expected
    assert {fix.image_id for fix in bench.check() if fix.type == "mend"} == {middle, disk}


def test_check_sees_what_the_medium_does_not_give_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was written to the file, so a list believes what was read of it before."""
    disk, other = bench.disk(), bench.disk()
    bench.snapshot(disk)
    bench.snapshot(other)
    bench.clock.ahead_s = LATER_S
    assert set(bench.statuses().values()) == {"optimized"}
    read, decayed = bench.files.read_beginning, str(bench.path(disk))

    def fails(path: str, size_bytes: int) -> bytes:
        if path == decayed:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return read(path, size_bytes)

    monkeypatch.setattr(bench.files, "read_beginning", fails)
    assert {fix.image_id for fix in bench.check() if fix.type == "mend"} == {disk}


def test_a_header_that_is_whole_again_is_seen_to_be(bench: Bench) -> None:
    disk = bench.disk()
    bench.snapshot(disk)
    bench.clock.ahead_s = LATER_S
    path = bench.path(disk)
    whole = path.read_bytes()
    overwritten(path)
    assert bench.statuses()[disk] == "broken"
    path.write_bytes(whole)
    assert bench.statuses()[disk] == "optimized"


def test_a_volume_that_is_merged_while_it_is_looked_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image that read it is not broken: its bytes are in another volume by then."""
    disk = bench.disk()
    snapshot = bench.snapshot(disk)
    storage = bench.repository.storage
    stored_volumes = storage.stored_volumes
    due, path = [snapshot], bench.path(disk)

    def merged_before(names: Sequence[VolumeName]) -> list[StoredVolume | None]:
        while due:
            bench.remove(due.pop())
            bench.fix_all()
            assert not path.exists()
        return stored_volumes(names)

    monkeypatch.setattr(storage, "stored_volumes", merged_before)
    assert [info.status for info in bench.page(kind="virtual_disk").images] == ["optimized"]
    assert not due
