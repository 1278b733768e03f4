"""Tokens: who is known by one, what is kept of it, and when it ends."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import stat
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.daemon.newest_time import NewestTime
from diskyard.daemon.tokens import Tokens
from diskyard.host import Clock, Files, Host
from diskyard.host.ownership import Grant


class SetClock(Clock):
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.at = datetime(2030, 1, 1, tzinfo=UTC)

    def now(self) -> str:
        return self.at.isoformat(timespec="microseconds").replace("+00:00", "Z")


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def tokens(state_dir: Path, clock: SetClock) -> Tokens:
    return Tokens(str(state_dir), dataclasses.replace(Host.real(), clock=clock))


def test_a_token_is_known_by_itself_alone(tokens: Tokens) -> None:
    made, text = tokens.create("ci", "write", ("fast", "backup"))
    assert re.fullmatch("dy_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", text)
    assert text.startswith(f"dy_{made.token_id}_")
    assert tokens.verify(text) == made
    assert (made.name, made.scope, made.repositories, made.expires_at) == (
        "ci", "write", ("fast", "backup"), None,
    )  # fmt: skip
    _, other = tokens.create("other", "admin")
    for wrong in (
        "", "dy_", text[:-1], text + "a", text.upper(), f" {text}", f"{text}\n", f"Bearer {text}", "é" * 55,
        f"dy_00000000_{text[12:]}", f"{text[:12]}{other[12:]}", "\ud800", text.replace("dy", "DY"),
    ):  # fmt: skip
        assert tokens.verify(wrong) is None, wrong


def test_the_secret_is_nowhere_on_disk(tokens: Tokens, tmp_path: Path) -> None:
    _, text = tokens.create("ci", "admin")
    secret = text[12:].encode()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["tokens.json", "tokens.revoked"]
    assert all(secret not in path.read_bytes() for path in files)
    assert secret not in repr(tokens.all()).encode()


def test_only_the_owner_reads_the_file(tokens: Tokens, state_dir: Path) -> None:
    path = state_dir / "tokens.json"
    before = os.umask(0)
    try:
        tokens.create("a", "read")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        tokens.revoke("a")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE((state_dir / "tokens.revoked").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_what_another_process_does_is_seen_at_once(tokens: Tokens, state_dir: Path) -> None:
    other = Tokens(str(state_dir))
    for _ in range(20):  # quicker than the times of files differ
        made, text = other.create("ci", "read")
        assert tokens.verify(text) == made
        other.revoke(made.token_id)
        assert tokens.verify(text) is None
        again, new = other.create("ci", "read")
        assert tokens.verify(text) is None
        assert tokens.verify(new) == again
        other.revoke("ci")
    os.unlink(state_dir / "tokens.json")
    assert tokens.all() == []


def test_an_expired_token_is_refused(tokens: Tokens, clock: SetClock) -> None:
    made, text = tokens.create("ci", "read", lasts_s=3600)
    assert made.expires_at == "2030-01-01T01:00:00.000000Z"
    clock.at += timedelta(seconds=3599.999999)
    assert tokens.verify(text) == made
    clock.at += timedelta(microseconds=1)
    assert tokens.verify(text) is None
    assert tokens.all() == [made]  # until it is revoked


def test_names(tokens: Tokens) -> None:
    made, _ = tokens.create("ops@host-1.example", "read")
    with pytest.raises(errors.InvalidParameter, match="already"):
        tokens.create("ops@host-1.example", "read")
    for name in ("", "a b", "a\n", "-a", "a" * 65, "é", "deadbeef"):
        with pytest.raises(errors.InvalidParameter, match="A token's name"):
            tokens.create(name, "read")
    with pytest.raises(errors.InvalidParameter, match="no token 'nobody'"):
        tokens.revoke("nobody")
    assert tokens.all() == [made]


def test_what_is_out_of_range(tokens: Tokens) -> None:
    for repositories in ((), ("",), ("x" * 256,), ("a\n",)):
        with pytest.raises(errors.InvalidParameter, match="repoId"):
            tokens.create("ci", "read", repositories)
    for lasts_s in (0, -1, 1 << 40):
        with pytest.raises(errors.InvalidParameter, match="valid for"):
            tokens.create("ci", "read", None, lasts_s)
    assert tokens.all() == []


def test_many_at_a_time_lose_none(state_dir: Path) -> None:
    made: list[str] = []

    def make(number: int) -> None:
        tokens = Tokens(str(state_dir))
        for name in ("a", "b", "c"):
            made.append(tokens.create(f"{name}{number}", "read")[1])

    threads = [threading.Thread(target=make, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tokens = Tokens(str(state_dir))
    assert len(made) == len(tokens.all()) == 18
    assert all(tokens.verify(text) for text in made)


@pytest.mark.parametrize(
    "damage",
    [b"", b"{}", b"\xff", b"[" * 100_000, b'[{"token": {}}]', b"null"],
    ids=["empty", "object", "bytes", "deep", "fields", "null"],
)
def test_a_damaged_file_refuses_everybody(tokens: Tokens, state_dir: Path, damage: bytes) -> None:
    _, text = tokens.create("ci", "admin")
    good = (state_dir / "tokens.json").read_bytes()
    (state_dir / "tokens.json").write_bytes(damage)
    for call in (lambda: tokens.verify(text), tokens.all, lambda: tokens.create("x", "read")):
        with pytest.raises(errors.StorageError, match="no token is valid"):
            call()
    assert (state_dir / "tokens.json").read_bytes() == damage
    (state_dir / "tokens.json").write_bytes(good)
    assert tokens.verify(text) is not None


def test_the_file_may_not_say_what_it_likes(tokens: Tokens, state_dir: Path) -> None:
    _, text = tokens.create("ci", "read", lasts_s=60)
    path = state_dir / "tokens.json"
    (kept,) = json.loads(path.read_bytes())
    for change in (
        {"scope": "root"}, {"name": "a\nb"}, {"expiresAt": "2999"}, {"tokenId": "x"}, {"colour": 1},
        {"repositories": [""]},
    ):  # fmt: skip
        path.write_text(json.dumps([{**kept, "token": {**kept["token"], **change}}]))
        with pytest.raises(errors.StorageError):
            tokens.verify(text)


def test_something_else_in_the_files_place(tokens: Tokens, state_dir: Path) -> None:
    (state_dir / "tokens.json").mkdir()
    with pytest.raises(errors.StorageError):
        tokens.verify("dy_00000000_" + "a" * 43)


# -- revoking where there is no room -----------------------------------------------------


class FullFiles(Files):
    """A disk on which what has no blocks yet gets none; writing into what has some goes on."""

    full = False

    def _refuse(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def create(self, path: str, *, mode_bits: int = 0o640, grant: Grant | None = None) -> int:
        self._refuse()
        return super().create(path, mode_bits=mode_bits, grant=grant)

    def keep_room(
        self, folder: str, sizes_bytes: Mapping[str, int], temporary: str, grant: Grant | None = None
    ) -> None:
        self._refuse()
        super().keep_room(folder, sizes_bytes, temporary, grant)


@pytest.fixture
def disk() -> FullFiles:
    return FullFiles(Host.real().identity)


@pytest.fixture
def on_disk(state_dir: Path, clock: SetClock, disk: FullFiles) -> Tokens:
    return Tokens(str(state_dir), dataclasses.replace(Host.real(), clock=clock, files=disk))


def test_a_full_disk_keeps_nobody_from_revoking(on_disk: Tokens, disk: FullFiles, state_dir: Path) -> None:
    made = [on_disk.create(f"t{number}", "read") for number in range(20)]
    beside = Tokens(str(state_dir))  # as a daemon has them
    assert all(beside.verify(text) == token for token, text in made)
    disk.full = True
    for token, text in made[:16]:
        assert on_disk.revoke(token.name, "user:root") == token
        assert beside.verify(text) is None
    with pytest.raises(errors.InvalidParameter, match="no token"):
        on_disk.revoke("t3")
    with pytest.raises(errors.NoSpace):
        on_disk.create("new", "read")
    again = Tokens(str(state_dir))
    assert again.all() == beside.all() == [token for token, _ in made[16:]]
    assert [again.verify(text) for _, text in made[:16]] == [None] * 16
    told = [(one.token_id, one.name, one.revoked_by, one.revoked_at[:4]) for one in again.revoked()]
    assert told == [(token.token_id, token.name, "user:root", "2030") for token, _ in made[:16]]
    disk.full = False
    kept = json.loads((state_dir / "tokens.json").read_bytes())
    assert len(kept) == 20
    _, text = on_disk.create("t3", "read")  # its name is free
    kept = json.loads((state_dir / "tokens.json").read_bytes())
    assert [one["token"]["name"] for one in kept] == ["t16", "t17", "t18", "t19", "t3"]
    assert beside.verify(text) is not None
    assert [beside.verify(old) for _, old in made[:16]] == [None] * 16


def test_marks_never_run_out_where_there_is_room(tokens: Tokens) -> None:
    for number in range(70):
        _, text = tokens.create(f"t{number}", "read")
        tokens.revoke(f"t{number}")
        assert tokens.verify(text) is None
    assert 1 <= len(tokens.revoked()) <= 32


def test_tokens_of_an_earlier_version_can_be_revoked(tokens: Tokens, state_dir: Path) -> None:
    _, text = tokens.create("ci", "read")
    (state_dir / "tokens.revoked").unlink()
    tokens.revoke("ci")
    assert tokens.verify(text) is None


def test_a_daemon_prepares_for_tokens_of_an_earlier_version(
    on_disk: Tokens, disk: FullFiles, state_dir: Path
) -> None:
    _, text = on_disk.create("ci", "read")
    (state_dir / "tokens.revoked").unlink()
    on_disk.prepare_to_revoke()
    disk.full = True
    on_disk.revoke("ci")
    assert on_disk.verify(text) is None


def test_where_no_room_was_prepared_the_error_says_what_to_do(
    on_disk: Tokens, disk: FullFiles, state_dir: Path
) -> None:
    _, text = on_disk.create("ci", "read")
    (state_dir / "tokens.revoked").unlink()
    disk.full = True
    with pytest.raises(errors.DiskyardError) as caught:
        on_disk.revoke("ci")
    assert "lets nobody in" in str(caught.value.advice)
    assert on_disk.verify(text) is not None


@pytest.mark.parametrize("cut", [9, 40])
def test_a_mark_that_was_cut_short_holds(tokens: Tokens, state_dir: Path, cut: int) -> None:
    made, text = tokens.create("ci", "read")
    path = state_dir / "tokens.revoked"
    whole = path.read_bytes()
    mark = f'{made.token_id} {{"tokenId":"{made.token_id}","name":"ci"'.encode()[:cut]
    path.write_bytes(mark + whole[len(mark) :])
    assert tokens.verify(text) is None
    assert [one.token_id for one in tokens.revoked()] == [made.token_id]


def test_damaged_marks_let_nobody_in(tokens: Tokens, state_dir: Path) -> None:
    _, text = tokens.create("ci", "read")
    path = state_dir / "tokens.revoked"
    path.write_bytes(b"garbage" + path.read_bytes()[7:])
    with pytest.raises(errors.StorageError, match="no token is valid"):
        tokens.verify(text)


def test_marks_are_written_into_blocks_that_are_there(tokens: Tokens, state_dir: Path) -> None:
    tokens.create("ci", "read")
    path = state_dir / "tokens.revoked"
    before = path.stat()
    tokens.create("other", "read")
    tokens.revoke("ci")
    after = path.stat()
    assert before.st_blocks * 512 >= before.st_size
    assert (before.st_ino, before.st_size, before.st_blocks) == (after.st_ino, after.st_size, after.st_blocks)


# -- clocks that are set back ------------------------------------------------------------


def newest(state_dir: Path, clock: SetClock) -> NewestTime:
    return NewestTime(dataclasses.replace(Host.real(), clock=clock), str(state_dir))


def test_a_clock_that_is_set_back_revives_no_token(tokens: Tokens, clock: SetClock, state_dir: Path) -> None:
    made, text = tokens.create("ci", "read", lasts_s=3600)
    kept = newest(state_dir, clock)
    kept.keep()
    clock.at += timedelta(hours=2)
    kept.keep()
    assert tokens.verify(text) is None
    clock.at -= timedelta(days=30)
    kept.keep()  # does not make it older
    for one in (tokens, Tokens(str(state_dir), dataclasses.replace(Host.real(), clock=clock))):
        assert one.verify(text) is None
        assert one.has_expired(made)
    later, new = tokens.create("new", "read", lasts_s=3600)
    assert later.expires_at == "2030-01-01T03:00:00.000000Z"
    assert tokens.verify(new) == later
    # Whoever corrects a clock that was ahead removes it.
    (state_dir / "newest-time").unlink()
    assert tokens.verify(text) == made


def test_a_damaged_newest_time_is_none(tokens: Tokens, clock: SetClock, state_dir: Path) -> None:
    made, text = tokens.create("ci", "read", lasts_s=3600)
    for damage in (b"", b"9999", b"\xff" * 27, b"9999-99-99T99:99:99.999999Z\n"):
        (state_dir / "newest-time").write_bytes(damage)
        assert tokens.verify(text) == made
        newest(state_dir, clock).keep()


def test_the_newest_time_is_written_into_blocks_that_are_there(
    state_dir: Path, clock: SetClock, on_disk: Tokens, disk: FullFiles
) -> None:
    kept = NewestTime(dataclasses.replace(Host.real(), clock=clock, files=disk), str(state_dir))
    kept.keep()
    disk.full = True
    clock.at += timedelta(hours=2)
    kept.keep()
    assert (state_dir / "newest-time").read_text() == "2030-01-01T02:00:00.000000Z"
