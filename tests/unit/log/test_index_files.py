"""An index says what was saved, or that it has nothing: never anything else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diskyard import errors
from diskyard.host import Host
from diskyard.log.index.keeper import IndexKeeper
from diskyard.log.index.local import LocalIndex, is_bad
from diskyard.model.records import Attachment, entry_id
from diskyard.model.state import State
from tests.unit.model.test_state import CHANGE, possible
from tests.unit.records import HOST, MARKER, NOW, copy_hold, disk, image, uid, volume

NONCES = ["nonce before", "nonce"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


def index_in(folder: Path, marker: str = MARKER) -> LocalIndex:
    return LocalIndex(Host.real(), str(folder), marker)


def some_state(version: int = 7, count: int = 3) -> State:
    """One of everything, and a chain."""
    top = uid(f"v{count - 1}")
    return State.of(
        MARKER,
        version,
        "nonce",
        [
            image(uid("i0"), uid("v0"), held_for=(copy_hold(uid("copy")),), user_data={"z": 1, "a": [None]}),
            *(disk(uid(f"i{number}"), uid(f"v{number}")) for number in range(1, count)),
        ],
        [
            volume(uid("v0")),
            *(volume(uid(f"v{number}"), uid("i0")) for number in range(1, count)),
            volume(uid("doomed"), state="doomed"),
        ],
        [
            Attachment(
                id=uid("a"),
                image_id=uid(f"i{count - 1}"),
                host=HOST,
                owner="guest",
                mode="read_write",
                volume_ids=(top, uid("v0")),
                attached_at=NOW,
            )
        ],
    )


def on_tables(state: State) -> State:
    """The state as a log that keeps an index has it."""
    return IndexKeeper(index_in(Path("/nowhere")), records_least=0).stands(state, [])


def assert_same(found: State, expected: State) -> None:
    """The same records, and the same answers from the indexes over them."""
    assert (found.marker, found.version, found.nonce) == (expected.marker, expected.version, expected.nonce)
    assert found.whole() == expected.whole()
    for name, records in expected.tables().items():
        table = found.tables()[name]
        assert len(table) == len(records)
        assert dict(table.items()) == dict(records.items())
        for key in records:
            assert table[key] == records[key]


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def blocks_in(folder: Path) -> Path:
    return next(path for path in files_in(folder) if path.suffix == ".blocks")


def head_in(folder: Path) -> Path:
    return next(path for path in files_in(folder) if path.name == "head")


def test_what_was_saved_is_loaded(folder: Path) -> None:
    state = some_state()
    saved = index_in(folder).save(state, NONCES)
    loaded = index_in(folder).load()
    assert saved is not None
    assert loaded is not None
    assert_same(saved, state)
    assert_same(loaded.state, state)
    assert loaded.nonces == NONCES
    assert list(loaded.state.images[uid("i0")].user_data) == ["z", "a"]  # kept as sent, in its order


def test_nothing_was_saved(folder: Path) -> None:
    assert index_in(folder).load() is None


def test_only_this_user_may_read_it(folder: Path) -> None:
    index_in(folder).save(some_state(), NONCES)
    assert [path.stat().st_mode & 0o777 for path in files_in(folder)] == [0o600, 0o600]


def test_an_empty_state_is_a_state(folder: Path) -> None:
    index_in(folder).save(State.of(MARKER, 1, "nonce"), NONCES)
    loaded = index_in(folder).load()
    assert loaded is not None
    assert_same(loaded.state, State.of(MARKER, 1, "nonce"))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(CHANGE, max_size=8), max_size=5), reload=st.booleans())
def test_every_change_is_saved(tmp_path: Path, batches: list[list[tuple[str, Any]]], *, reload: bool) -> None:
    """State and index go on together; so do two processes that load what the other saved."""
    shutil.rmtree(tmp_path / "index", ignore_errors=True)
    plain = State.of(MARKER, 0, "nonce")
    indexed = on_tables(plain)
    for number, batch in enumerate(batches, start=1):
        for verb, word in batch:
            if possible(plain, verb, word):
                plain, indexed = getattr(plain, verb)(word), getattr(indexed, verb)(word)
        plain, indexed = numbered(plain, number), numbered(indexed, number)
        assert_same(indexed, plain)
        saved = index_in(tmp_path / "index").save(indexed, NONCES)
        assert saved is not None
        loaded = index_in(tmp_path / "index").load()
        assert loaded is not None
        assert_same(indexed, plain)
        indexed = loaded.state if reload else saved
        assert_same(indexed, plain)


def numbered(state: State, version: int) -> State:
    tables = state.tables()
    return State(state.marker, version, "nonce").with_tables(tables)


def test_an_older_state_is_not_saved_over_a_newer_one(folder: Path) -> None:
    index_in(folder).save(some_state(7), NONCES)
    assert index_in(folder).save(some_state(7), NONCES) is None
    assert index_in(folder).save(some_state(6), NONCES) is None
    loaded = index_in(folder).load()
    assert loaded is not None
    assert loaded.state.version == 7


def test_while_another_process_writes_nothing_is_saved(folder: Path) -> None:
    index_in(folder).save(some_state(7), NONCES)
    files = Host.real().files
    lock = files.lock_folder(str(head_in(folder).parent))
    assert index_in(folder).save(some_state(8), NONCES) is None
    os.close(lock)
    assert index_in(folder).save(some_state(8), NONCES) is not None


def test_another_marker_is_another_index(folder: Path) -> None:
    index_in(folder).save(some_state(), NONCES)
    assert index_in(folder, "other").load() is None
    assert index_in(folder, "../..").load() is None
    other = next(path for path in folder.iterdir()).parent / "x"
    shutil.copytree(head_in(folder).parent, other)
    own = Path(index_in(folder, "other")._folder)
    other.rename(own)
    assert index_in(folder, "other").load() is None


def test_what_has_grown_by_too_much_is_written_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diskyard.log.index.local._GARBAGE_LEAST_BYTES", 0)
    index = index_in(folder)
    state = index.save(some_state(1), NONCES)
    names = set()
    for version in range(2, 12):
        assert state is not None
        before = state
        state = index.save(
            numbered(state.put_image(disk(uid("new"), None, revision=entry_id(version, ""))), version), NONCES
        )
        assert [path.name for path in files_in(folder) if path.suffix == ".blocks"] == [
            blocks_in(folder).name
        ]
        names.add(blocks_in(folder).name)
        assert_same(before, before.whole())  # who reads from the old file goes on
    assert 1 < len(names) < 10
    loaded = index.load()
    assert loaded is not None
    assert loaded.state.images[uid("new")].revision == "11."


def test_a_crash_leaves_nothing_for_ever(folder: Path) -> None:
    index_in(folder).save(some_state(1), NONCES)
    left = blocks_in(folder).parent / f"{'0' * 32}.blocks"
    left.write_bytes(b"cut off")
    foreign = left.parent / "notes.txt"
    foreign.write_text("somebody's own")
    index_in(folder).save(some_state(2), NONCES)
    assert not left.exists()
    assert foreign.exists()
    index_in(folder).drop()
    assert files_in(folder) == [foreign]


@pytest.mark.parametrize("places", [[head_in], [blocks_in], [head_in, blocks_in]])
def test_what_is_deleted_in_use_is_written_anew(folder: Path, places: list[Callable[[Path], Path]]) -> None:
    index = index_in(folder)
    state = index.save(some_state(1), NONCES)
    assert state is not None
    for place in places:
        place(folder).unlink()
    assert_same(state, some_state(1))
    assert index.save(numbered(state, 2), NONCES) is not None
    loaded = index_in(folder).load()
    assert loaded is not None
    assert_same(loaded.state, some_state(2))


def test_a_dropped_index_is_gone(folder: Path) -> None:
    index = index_in(folder)
    index.save(some_state(), NONCES)
    index.drop()
    assert list(folder.iterdir()) == []
    index.drop()
    assert index.load() is None


# -- damage ---------------------------------------------------------------------------------


def expect_right_or_none(folder: Path, expected: State) -> bool:
    """Whatever is asked, the answer is right or an error; whether anything was noticed."""
    loaded = index_in(folder).load()
    if loaded is None:
        return True
    noticed = False
    for name, records in expected.tables().items():
        table = loaded.state.tables()[name]
        for key in [*records, uid("nobody")]:
            try:
                assert (key in table) == (key in records)
                assert key not in records or table[key] == records[key]
            except errors.RepositoryUnavailable:
                noticed = True
    try:
        assert_same(loaded.state, expected)
    except errors.RepositoryUnavailable:
        noticed = True
    assert is_bad(loaded.state) == noticed
    return noticed


def test_flipped_bytes_are_noticed(folder: Path) -> None:
    state = some_state()
    index_in(folder).save(state, NONCES)
    for path in files_in(folder):
        good = path.read_bytes()
        for at in range(0, len(good), 3):
            path.write_bytes(good[:at] + bytes([good[at] ^ 0x21]) + good[at + 1 :])
            assert expect_right_or_none(folder, state), f"byte {at} of {path.name}"
        path.write_bytes(good)
    assert not expect_right_or_none(folder, state)


def test_cuts_are_noticed(folder: Path) -> None:
    state = some_state()
    index_in(folder).save(state, NONCES)
    for path in files_in(folder):
        good = path.read_bytes()
        for length in range(0, len(good), 13):
            path.write_bytes(good[:length])
            assert expect_right_or_none(folder, state), f"{path.name} cut to {length}"
        path.write_bytes(good)


def test_a_file_that_is_cut_while_it_is_read_is_noticed(folder: Path) -> None:
    index_in(folder).save(some_state(count=200), NONCES)
    loaded = index_in(folder).load()
    assert loaded is not None
    os.truncate(blocks_in(folder), 5000)
    with pytest.raises(errors.RepositoryUnavailable):
        list(loaded.state.images.values())
    with pytest.raises(errors.RepositoryUnavailable):
        loaded.state.whole()
    assert is_bad(loaded.state)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


INSTEAD: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: path.unlink(),
    "an empty file": lambda path: path.write_bytes(b""),
    "a folder": _folder,
    "a link": _link,
    "a FIFO": _fifo,
    "another's": lambda path: path.write_bytes(b"x" * path.stat().st_size),
}


@pytest.mark.parametrize("place", [head_in, blocks_in], ids=["head", "blocks"])
@pytest.mark.parametrize("instead", INSTEAD)
def test_something_else_in_a_files_place(folder: Path, place: Callable[[Path], Path], instead: str) -> None:
    """Nothing is loaded, and saving again mends it, but for a folder, which is left alone."""
    index_in(folder).save(some_state(1), NONCES)
    INSTEAD[instead](place(folder))
    assert expect_right_or_none(folder, some_state(1))
    index_in(folder).save(some_state(2), NONCES)
    loaded = index_in(folder).load()
    if (place, instead) == (head_in, "a folder"):
        assert loaded is None
    else:
        assert loaded is not None
        assert_same(loaded.state, some_state(2))


@pytest.mark.parametrize("instead", ["a file", "a link", "a FIFO"])
def test_something_else_in_the_folders_place(folder: Path, tmp_path: Path, instead: str) -> None:
    """No index, and what a link leads to is left alone."""
    index = index_in(folder)
    own, elsewhere = Path(index._folder), tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "head").write_text("somebody's own")
    if instead == "a file":
        own.write_text("x")
    elif instead == "a link":
        own.symlink_to(elsewhere)
    else:
        os.mkfifo(own)
    assert index.save(some_state(), NONCES) is None
    assert index.load() is None
    index.drop()
    assert (elsewhere / "head").read_text() == "somebody's own"
    assert [path.name for path in elsewhere.iterdir()] == ["head"]


def test_an_index_of_another_layout_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr("diskyard.log.index.local.LAYOUT", "2.0-1")
        index_in(folder).save(some_state(1), NONCES)
    assert index_in(folder).load() is None
    index_in(folder).save(some_state(2), NONCES)
    assert index_in(folder).load() is not None


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    index = index_in(file)
    assert index.save(some_state(), NONCES) is None
    assert index.load() is None
    index.drop()
    assert file.read_text() == "x"


# -- several at once ------------------------------------------------------------------------

_WRITER = """
import sys
from pathlib import Path
from tests.unit.log.test_index_files import NONCES, index_in, numbered, some_state
index = index_in(Path(sys.argv[1]))
state = some_state(0, 40)
for version in range(int(sys.argv[2]), 60, 2):
    state = index.save(numbered(state, version), NONCES) or state
"""


def test_processes_that_write_at_once_leave_a_whole_index(folder: Path) -> None:
    command = [sys.executable, "-c", _WRITER, str(folder)]
    with subprocess.Popen([*command, "1"]) as one, subprocess.Popen([*command, "2"]) as other:
        while one.poll() is None or other.poll() is None:
            loaded = index_in(folder).load()
            if loaded is not None:
                assert_same(loaded.state, numbered(some_state(0, 40), loaded.state.version))
    assert (one.returncode, other.returncode) == (0, 0)
    loaded = index_in(folder).load()
    assert loaded is not None
    assert loaded.state.version >= 58
    assert len(files_in(folder)) == 2


def test_threads_read_one_state(folder: Path) -> None:
    expected = some_state(count=300)
    index_in(folder).save(expected, NONCES)
    loaded = index_in(folder).load()
    assert loaded is not None
    state, failed = loaded.state, list[str]()

    def read(first: int) -> None:
        keys = list(expected.images)[first:]
        failed.extend(key for key in keys if state.images[key] != expected.images[key])

    threads = [threading.Thread(target=read, args=(number * 10,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
