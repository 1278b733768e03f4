"""A place keeps its identity, and all that is its own: given again, by mistake, cut short, or half copied."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from diskyard import Diskyard, MiB, errors
from diskyard.host import Files
from diskyard.log.codec import RepositoryRecord, decode, encode
from diskyard.model.results import Attached
from tests.api.helpers import COMMIT_ONLY, SIZE, Killed, Rig, graph, picture, run, settle
from tests.mounts import mounted

ONE = (1, 0, MiB)
_DAYS_S = 3 * 86400


def copied(rig: Rig, name: str = "c", of: str = "a") -> Path:
    """A byte copy of a repository."""
    path = Path(rig.place(name)["path"])
    shutil.copytree(rig.place(of)["path"], path)
    return path


def give(yard: Diskyard, rig: Rig, name: str = "c") -> None:
    yard.connect_storage_repository(name, rig.format, {**rig.place(name), "newMarker": True})


def marker_of(rig: Rig, name: str) -> str:
    """What both copies of the record say."""
    markers = {
        decode((Path(rig.place(name)["path"]) / f"repository.{copy}").read_bytes(), RepositoryRecord)[
            0
        ].marker
        for copy in "ab"
    }
    (marker,) = markers
    return marker


def forget_place(rig: Rig, name: str) -> None:
    """Make the record one of an earlier version, which noted nothing of its place."""
    for copy in "ab":
        path = Path(rig.place(name)["path"]) / f"repository.{copy}"
        record, _ = decode(path.read_bytes(), RepositoryRecord)
        path.write_bytes(encode(msgspec.structs.replace(record, place="", given=False)))


@contextmanager
def guest(attached: Attached) -> Iterator[None]:
    """A QEMU program that has a disk open for writing."""
    words = ["qemu-io", graph(attached)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write("write -P 5 0 65536\n")
        program.stdin.flush()
        assert "wrote" in program.stdout.readline()
        yield


def trim(rig: Rig, yard: Diskyard, name: str, image: str) -> None:
    """Let so many entries come, and be so old, that the first of them are gone."""
    log = Path(rig.place(name)["path"]) / "log"
    first = min(log.iterdir())
    for number in range(260):
        yard.set_user_data(name, image, {"n": number})
    old = time.time() - _DAYS_S
    for path in log.iterdir():
        os.utime(path, (old, old))
    for number in range(80):
        yard.set_user_data(name, image, {"n": -number})
    assert min(log.iterdir()) != first


def test_given_again_after_its_entry_was_trimmed(rig: Rig) -> None:
    """The record says whose marker it is: nothing is dropped that the copy keeps, by whoever repeats it."""
    disk = rig.disk("a", ONE)
    copied(rig)
    yard = rig.host("two", connect=())
    give(yard, rig)
    yard.connect_storage_repository("b", rig.format, rig.place("b"))
    marker = marker_of(rig, "c")
    trim(rig, yard, "c", disk)
    used = yard.create_virtual_disk("c", SIZE)
    copy = yard.copy_image("b", disk, options=COMMIT_ONLY)
    rig.write("c", disk, (9, 0, MiB), yard=yard)
    with guest(yard.prepare_image("c", used, options={"owner": "guest"})):
        before = rig.repository("c", yard).state()
        another = rig.host("three", connect=("b",))
        give(another, rig)
        assert marker_of(rig, "c") == marker
        after = rig.repository("c", another).state()
        assert (after.version, after.nonce) == (before.version, before.nonce)
        assert after.held
        assert after.attachments
    settle(another, "c", "b")
    rig.expect("b", copy, picture(SIZE, ONE), yard=another)


def test_an_original_is_no_copy(rig: Rig) -> None:
    """Not even where this process has nothing of it connected."""
    disk, used = rig.disk("a", ONE), rig.disk("a")
    copy = rig.yard.copy_image("b", disk, options=COMMIT_ONLY)
    rig.write("a", disk, (9, 0, MiB))
    marker = marker_of(rig, "a")
    another = rig.host("three", connect=())
    prepared = rig.yard.prepare_image("a", used, options={"owner": "guest"})
    with guest(prepared), pytest.raises(errors.InvalidParameter, match="not a copy"):
        give(another, rig, "a")
    rig.yard.teardown_image("a", used, options={"owner": "guest"})
    with pytest.raises(errors.InvalidParameter, match="not a copy"):
        give(another, rig, "a")
    assert marker_of(rig, "a") == marker
    settle(rig.yard, "a", "b")
    rig.expect("b", copy, picture(SIZE, ONE))


def _a_guest(rig: Rig, yard: Diskyard, name: str, disk: str) -> Callable[[], None]:
    """One that nobody prepared."""
    path = (
        rig.repository(name, yard).layer(next(iter(rig.repository(name, yard).state().volumes.values()))).path
    )
    program = subprocess.Popen(
        ["qemu-io", "-f", "raw", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write("read 0 512\n")
    program.stdin.flush()
    assert "read" in program.stdout.readline()

    def end() -> None:
        program.communicate()

    return end


def _an_attachment(rig: Rig, yard: Diskyard, name: str, disk: str) -> Callable[[], None]:
    del rig
    words = {"owner": "reader"}
    yard.prepare_image(name, disk, options={**words, "read_only": True})
    return lambda: yard.teardown_image(name, disk, options=words)


def _a_copy(rig: Rig, yard: Diskyard, name: str, disk: str) -> Callable[[], None]:
    yard.connect_storage_repository("b", rig.format, rig.place("b"))
    copy = yard.copy_image("b", disk, options=COMMIT_ONLY)
    rig.write(name, disk, (9, 0, MiB), yard=yard)

    def end() -> None:
        settle(yard, "b", name)
        rig.expect("b", copy, picture(SIZE, ONE), yard=yard)

    return end


@pytest.mark.parametrize("begin", [_a_guest, _an_attachment, _a_copy])
@pytest.mark.parametrize(
    ("name", "noted"),
    [("c", True), ("c", False), ("a", False)],
    ids=["copy", "copy of 1.0", "original of 1.0"],
)
def test_what_is_of_the_place_itself_is_not_dropped(
    rig: Rig, name: str, begin: Callable[[Rig, Diskyard, str, str], Callable[[], None]], *, noted: bool
) -> None:
    """A copy that was used under its original's marker, and an original whose record does not say so."""
    disk = rig.disk("a", ONE)
    copied(rig)
    if not noted:
        forget_place(rig, name)
    yard = rig.host("two", connect=(name,))
    end = begin(rig, yard, name, disk)
    marker = marker_of(rig, name)
    another = rig.host("three", connect=())
    with pytest.raises(errors.RepositoryInUse) as caught:
        give(another, rig, name)
    assert "alone" in caught.value.advice
    assert marker_of(rig, name) == marker
    end()
    yard.disconnect_storage_repository(name)
    if begin is not _a_copy or name == "c":
        give(another, rig, name)
        assert marker_of(rig, name) != marker
        settle(another, name)


