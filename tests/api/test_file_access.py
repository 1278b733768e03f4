"""Who may use the files of a repository: the owner, the group and the mode that its creator gives."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard import Diskyard
from tests.api.helpers import Rig, code_of

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


@_root_only
def test_the_owner_works_on_what_root_has_made(open_folder: Path) -> None:
    user = pwd.getpwnam(_USER)
    words = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", sys.executable]
    if subprocess.run([*words, "-c", "import diskyard"], check=False, capture_output=True).returncode:
        pytest.skip(f"{_USER} cannot read Diskyard's own files here")
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
