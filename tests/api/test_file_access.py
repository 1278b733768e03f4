"""Who may use the files of a repository: the owner, the group and the mode that its creator gives."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from diskyard import Diskyard
from diskyard.host import Host
from diskyard.host.identity import new_nonce
from diskyard.model.records import entry_id
from diskyard.model.volume_name import VolumeName
from diskyard.storage.localfs.access import Follower
from diskyard.storage.localfs.reserve import Reserve
from diskyard.storage.localfs.storage import LocalStorage
from tests.api.helpers import Rig, code_of
from tests.rights import skip_unless_readable

_MIB = 1 << 20
_USER, _GROUP = "nobody", "games"
_ON_THE_WAY = (".", "volumes")
_root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def narrow_umask() -> Iterator[None]:
    """Narrower than that of the daemon's unit."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def _make(yard: Diskyard, path: Path, **asked: object) -> None:
    yard.create_storage_repository("localfs-1.0", {"path": str(path), **asked})
    yard.connect_storage_repository("made", "localfs-1.0", {"path": str(path)})


def test_folders_are_passed_and_not_listed(rig: Rig, narrow_umask: None) -> None:
    path = rig.folder / "made"
    _make(rig.yard, path)
    modes = {item.name: _mode(item) for item in path.iterdir() if item.is_dir()}
    assert _mode(path) == modes.pop("volumes") == 0o711
    assert not any(mode & 0o007 for mode in modes.values()), modes
    rig.yard.create_virtual_disk("made", _MIB)
    files = [item for item in path.rglob("*") if item.is_file()]
    assert not any(_mode(item) & 0o007 for item in files)
    assert any(item.parent.name == "volumes" for item in files)


def test_a_folder_that_was_there_keeps_its_mode(rig: Rig) -> None:
    path = rig.folder / "made"
    path.mkdir(mode=0o700)
    _make(rig.yard, path)
    assert (_mode(path), _mode(path / "volumes")) == (0o700, 0o711)
    given = rig.folder / "given"
    given.mkdir(mode=0o700)
    rig.yard.create_storage_repository("localfs-1.0", {"path": str(given), "mode": "750"})
    assert (_mode(given), _mode(given / "volumes"), _mode(given / "log")) == (0o750, 0o750, 0o750)


@_root_only
def test_what_root_makes_later_is_the_owners_and_the_groups(rig: Rig, narrow_umask: None) -> None:
    path = rig.folder / "made"
    group_id = grp.getgrnam(_GROUP).gr_gid
    _make(rig.yard, path, owner=_USER, group=group_id)
    disk = rig.yard.create_virtual_disk("made", _MIB)
    rig.yard.create_snapshot("made", disk)
    copied = rig.yard.copy_image("made", disk)
    rig.yard.wait_for_image("made", copied)
    wanted = (pwd.getpwnam(_USER).pw_uid, group_id)
    items = [path, *path.rglob("*")]
    assert {(item.stat().st_uid, item.stat().st_gid) for item in items} == {wanted}
    assert {_mode(item) for item in path.glob("volumes/*")} == {0o660}
    assert {_mode(item) for item in path.glob("log/*")} == {0o640}
    assert {_mode(path / name) for name in _ON_THE_WAY} == {0o751}
    assert {_mode(path / "reserve")} | {_mode(path / "log")} == {
        0o750
    }  # guests of the group write to volumes only
    assert {_mode(item) for item in path.glob("reserve/*")} == {0o640}


@_root_only
def test_a_record_that_root_mends_stays_the_owners(rig: Rig) -> None:
    path = rig.folder / "made"
    _make(rig.yard, path, owner=_USER)
    rig.yard.disconnect_storage_repository("made")
    before = _look(path)[path / "repository.b"]
    (path / "repository.b").write_bytes(b"damaged")
    rig.yard.connect_storage_repository("made", "localfs-1.0", {"path": str(path)})
    assert _look(path)[path / "repository.b"] == before


@_root_only
def test_a_lock_file_that_is_not_the_folders_gives_nothing_away(rig: Rig) -> None:
    """Whoever may write to a repository can put one there, and must not be given others' disks for it."""
    path = rig.folder / "made"
    _make(rig.yard, path)
    user_id = pwd.getpwnam(_USER).pw_uid
    rig.yard.disconnect_storage_repository("made")
    os.chown(path / "locks", user_id, -1)
    rig.yard.connect_storage_repository("made", "localfs-1.0", {"path": str(path)})
    rig.yard.create_virtual_disk("made", _MIB)
    assert {item.stat().st_uid for item in path.rglob("*") if item.name != "locks"} == {os.geteuid()}


