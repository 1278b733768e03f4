"""The judge of stories is judged: what it must find wrong, and what it must allow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diskyard.testing import verb_meanings as mean
from diskyard.testing.possibilities import Key, Possibilities, Seen

DISK: Key = ("a", "disk")
COPY: Key = ("b", "copy")
SEEN = Seen("virtual_disk", 1024, {}, "space", True, 0)


@pytest.fixture
def possible() -> Possibilities:
    """One disk of zeros, answered and seen."""
    possible = Possibilities()
    possible.answered(possible.begin(mean.create_disk(DISK, 1024, "space")))
    possible.see({DISK: SEEN})
    return possible


def test_what_was_answered_must_be_seen(possible: Possibilities) -> None:
    possible.answered(possible.begin(mean.set_user_data(DISK, 1)))
    with pytest.raises(AssertionError, match="cannot be"):
        possible.see({DISK: SEEN})


def test_what_was_refused_must_not_be_seen(possible: Possibilities) -> None:
    possible.refused(possible.begin(mean.set_user_data(DISK, 1)))
    with pytest.raises(AssertionError, match="cannot be"):
        possible.see({DISK: replace(SEEN, user_data=1)})


@pytest.mark.parametrize("user_data", [{}, 1])
def test_what_died_may_be_done_or_not_and_stays_so(possible: Possibilities, user_data: object) -> None:
    possible.died(possible.begin(mean.set_user_data(DISK, 1)))
    possible.see({DISK: replace(SEEN, user_data=user_data)})
    with pytest.raises(AssertionError, match="cannot be"):
        possible.see({DISK: replace(SEEN, user_data={} if user_data else 1)})


def test_what_is_under_way_is_never_undone(possible: Possibilities) -> None:
    removal = possible.begin(mean.remove(DISK))
    possible.see({DISK: SEEN})
    possible.see({})
    with pytest.raises(AssertionError, match="an error was answered"):
        possible.refused(removal)


def test_what_was_usable_stays_so(possible: Possibilities) -> None:
    with pytest.raises(AssertionError, match="cannot be"):
        possible.see({DISK: replace(SEEN, usable=False)})


@pytest.mark.parametrize("byte", [0, 1])
def test_a_copy_has_one_moment_of_its_source(possible: Possibilities, byte: int) -> None:
    copy = possible.begin(mean.copy(COPY, DISK[1], "virtual_disk", {}))
    possible.change(mean.write(DISK, 0, bytes([1]) * 1024))
    possible.answered(copy)
    with pytest.raises(AssertionError, match="bytes of b"):
        possible.see_bytes(COPY, bytes(512) + bytes([1]) * 512)
    possible.see_bytes(COPY, bytes([byte]) * 1024)
    with pytest.raises(AssertionError, match="bytes of b"):
        possible.see_bytes(COPY, bytes([1 - byte]) * 1024)


def test_of_two_removals_only_one_is_answered(possible: Possibilities) -> None:
    first, second = possible.begin(mean.remove(DISK)), possible.begin(mean.remove(DISK))
    possible.answered(first)
    with pytest.raises(AssertionError, match="cannot have been done"):
        possible.answered(second)
