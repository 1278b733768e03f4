"""Objects in each other's places, beyond the end, and strangers among them; and what is beside the log."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from diskyard import errors
from diskyard.host import Host
from diskyard.log.codec import Progress, decode, encode
from diskyard.log.store import LogKind
from diskyard.model.records import entry_id
from diskyard.model.transaction import Entry
from diskyard.model.volume_name import VolumeName
from diskyard.storage.localfs import layout
from diskyard.testing.corruption import DAMAGES, GONE, REPLACEMENTS, Outside, apply_to_all, remove
from diskyard.testing.effort import Effort
from diskyard.testing.survey import survey
from diskyard.testing.world import World
from tests.conftest import Tally
from tests.corruption.cases import Bench, copies_of, expect_readable, expect_whole
from tests.corruption.test_volumes import volume_of

ID = "99999999-2222-4333-8444-555555555555"


def _entries(world: World) -> list[int]:
    names = (world.folder / "a" / "log").iterdir()
    return sorted({number for path in names if (number := layout.log_number(path.name)) is not None})


def _checkpoints(world: World) -> list[int]:
    names = (world.folder / "a" / "checkpoints").iterdir()
    return sorted({number for path in names if (number := layout.log_number(path.name)) is not None})


def _copy(world: World, kind: LogKind, source: int, target: int, *, copies: tuple[int, ...] = (0, 1)) -> None:
    of, to = copies_of(world, kind, source), copies_of(world, kind, target)
    for copy in copies:
        shutil.copyfile(of[copy], to[copy])


def _swap_newest(world: World) -> None:
    first, second = (
        copies_of(world, "entry", _entries(world)[-2]),
        copies_of(world, "entry", _entries(world)[-1]),
    )
    for one, other in zip(first, second, strict=True):
        data = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(data)


def _from_b(world: World) -> None:
    number = _entries(world)[-1]
    for path in copies_of(world, "entry", number):
        shutil.copyfile(world.folder / "b" / "log" / f"{1:016x}.a", path)


def _gap(world: World) -> None:
    for path in copies_of(world, "entry", _entries(world)[-3]):
        path.unlink()


def _stranger(name: str) -> Callable[[World], None]:
    def apply(world: World) -> None:
        (world.folder / "a" / name).write_bytes(b"of nobody")

    return apply


#: What makes the log of a end early or be of another place: read-only, and named.
READ_ONLY: dict[str, Callable[[World], None]] = {
    "the newest entries swapped": _swap_newest,
    "an entry of the other repository": _from_b,
    "an entry under the next number": lambda w: _copy(w, "entry", _entries(w)[-1], _entries(w)[-1] + 1),
    "a first copy under the next number": lambda w: _copy(
        w, "entry", _entries(w)[-1], _entries(w)[-1] + 1, copies=(0,)
    ),
    "a second copy under the next number": lambda w: _copy(
        w, "entry", _entries(w)[-1], _entries(w)[-1] + 1, copies=(1,)
    ),
    "an entry beyond the end": lambda w: _copy(w, "entry", _entries(w)[-1], _entries(w)[-1] + 5),
    "an entry at the end of all numbers": lambda w: _copy(w, "entry", _entries(w)[-1], (1 << 64) - 1),
    "a gap": _gap,
    "rubbish under a high number": _stranger("log/00000000ffffffff.a"),
    "a checkpoint of rubbish under a high number": _stranger("checkpoints/00000000ffffffff.b"),
    "a checkpoint under a higher number": lambda w: _copy(
        w, "checkpoint", _checkpoints(w)[-1], _entries(w)[-1] + 1
    ),
}


@pytest.mark.parametrize("name", READ_ONLY)
def test_out_of_place(bench: Bench, outside: Outside, tally: Tally, name: str) -> None:
    """The state before is shown, nothing is changed, deleted or published."""
    tally("corruption")
    with bench.world() as world:
        READ_ONLY[name](world)
        before = {path: path.read_bytes() for path in (world.folder / "a" / "log").iterdir()}
        found = survey(world)
        expect_readable(world)
        assert isinstance(found.errors["create in a"], errors.CorruptRecord)
        assert "entry " in found.errors["create in a"].message
        assert any("entry " in words for words in found.listed), found.listed
        assert {path: path.read_bytes() for path in (world.folder / "a" / "log").iterdir()} == before
        assert "create in b" not in found.errors
    tally("corruption", cases=1, runs=1)


def _older_checkpoint_under_newest(world: World) -> None:
    _copy(world, "checkpoint", _checkpoints(world)[0], _checkpoints(world)[-1])


def _swapped_checkpoints(world: World) -> None:
    old, new = copies_of(world, "checkpoint", _checkpoints(world)[0])[0], _checkpoints(world)[-1]
    data = old.read_bytes()
    shutil.copyfile(copies_of(world, "checkpoint", new)[0], old)
    copies_of(world, "checkpoint", new)[0].write_bytes(data)


def _copies_of_history(world: World) -> None:
    _copy(world, "entry", _entries(world)[1], _entries(world)[2], copies=(1,))


def _progress_of_another(world: World) -> None:
    data = encode(Progress(image_id=ID, host=Host.real().identity, fix="mend", stage="1/2", percent=50))
    (world.folder / "a" / "progress" / world.names["d"]).write_bytes(data)


def _junk(world: World) -> None:
    for folder in layout.FOLDERS:
        for number in range(10_000):
            (world.folder / "a" / folder / f"junk-{number}").touch()


def _odd_names(world: World) -> None:
    names = (
        b"\xff\xfe", b"x" * 255, b"a\nb", b" ", b"..hidden", b"%s%n", "ü".encode(), b"0000000000000001.c",
        b"000000000000001.a", b"FFFFFFFFFFFFFFFF.a", b"tmp.x.y.1.2.3.4", b"tmp.\xff.\xff.1.2.3.4",
        b"tmp." + b"0" * 32 + b"." + b"0" * 32 + b"." + b"9" * 100 + b".1.1.1",
        b"99999999-2222-4333-8444-555555555555\n", b"99999999-2222-4333-8444-\xff",
    )  # fmt: skip
    for folder in layout.FOLDERS:
        for name in names:
            path = os.path.join(os.fsencode(world.folder / "a" / folder), name)
            with open(path, "wb") as file:
                file.write(b"of nobody")


def _odd_kinds(world: World) -> None:
    root = world.folder / "a"
    own = Host.real().identity
    leftover = f"tmp.{own.machine_id}.{'0' * 32}.1.1.1.1"
    for folder in layout.FOLDERS:
        (root / folder / leftover).symlink_to("/etc/hostname")
        (root / folder / "folder").mkdir()
        os.mkfifo(root / folder / "fifo")


#: What changes nothing for anybody. What is listed is cleaned, or is for people to decide.
HARMLESS: dict[str, Callable[[World], None]] = {
    "an older checkpoint under the newest number": _older_checkpoint_under_newest,
    "first copies of checkpoints swapped": _swapped_checkpoints,
    "a second copy of another entry": _copies_of_history,
    "the progress of another image": _progress_of_another,
    "thousands of strange files": _junk,
    "odd names": _odd_names,
    "odd things": _odd_kinds,
    "a volume under another number": lambda w: _duplicate_volume(w),
    "the locks file with bytes": lambda w: _write_locks(w, b"x" * 100),
}


def _duplicate_volume(world: World) -> None:
    """A copy of a volume under the name that another entry of the same history would have given it."""
    path = volume_of(world, "other")
    oldest = min((world.folder / "a" / "log").glob("*.a"))
    entry, _ = decode(oldest.read_bytes(), Entry)
    name = VolumeName.parse(path.name)
    assert name is not None
    another = replace(name, named_by=entry_id(entry.number, entry.nonce))
    assert another != name
    shutil.copyfile(path, path.with_name(str(another)))


def _write_locks(world: World, data: bytes) -> None:
    (world.folder / "a" / "locks").write_bytes(data)


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless(bench: Bench, outside: Outside, tally: Tally, name: str) -> None:
    """Every verb works, every image has its bytes."""
    tally("corruption")
    with bench.world() as world:
        HARMLESS[name](world)
        found = survey(world)
        assert not found.errors, found.errors
        expect_whole(world, found)
        later = survey(world, "later", only_ask=True)
        assert not later.errors
        listed = [words for words in later.listed if "only people can decide" not in words]
        assert not listed, listed
    tally("corruption", cases=1, runs=1)


def test_a_lost_volume_is_not_found_under_another_number(bench: Bench, tally: Tally) -> None:
    """A duplicate does not stand in for it; it has the id, and not the name."""
    tally("corruption")
    with bench.world() as world:
        _duplicate_volume(world)
        volume_of(world, "other").unlink()
        found = survey(world, only_ask=True)
        assert any(world.names["other"] in words for words in found.listed), found.listed
        assert isinstance(found.errors[f"prepare {world.names['other']} in a"], errors.ImageBroken)
    tally("corruption", cases=1, runs=1)


# -- beside the log --------------------------------------------------------------------------


def test_one_record_of_the_repository(bench: Bench, outside: Outside, effort: Effort, tally: Tally) -> None:
    """Connecting writes it again."""
    tally("corruption")
    chosen = effort.sample([(damage, copy) for damage in DAMAGES for copy in "ab"], 6, "record")
    for damage, copy in chosen:
        with bench.world() as world:
            path = world.folder / "a" / f"repository.{copy}"
            whole = path.read_bytes()
            damage.apply(path, outside)
            found = survey(world)
            assert not found.errors, found.errors
            expect_whole(world, found)
            if damage.name != "folder with something in it":
                assert path.read_bytes() == whole
        outside.judge()
    tally("corruption", cases=len(chosen), runs=len(chosen))


def test_both_records_of_the_repository(bench: Bench, outside: Outside, effort: Effort, tally: Tally) -> None:
    """It is refused by its path; the other one is used as ever."""
    tally("corruption")
    chosen = effort.sample(DAMAGES, 5, "records")
    for damage in chosen:
        with bench.world() as world:
            apply_to_all(damage, [world.folder / "a" / f"repository.{copy}" for copy in "ab"], outside)
            found = survey(world)
            error = found.errors["connect a"]
            assert isinstance(error, errors.CorruptRecord | errors.NotARepository)
            assert str(world.folder / "a") in error.message
            expect_whole(world, found, but=lambda place, image_id: place == "a")
            assert "create in b" not in found.errors
        outside.judge()
    tally("corruption", cases=len(chosen), runs=len(chosen))


@pytest.mark.parametrize("name", ["progress", "reserve"])
def test_what_may_be_lost(bench: Bench, outside: Outside, effort: Effort, tally: Tally, name: str) -> None:
    """Nothing depends on it."""
    tally("corruption")
    chosen = effort.sample(DAMAGES, 5, name)
    for damage in chosen:
        with bench.world() as world:
            path = world.folder / "a" / name
            if name == "progress":
                path = path / world.names["d"]
                path.write_bytes(encode(_progress(world)))
            else:
                path = path / "00001000.000"
            damage.apply(path, outside)
            found = survey(world)
            assert not found.errors, found.errors
            expect_whole(world, found)
        outside.judge()
    tally("corruption", cases=len(chosen), runs=len(chosen))


def test_a_reserve_that_leads_elsewhere(bench: Bench, outside: Outside, tally: Tally) -> None:
    """Nothing there is taken for a file of it, and nothing but a full storage needs it."""
    tally("corruption")
    for make in (lambda path: path.symlink_to(outside.somewhere), Path.touch, lambda path: None):
        with bench.world() as world:
            path = world.folder / "a" / "reserve"
            shutil.rmtree(path)
            make(path)
            found = survey(world)
            assert not found.errors, found.errors
            expect_whole(world, found)
        outside.judge()
    tally("corruption", cases=3, runs=3)


def _progress(world: World) -> Progress:
    host = Host.real().identity
    return Progress(image_id=world.names["d"], host=host, fix="optimize", stage="1/2", percent=50)


def test_the_file_of_locks(bench: Bench, outside: Outside, effort: Effort, tally: Tally) -> None:
    """Without it nothing is done that needs a lease, and it is named; it is never made anew."""
    tally("corruption")
    chosen = [GONE, *effort.sample(REPLACEMENTS, 3, "locks")]
    for damage in chosen:
        if damage.name == "second name of a secret":
            continue  # a lock on its bytes neither reads nor changes it
        with bench.world() as world:
            path = world.folder / "a" / "locks"
            damage.apply(path, outside)
            found = survey(world)
            expect_readable(world)
            assert isinstance(found.errors["create in a"], errors.StorageError)
            assert str(path) in found.errors["create in a"].message
            assert "create in b" not in found.errors
            assert not path.is_file() or path.is_symlink()
        outside.judge()
    tally("corruption", cases=len(chosen), runs=len(chosen))


@pytest.mark.parametrize("folder", layout.FOLDERS)
def test_a_folder_that_leads_elsewhere(bench: Bench, outside: Outside, tally: Tally, folder: str) -> None:
    """It is refused by name, and nothing there is touched."""
    tally("corruption")
    for make in (lambda path: path.symlink_to(outside.somewhere), Path.touch, lambda path: None):
        with bench.world() as world:
            path = world.folder / "a" / folder
            remove(path)
            make(path)
            found = survey(world)
            assert isinstance(found.errors["connect a"], errors.CorruptRecord)
            assert str(path) in found.errors["connect a"].message
            expect_whole(world, found, but=lambda place, image_id: place == "a")
        outside.judge()
    tally("corruption", cases=3, runs=3)