def test_given_by_an_earlier_version(rig: Rig) -> None:
    """Its entry tells for as long as it is there, and then the record does."""
    disk = rig.disk("a", ONE)
    copied(rig)
    yard = rig.host("two", connect=())
    give(yard, rig)
    marker = marker_of(rig, "c")
    yard.disconnect_storage_repository("c")
    forget_place(rig, "c")
    give(yard, rig)
    assert marker_of(rig, "c") == marker
    trim(rig, yard, "c", disk)
    give(rig.host("three", connect=()), rig)
    assert marker_of(rig, "c") == marker


@pytest.mark.parametrize("kind", ["checkpoints", "log"])
@pytest.mark.parametrize("copy", ["a", "b"])
@pytest.mark.parametrize("of", ["b", "a"])
def test_a_misplaced_copy_of_an_old_object(rig: Rig, kind: str, copy: str, of: str) -> None:
    """Of another repository, or of another number: the marker is changed, and all stays readable."""
    disk = rig.disk("a", ONE)
    rig.disk("b")
    path = copied(rig)
    old = min((path / kind).glob(f"*.{copy}"))
    other = sorted((Path(rig.place(of)["path"]) / (kind if of == "b" else "log")).glob("*.a"))[-1]
    shutil.copy(other, old)
    yard = rig.host("two", connect=())
    give(yard, rig)
    assert marker_of(rig, "c") != marker_of(rig, "a")
    rig.expect("c", disk, picture(SIZE, ONE), yard=yard)
    settle(yard, "c")
    assert yard.check_storage_repository("c", options={"deep": True}) == []


