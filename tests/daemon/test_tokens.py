"""Tokens: who is known by one, what is kept of it, and when it ends."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.daemon.tokens import Tokens
from diskyard.host import Clock, Host


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
    assert [path.name for path in files] == ["tokens.json"]
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
        with pytest.raises(errors.InvalidParameter, match="lasts"):
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
