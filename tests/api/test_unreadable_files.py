"""A volume whose file cannot be opened: what gives it up goes on, what needs it says why not, check lists."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diskyard import MiB, errors
from diskyard.host.names import Names
from tests.api.helpers import COMMIT_ONLY, SIZE, Rig, code_of, fixes, picture, run_fix, settle

ONE, TWO = (1, 0, MiB), (2, MiB, MiB)
_NOBODY = 65534
OF_THE_FILE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EUCLEAN, errno.ESTALE)


class Shut:
    """Files that cannot be opened, with the error that says why."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.paths: set[str] = set()


@pytest.fixture(params=OF_THE_FILE, ids=lambda number: errno.errorcode[number])
def shut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Shut:
    found = Shut(request.param)
    opens = Names._open_regular

    def refuse(self: Names, where: str | int, mode: int, *, block_device: bool = False) -> int:
        if where in found.paths and mode == os.O_RDONLY:
            raise OSError(found.number, os.strerror(found.number), where)
        return opens(self, where, mode, block_device=block_device)

    monkeypatch.setattr(Names, "_open_regular", refuse)
    return found


def test_what_gives_it_up_goes_on(rig: Rig, shut: Shut) -> None:
    """It is removed and deleted, named or not; its attachment ends by force alone."""
    yard = rig.yard
    disk, other = rig.disk("a", ONE), rig.disk("a", TWO)
    yard.prepare_image("a", disk)
    shut.paths |= {str(path) for path in rig.files("a")}
    with pytest.raises(errors.ImageInUse, match="cannot be known") as caught:
        yard.teardown_image("a", disk)
    assert os.strerror(shut.number) in caught.value.message
    assert "force" in caught.value.advice
    yard.teardown_image("a", disk, options={"force": True})
    for image in (disk, other):
        yard.remove_image("a", image, options=COMMIT_ONLY)
    listed = fixes(yard, "a")
    assert [(fix.type, fix.runnable) for fix in listed] == [("clean", True)] * 2
    for fix in listed:
        run_fix(yard, "a", fix)
    assert rig.files("a") == []
    assert fixes(yard, "a") == []


def test_what_nothing_names_is_deleted(rig: Rig, shut: Shut) -> None:
    disk = rig.disk("a", ONE)
    path = rig.volume_path("a", disk)
    data = path.read_bytes()
    rig.yard.remove_image("a", disk)
    rig.wait()
    path.write_bytes(data)
    shut.paths.add(str(path))
    (fix,) = fixes(rig.yard, "a")
    assert fix.runnable
    run_fix(rig.yard, "a", fix)
    assert not path.exists()


def test_a_repository_is_removed_with_it(rig: Rig, shut: Shut) -> None:
    disk = rig.disk("a", ONE)
    rig.yard.remove_image("a", disk, options=COMMIT_ONLY)
    shut.paths |= {str(path) for path in rig.files("a")}
    rig.yard.remove_storage_repository("a")
    assert not Path(rig.place("a")["path"], "volumes").exists()


def test_what_needs_it_says_why_not(rig: Rig, shut: Shut) -> None:
    """Fixes wait, with the reason; nothing is frozen or read of it; when it can be opened all goes on."""
    yard = rig.yard
    disk = rig.disk("a", ONE)
    middle = yard.create_snapshot("a", disk)
    below = rig.volume_path("a", middle)
    rig.write("a", disk, TWO)
    yard.remove_image("a", middle, options=COMMIT_ONLY)
    yard.set_strategy("a", disk, "performance")
    own, sound = rig.disk("a", TWO), rig.disk("a", TWO)
    shut.paths |= {str(below), str(rig.volume_path("a", own))}
    for deep in (False, True):
        found = {fix.type: fix for fix in yard.check_storage_repository("a", options={"deep": deep})}
        for kind in ("merge", "optimize"):
            assert not found[kind].runnable
            assert os.strerror(shut.number) in (found[kind].waits_for or "")
    assert {volume.damage for volume in rig.repository("a").state().volumes.values()} == {None}
    refusals: tuple[Callable[[], object], ...] = (
        lambda: yard.create_snapshot("a", own),
        lambda: yard.copy_image("b", own),
        lambda: yard.prepare_image("a", own),
        lambda: run_fix(yard, "a", found["merge"]),
        lambda: run_fix(yard, "a", found["optimize"]),
    )
    code = "RepositoryUnavailable" if shut.number == errno.ESTALE else "StorageError"
    for refused in refusals:
        assert code_of(refused) == code
    yard.create_snapshot("a", sound)
    shut.paths.clear()
    settle(yard, "a", "b")
    rig.expect("a", disk, picture(SIZE, ONE, TWO))
    rig.clean_slate("a")


@pytest.fixture
def folder_of_nobody() -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("being another user needs root")
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, _NOBODY, _NOBODY)
        yield Path(folder)


def test_another_users_rights(folder_of_nobody: Path) -> None:
    """As a manager gives a disk to its guest's user: the same by the rights of real files."""
    program = f"""
import os
from pathlib import Path
os.setgroups([]); os.setgid({_NOBODY}); os.setuid({_NOBODY})
from tests.api.helpers import *
rig = Rig(Path({str(folder_of_nobody)!r}))
yard = rig.yard
for image in (rig.disk("a", (1, 0, MiB)), rig.disk("a", (2, 0, MiB))):
    yard.prepare_image("a", image)
    os.chmod(rig.volume_path("a", image), 0)
    assert code_of(lambda: yard.teardown_image("a", image)) == "ImageInUse"
    yard.teardown_image("a", image, options={{"force": True}})
    yard.remove_image("a", image, options=COMMIT_ONLY)
settle(yard, "a")
rig.clean_slate("a")
rig.close()
"""
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "HOME": str(folder_of_nobody)}
    words = [sys.executable, "-B", "-c", program]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