def test_a_misplaced_copy_where_the_marker_was_given(rig: Rig) -> None:
    """Nothing of the place's own is deleted for it."""
    disk = rig.disk("a", ONE)
    rig.disk("b")
    path = copied(rig)
    yard = rig.host("two", connect=())
    give(yard, rig)
    marker = marker_of(rig, "c")
    for kind in ("checkpoints", "log"):
        shutil.copy(min((Path(rig.place("b")["path"]) / kind).glob("*.a")), min((path / kind).glob("*.a")))
    another = rig.host("three", connect=())
    give(another, rig)
    assert marker_of(rig, "c") == marker
    rig.expect("c", disk, picture(SIZE, ONE), yard=another)
    settle(another, "c")
    assert another.check_storage_repository("c", options={"deep": True}) == []


def _cut_short(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], None]:
    """End the process at the n-th renaming of a record."""
    original, seen = Files.replace, []

    def replace(self: Files, path: str, data: bytes, **words: object) -> None:
        if os.path.basename(path).startswith("repository."):
            seen.append(path)
            if len(seen) == at:
                raise Killed
        original(self, path, data, **words)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(Files, "replace", replace)
    return monkeypatch.undo


def test_cut_short_between_the_copies_of_the_record(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connected without more, it is what it has become; its original's marker does not come back."""
    disk = rig.disk("a", ONE)
    for number in range(3):
        rig.yard.set_user_data("a", disk, {"n": number})
    path = copied(rig)
    undo = _cut_short(monkeypatch, 2)
    with pytest.raises(errors.InternalError):
        give(rig.host("two", connect=()), rig)
    undo()
    records = [decode((path / f"repository.{copy}").read_bytes(), RepositoryRecord)[0] for copy in "ab"]
    assert records[1].marker == marker_of(rig, "a") != records[0].marker
    another = rig.host("three", connect=("a", "c"))
    assert marker_of(rig, "c") == records[0].marker
    rig.write("c", disk, (9, 0, MiB), yard=another)
    rig.expect("a", disk, picture(SIZE, ONE), yard=another)


def test_a_copy_of_one_that_was_cut_short(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not get the marker that was meant for the place that it was copied from."""
    disk = rig.disk("a", ONE)
    copied(rig)
    undo = _cut_short(monkeypatch, 1)
    with pytest.raises(errors.InternalError):
        give(rig.host("two", connect=()), rig)
    undo()
    copied(rig, "d", "c")
    yard = rig.host("three", connect=("a",))
    give(yard, rig, "c")
    give(yard, rig, "d")
    assert len({marker_of(rig, name) for name in "acd"}) == 3
    for name in "acd":
        rig.expect(name, disk, picture(SIZE, ONE), yard=yard)


def test_a_copy_of_the_whole_file_system(rig: Rig, tmp_path: Path) -> None:
    """Nothing in it tells it from its original; that both are there does."""
    (tmp_path / "again").mkdir()
    with mounted(tmp_path / "fs", ["mkfs.ext4", "-q"], 64 * MiB) as place:
        (tmp_path / "repo-c").symlink_to(place)
        rig.yard.create_storage_repository(rig.format, rig.place("c"))
        rig.yard.connect_storage_repository("c", rig.format, rig.place("c"))
        disk = rig.disk("c", ONE)
        os.sync()
        shutil.copy(tmp_path / "fs" / "disk", tmp_path / "clone")
        run("mount", "-o", "loop", str(tmp_path / "clone"), str(tmp_path / "again"))
        try:
            (tmp_path / "repo-d").symlink_to(tmp_path / "again")
            with pytest.raises(errors.InvalidParameter, match="not a copy") as caught:
                give(rig.host("two", connect=()), rig, "d")
            assert "its original" in caught.value.advice
            give(rig.yard, rig, "d")
            assert marker_of(rig, "d") != marker_of(rig, "c")
            marker = marker_of(rig, "d")
            give(rig.yard, rig, "d")
            assert marker_of(rig, "d") == marker
            for name in "cd":
                rig.expect(name, disk, picture(SIZE, ONE))
        finally:
            rig.close()
            run("umount", str(tmp_path / "again"))