def _look(folder: Path) -> dict[Path, tuple[int, int, int, bytes]]:
    """Whose all in a folder is, who may do what with it, and what it holds."""
    return {
        path: (
            path.stat().st_uid,
            path.stat().st_gid,
            _mode(path),
            path.read_bytes() if path.is_file() else b"",
        )
        for path in [folder, *folder.rglob("*")]
    }


@pytest.mark.parametrize("asked", [{}, {"mode": "0750"}, {"owner": _USER}])
@pytest.mark.parametrize("kind", ["hard link", "file"])
def test_a_file_named_locks_is_not_taken_for_one_that_a_creation_left(
    rig: Rig, asked: dict[str, object], kind: str
) -> None:
    path, outside = rig.folder / "made", rig.folder / "outside"
    path.mkdir()
    outside.mkdir()
    (outside / "file").write_bytes(b"" if kind == "hard link" else b"precious")
    (outside / "file").chmod(0o600)
    if kind == "hard link":
        (path / "locks").hardlink_to(outside / "file")
    else:
        (outside / "file").rename(path / "locks")
    before = _look(outside) | {path / "locks": _look(path)[path / "locks"]}
    where = {"path": str(path), **asked}
    assert code_of(lambda: rig.yard.create_storage_repository("localfs-1.0", where)) == "NotEmpty"
    assert _look(outside) | {path / "locks": _look(path)[path / "locks"]} == before


