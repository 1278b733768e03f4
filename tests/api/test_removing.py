"""A repository is removed with all that is its own, and with nothing else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from diskyard import KiB, MiB, errors
from tests.api.helpers import COMMIT_ONLY, Killed, Rig, kill, run, settle

_ID = "11111111-1111-1111-1111-111111111111"
_NONCE = "a" * 32


def root(rig: Rig) -> Path:
    return Path(rig.place("a")["path"])


def tree(folder: Path) -> set[str]:
    """All there is but the reserve, of which files are used."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return {name for name in found if not name.startswith("reserve/")}


def _overlay(folder: Path) -> Path:
    path = folder / "volumes" / "guest-overlay.qcow2"
    path.write_bytes(b"newest writes of a guest")
    return path


def _folder(folder: Path) -> Path:
    path = folder / "volumes" / "kept"
    path.mkdir()
    return path


def _folder_with_a_volumes_name(folder: Path) -> Path:
    path = folder / "volumes" / f"{1:016x}-{_NONCE}-{_ID}.raw"
    path.mkdir()
    return path


def _of_a_newer_history(folder: Path) -> Path:
    path = folder / "volumes" / f"{255:016x}-{_NONCE}-{_ID}.raw"
    path.write_bytes(b"x" * 4 * KiB)
    return path


def _of_another_history(folder: Path) -> Path:
    path = folder / "volumes" / f"{1:016x}-{_NONCE}-{_ID}.qcow2"
    path.write_bytes(b"x" * 4 * KiB)
    return path


def _in(name: str) -> Callable[[Path], Path]:
    def put(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(b"mine")
        return path

    put.__name__ = name
    return put


FOREIGN = [
    _overlay,
    _folder,
    _folder_with_a_volumes_name,
    *map(
        _in, ("notes", "log/notes", "checkpoints/notes", "progress/notes", "temporary/notes", "reserve/notes")
    ),
]


@pytest.mark.parametrize("put", [*FOREIGN, _of_a_newer_history, _of_another_history])
def test_what_is_not_its_own_is_named_and_keeps_it(rig: Rig, put: Callable[[Path], Path]) -> None:
    """Nothing is deleted, and the repository goes on as before; without it it is removed."""
    rig.yard.remove_image("a", rig.disk("a", (1, 0, MiB)), options=COMMIT_ONLY)
    path = put(root(rig))
    before = tree(root(rig))
    with pytest.raises(errors.NotEmpty) as caught:
        rig.yard.remove_storage_repository("a")
    assert path.name in caught.value.message
    assert tree(root(rig)) == before
    rig.yard.remove_image("a", rig.disk("a"))
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()
    rig.wait()
    rig.yard.remove_storage_repository("a")
    assert not list(root(rig).iterdir())


def test_garbage_of_its_own_goes_with_it(rig: Rig) -> None:
    """What this history named, and names no more, needs no fix before."""
    repository = rig.repository("a")
    rig.disk("a")
    (path,) = rig.files("a")
    rig.yard.remove_image("a", rig.yard.list_images("a").images[0].image_id)
    rig.wait()
    path.write_bytes(b"left")
    assert not repository.state().volumes
    rig.yard.remove_storage_repository("a")
    assert not list(root(rig).iterdir())


def test_what_a_program_writes_to_is_kept(rig: Rig) -> None:
    disk = rig.disk("a")
    path = rig.volume_path("a", disk)
    rig.yard.remove_image("a", disk, options=COMMIT_ONLY)
    words = ["qemu-io", "-f", "raw", str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write("write -P 2 0 65536\n")
        program.stdin.flush()
        assert "wrote" in program.stdout.readline()
        with pytest.raises(errors.RepositoryInUse, match="QEMU"):
            rig.yard.remove_storage_repository("a")
    assert path.exists()
    settle(rig.yard, "a")
    rig.yard.remove_storage_repository("a")


@pytest.mark.parametrize("put", FOREIGN)
def test_what_comes_after_the_log_was_closed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, put: Callable[[Path], Path]
) -> None:
    """It stays and is named, however often, and without it the removal is completed."""
    with monkeypatch.context() as patch:
        patch.setattr("diskyard.storage.localfs.remove._remove_all", lambda *_: kill())
        with pytest.raises((errors.InternalError, Killed)):
            rig.yard.remove_storage_repository("a")
    path = put(root(rig))
    for _ in range(2):
        with pytest.raises(errors.NotEmpty) as caught:
            rig.yard.remove_storage_repository("a")
        assert path.name in caught.value.message
        assert path.exists()
    run("rm", "-r", str(path))
    rig.yard.remove_storage_repository("a")
    assert not list(root(rig).iterdir())


@pytest.mark.parametrize("put", FOREIGN[:-1])  # what is in the reserve's folder is in nobody's way
def test_what_comes_after_the_record_was_removed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, put: Callable[[Path], Path]
) -> None:
    """Creating a repository there names it, and completes the removal without it."""
    with monkeypatch.context() as patch:
        patch.setattr("diskyard.storage.localfs.remove._remove_rest", lambda *_: kill())
        with pytest.raises((errors.InternalError, Killed)):
            rig.yard.remove_storage_repository("a")
    path = put(root(rig))
    with pytest.raises(errors.NotEmpty) as caught:
        rig.yard.create_storage_repository(rig.format, rig.place("a"))
    assert path.name in caught.value.message
    assert path.exists()
    run("rm", "-r", str(path))
    rig.yard.create_storage_repository(rig.format, rig.place("a"))
    assert not os.listdir(root(rig) / "volumes")
