"""The simulated disk is a file system like others, and forgets what it may, and nothing else."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from diskyard.testing.effort import Effort
from diskyard.testing.power_cut import BEGIN, RecordedDisk
from diskyard.testing.simulated_disk import mounted, read_journal
from diskyard.testing.simulated_files import BLOCK_BYTES, MARK, ROOT, SimulatedFiles
from diskyard.testing.world import host_named
from tests.mounts import another_namespace

OLD, NEW = b"o" * BLOCK_BYTES, b"n" * BLOCK_BYTES
OPERATIONS = 400


def after_cuts(folder: Path, act: Callable[[SimulatedFiles], None], torn: int = 3) -> list[dict[str, bytes]]:
    """All that a disk may hold once something was done, or begun, on what a folder holds."""
    files = SimulatedFiles.loaded(folder)
    files.mark(ROOT, MARK, BEGIN)
    act(files)
    disk = RecordedDisk(folder, files.journal, 0)
    found = []
    for state in disk.states(torn):
        place = folder.parent / "cut"
        disk.write(state.cut, place)
        found.append(contents(place))
        shutil.rmtree(place)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def held(tmp_path: Path) -> Path:
    folder = tmp_path / "held"
    folder.mkdir()
    return folder


def write_new(files: SimulatedFiles, name: str, data: bytes, *, sync: bool) -> None:
    node = files.make(ROOT, name, 0o640, is_folder=False)
    files.write(node.number, 0, data)
    if sync:
        files.sync(node.number)


def test_it_ends_though_another_namespace_still_has_it_mounted(tmp_path: Path, held: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    with ExitStack() as stack:
        with mounted(held, mount, tmp_path / "journal"):
            stack.enter_context(another_namespace())
            (mount / "name").write_bytes(b"data")
        assert not os.path.ismount(mount)
    assert read_journal(tmp_path / "journal")


def test_names_and_bytes_are_lost_apart(held: Path) -> None:
    def act(files: SimulatedFiles) -> None:
        write_new(files, "x", NEW, sync=False)
        files.sync(ROOT)

    found = after_cuts(held, act)
    for expected in ({}, {"x": b""}, {"x": bytes(BLOCK_BYTES)}, {"x": NEW}):
        assert expected in found


def test_what_is_synced_stays(held: Path) -> None:
    def act(files: SimulatedFiles) -> None:
        write_new(files, "x", NEW, sync=True)
        files.sync(ROOT)
        write_new(files, "y", NEW, sync=True)

    last = [state for state in after_cuts(held, act) if "y" in state]
    assert last
    assert all(state["x"] == NEW for state in last)
    # A file whose folder was not synced may be without its name, but not with half of its bytes.
    assert {"x": NEW} in after_cuts(held, act)


def test_a_rename_leaves_the_old_or_the_new(held: Path) -> None:
    (held / "x").write_bytes(OLD)

    def act(files: SimulatedFiles, *, sync: bool) -> None:
        write_new(files, "temporary", NEW, sync=sync)
        files.rename(ROOT, "temporary", ROOT, "x")

    careful = {state["x"] for state in after_cuts(held, lambda files: act(files, sync=True))}
    assert careful == {OLD, NEW}
    careless = {state["x"] for state in after_cuts(held, lambda files: act(files, sync=False))}
    assert careless >= {OLD, NEW, b""}


def test_any_block_may_be_torn_off(held: Path) -> None:
    (held / "x").write_bytes(OLD + OLD)

    def act(files: SimulatedFiles) -> None:
        number = files.find(ROOT, "x").number
        files.write(number, 0, NEW + NEW)

    found = {state["x"] for state in after_cuts(held, act, torn=100)}
    assert found >= {first + second for first, second in itertools.product((OLD, NEW), repeat=2)}


def test_names_of_a_folder_go_from_the_newest_back(held: Path) -> None:
    def act(files: SimulatedFiles) -> None:
        for name in "abc":
            write_new(files, name, NEW, sync=True)

    names = {"".join(sorted(state)) for state in after_cuts(held, act, torn=20)}
    assert names == {"", "a", "ab", "abc"}


def test_a_folder_that_is_lost_takes_all_in_it(held: Path) -> None:
    def act(files: SimulatedFiles) -> None:
        folder = files.make(ROOT, "folder", 0o750, is_folder=True)
        node = files.make(folder.number, "x", 0o640, is_folder=False)
        files.write(node.number, 0, NEW)
        files.sync(node.number)
        files.sync(folder.number)

    assert {} in after_cuts(held, act)


def test_it_does_what_a_file_system_does(place: Path, effort: Effort) -> None:
    """The same operations on it and on a real folder show the same, and the journal tells them all."""
    held, mount, real = place / "held", place / "mount", place / "real"
    for folder in (held, mount, real):
        folder.mkdir()
    with mounted(held, mount, place / "journal"):
        os.setxattr(mount, MARK, BEGIN.encode())
        for folder in (mount, real):
            chance = effort.random("operations")
            for _ in range(OPERATIONS):
                _operate(folder, chance)
        assert contents(mount) == contents(real)
        assert contents(real)
    disk = RecordedDisk(held, read_journal(place / "journal"), 0)
    kept = next(s for s in reversed(disk.states(0)) if s.cut.variant == "all kept")
    disk.write(kept.cut, place / "kept")
    assert contents(place / "kept") == contents(real)


def _operate(folder: Path, chance: random.Random) -> None:
    path, other = folder / chance.choice("abcd"), folder / chance.choice("abcd")
    what, offset, length = chance.randrange(6), chance.randrange(20_000), chance.randrange(1, 20_000)
    if not path.exists():
        path.touch(0o640)
    if what == 0 and path != other:
        os.rename(path, other)
    elif what == 1:
        path.unlink()
    elif what == 2 and not other.exists():
        os.link(path, other)
    elif what == 3:
        os.truncate(path, offset)
    else:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(chance.randbytes(length))


def test_nothing_stays_mounted_after_a_failure(place: Path) -> None:
    held, mount = place / "held", place / "mount"
    held.mkdir()
    mount.mkdir()

    def fail() -> None:
        with mounted(held, mount, place / "journal"), (mount / "in use").open("wb"):
            assert os.path.ismount(mount)
            raise RuntimeError("the test fails")

    with pytest.raises(RuntimeError, match="the test fails"):
        fail()
    assert not os.path.ismount(mount)


def test_locks_hold_on_it(place: Path) -> None:
    held, mount = place / "held", place / "mount"
    held.mkdir()
    mount.mkdir()
    (held / "locks").touch()
    files = host_named("locking").files
    with mounted(held, mount, place / "journal"):
        first, second = (files.open_for_writing(str(mount / "locks")) for _ in range(2))
        assert files.try_lock_byte(first, 7)
        assert files.byte_is_locked(second, 7)
        assert not files.try_lock_byte(second, 7)
        os.close(first)
        assert files.try_lock_byte(second, 7)
        os.close(second)