class Swaps:
    """Another process that may change the names in a folder: what is new there gives way to what is outside.

    :param outside: whose files, or folders, come in its place, each once.
    """

    def __init__(self, folder: Path, outside: Path) -> None:
        self._folder = folder
        self._outside = sorted(outside.iterdir())
        self._seen = [os.open(path, os.O_RDONLY) for path in self._outside]
        self._before = self._look()
        self._open, self._mkdir = os.open, os.mkdir

    def _look(self) -> list[tuple[int, int, int]]:
        return [(found.st_uid, found.st_gid, found.st_mode) for found in map(os.fstat, self._seen)]

    def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        fd = self._open(path, flags, mode, dir_fd=dir_fd)
        if flags & os.O_CREAT:
            self._swap(path, dir_fd)
        return fd

    def mkdir(self, path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._mkdir(path, mode, dir_fd=dir_fd)
        self._swap(path, dir_fd)

    def _swap(self, name: str, dir_fd: int | None) -> None:
        if (
            self._outside
            and dir_fd is not None
            and os.readlink(f"/proc/self/fd/{dir_fd}") == str(self._folder)
        ):
            new = self._folder / name
            if new.is_dir():
                new.rename(new.with_name("away"))
            self._outside.pop().rename(new)

    def end(self) -> None:
        """Something was swapped, and whose it is has not changed, wherever it is now."""
        after = self._look()
        for fd in self._seen:
            os.close(fd)
        assert len(self._outside) < len(after)
        assert after == self._before


@_root_only
@pytest.mark.parametrize("folder", ["volumes", "log", "checkpoints", "progress", "reserve"])
def test_a_file_that_comes_in_a_new_ones_place_is_not_given_away(rig: Rig, folder: str) -> None:
    path, outside = rig.folder / "made", rig.folder / "outside"
    _make(rig.yard, path, owner=_USER, group=_GROUP)
    outside.mkdir()
    for number in range(3):
        (outside / f"{number}").write_bytes(b"precious")
        (outside / f"{number}").chmod(0o600)
    storage = rig.yard.service.connections.get("made").storage
    assert isinstance(storage, LocalStorage)
    name = VolumeName(entry_id(1, new_nonce()), str(uuid.uuid4()), "raw")
    acts: dict[str, Callable[[], object]] = {
        "volumes": lambda: storage.create_volume(name, length_bytes=4096),
        "log": lambda: storage.put("entry", 99, b"new"),
        "checkpoints": lambda: storage.put("checkpoint", 99, b"new"),
        "progress": lambda: storage.put_progress(str(uuid.uuid4()), b"new"),
        "reserve": lambda: Reserve(
            rig.yard.service.host.files, str(path), Follower(Host.real(), str(path))
        ).fill(),
    }
    for item in (path / "reserve").iterdir():
        item.unlink()
    swaps = Swaps(path / folder, outside)
    with mock.patch.object(os, "open", swaps.open):
        acts[folder]()
    swaps.end()


@_root_only
@pytest.mark.parametrize("whose", ["holds something", "another's"])
def test_a_folder_that_comes_in_a_new_ones_place_is_not_given_away(rig: Rig, whose: str) -> None:
    path, outside = rig.folder / "made", rig.folder / "outside"
    path.mkdir()
    (outside / "0").mkdir(parents=True, mode=0o700)
    if whose == "another's":
        os.chown(outside / "0", 1, 1)
    else:
        (outside / "0" / "file").write_bytes(b"precious")
    swaps = Swaps(path, outside)
    where = {"path": str(path), "owner": _USER}
    with mock.patch.object(os, "mkdir", swaps.mkdir):
        assert code_of(lambda: rig.yard.create_storage_repository("localfs-1.0", where)) == "StorageError"
    swaps.end()


@_root_only
def test_a_folder_that_was_there_and_holds_something_is_not_given_away(rig: Rig) -> None:
    path = rig.folder / "made"
    (path / "log" / "of another program").mkdir(parents=True)
    before = _look(path / "log")
    where = {"path": str(path), "owner": _USER}
    assert code_of(lambda: rig.yard.create_storage_repository("localfs-1.0", where)) == "NotEmpty"
    assert _look(path / "log") == before


_AS_THE_OWNER = """
import sys
from diskyard import Diskyard
with Diskyard() as yard:
    yard.connect_storage_repository("its", "localfs-1.0", {"path": sys.argv[1]})
    yard.create_virtual_disk("its", 1 << 20)
    copied = yard.copy_image("its", sys.argv[2])
    yard.wait_for_image("its", copied)
    assert not yard.check_storage_repository("its")
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can pass: those of tests are for their own user only."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


_REMOVE = """
import sys
from diskyard import Diskyard
with Diskyard() as yard:
    yard.connect_storage_repository("its", "localfs-1.0", {"path": sys.argv[1]})
    yard.remove_image("its", sys.argv[2], options={"auto_fix": False})
"""


@_root_only
def test_the_group_frees_a_full_repository(open_folder: Path) -> None:
    user, group_id = pwd.getpwnam(_USER), grp.getgrnam(_GROUP).gr_gid
    words = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={group_id}", "--clear-groups", sys.executable]
    skip_unless_readable(words[:-1])
    mounted, state = open_folder / "mounted", open_folder / "state"
    for folder in (mounted, state):
        folder.mkdir()
    os.chown(state, user.pw_uid, -1)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16M,mode=0755", "none", str(mounted)], check=True)
    try:
        with Diskyard(state_folder=str(open_folder / "of root")) as yard:
            _make(yard, mounted / "made", owner="daemon", group=_GROUP, mode="0771")
            disk = yard.create_virtual_disk("made", _MIB)
        with (mounted / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(bytes(4096)):
                pass
        done = subprocess.run(
            [*words, "-c", _REMOVE, str(mounted / "made"), disk],
            env={"PATH": os.environ["PATH"], "DISKYARD_STATE_DIR": str(state)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


@_root_only
def test_the_owner_works_on_what_root_has_made(open_folder: Path) -> None:
    user = pwd.getpwnam(_USER)
    words = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", sys.executable]
    skip_unless_readable(words[:-1])
    place, state = open_folder / "made", open_folder / "state"
    with Diskyard() as yard:
        _make(yard, place, owner=_USER)
        snapshot = yard.create_snapshot("made", yard.create_virtual_disk("made", _MIB))
    state.mkdir()
    os.chown(state, user.pw_uid, -1)
    done = subprocess.run(
        [*words, "-c", _AS_THE_OWNER, str(place), snapshot],
        env={"PATH": os.environ["PATH"], "DISKYARD_STATE_DIR": str(state)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "asked",
    [
        {"owner": "nobody-of-this-name"},
        {"group": "no-such-group"},
        {"owner": -1},
        {"owner": (1 << 32) - 1},
        {"owner": "4294967295"},
        {"group": True},
        {"group": ""},
        {"owner": "a\0b"},
        {"mode": 0o711},
        {"mode": "0777"},
        {"mode": "0611"},
        {"mode": "2750"},
        {"mode": "rwx"},
    ],
)
def test_what_cannot_be_given_is_refused(rig: Rig, asked: dict[str, object]) -> None:
    where = {"path": str(rig.folder / "made"), **asked}
    assert code_of(lambda: rig.yard.create_storage_repository("localfs-1.0", where)) == "InvalidParameter"
    assert not (rig.folder / "made").exists()


def test_it_is_not_asked_for_again(rig: Rig) -> None:
    _make(rig.yard, rig.folder / "made", mode="0711")
    where = {"path": str(rig.folder / "made"), "mode": "0711"}
    connect = rig.yard.connect_storage_repository
    assert code_of(lambda: connect("again", "localfs-1.0", where)) == "InvalidParameter"
