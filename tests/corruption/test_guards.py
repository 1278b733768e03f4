"""The suite finds the defects it is there for: each guard is taken away, and a case must fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from diskyard import errors
from diskyard.host import Files
from diskyard.host.publishing import publish
from diskyard.log import codec, reading, replicas
from diskyard.log.store import Copies, LogKind
from diskyard.storage.localfs import log_store
from diskyard.storage.localfs.storage import LocalStorage
from diskyard.testing.corruption import GONE, Damage, Outside, flipped
from diskyard.testing.survey import Hung
from tests.conftest import Tally
from tests.corruption.cases import Bench, copies_of
from tests.corruption.test_hostile_records import expect_not_here
from tests.corruption.test_log_objects import expect_other_copy, expect_two_copies
from tests.corruption.test_volumes import expect_refused

Patch = pytest.MonkeyPatch


class _Same(bytes):
    """A checksum that is as it should be, whatever the other is."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = bytes.__hash__


def _no_checksum(patch: Patch) -> None:
    checksum = codec._checksum
    patch.setattr(codec, "_checksum", lambda *words: _Same(checksum(*words)))


def _no_link(patch: Patch) -> None:
    patch.setattr(reading, "check_link", lambda entry, state: None)


def _no_place(patch: Patch) -> None:
    for module in (reading, replicas):
        patch.setattr(module, "check_place", lambda entry, marker, number: None)


def _one_copy_written(patch: Patch) -> None:
    def first_only(files: Files, paths: Sequence[str], data: bytes, **words: Any) -> bool:
        return publish(files, paths[:1], data, **words)

    patch.setattr(log_store, "publish", first_only)


def _one_copy_read(patch: Patch) -> None:
    get = LocalStorage.get

    def first_only(self: LocalStorage, kind: LogKind, number: int) -> Copies:
        return get(self, kind, number)[0], None

    patch.setattr(LocalStorage, "get", first_only)


def _no_header_check(patch: Patch) -> None:
    patch.setattr(
        "diskyard.repository.volume_bytes.own_header_flaw", lambda read, file_size_bytes, size_bytes: None
    )


def _newest(bench: Bench) -> int:
    return bench.numbers("entry")[-1]


def _other_word(bench: Bench) -> Damage:
    """A letter of the newest entry's userData changed: its JSON stays right."""
    data = copies_of(bench.prepared, "entry", _newest(bench))[0].read_bytes()
    return flipped(data.rindex(b"other"), 0x01)


Case = Callable[[Bench, Outside], None]
GUARDS: dict[str, tuple[Callable[[Patch], None], Case]] = {
    "checksum": (
        _no_checksum,
        lambda bench, outside: expect_other_copy(
            bench, outside, _other_word(bench), "entry", _newest(bench), 0
        ),
    ),
    "link to the entry before": (_no_link, lambda bench, outside: expect_not_here(bench, "another history")),
    "repository of an entry": (
        _no_place,
        lambda bench, outside: expect_not_here(bench, "another repository"),
    ),
    "number of an entry": (_no_place, lambda bench, outside: expect_not_here(bench, "another number")),
    "second copy written": (_one_copy_written, lambda bench, outside: expect_two_copies(bench, outside, 0)),
    "second copy read": (
        _one_copy_read,
        lambda bench, outside: expect_other_copy(bench, outside, GONE, "entry", _newest(bench), 0),
    ),
    "header of a volume": (
        _no_header_check,
        lambda bench, outside: expect_refused(bench, outside, "data file"),
    ),
}


@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_that_is_gone_is_noticed(
    bench: Bench, outside: Outside, monkeypatch: Patch, tally: Tally, name: str
) -> None:
    """The case passes with the guard, and fails without it."""
    tally("corruption")
    remove_guard, case = GUARDS[name]
    case(bench, outside)
    remove_guard(monkeypatch)
    with pytest.raises((AssertionError, KeyError, OSError, errors.DiskyardError)) as caught:
        case(bench, outside)
    assert not isinstance(caught.value, Hung)
    tally("corruption", cases=1, runs=2)
