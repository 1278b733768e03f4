"""What a storm writes down of its images: it notices wrong bytes, and takes nothing else for wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskyard.testing.attackers.ledger import Kept, Ledger
from diskyard.testing.attackers.sectors import SECTOR_BYTES, is_mixture, scribble
from diskyard.testing.effort import Effort

ONE, TWO, THREE = (bytes([number]) * SECTOR_BYTES * 2 for number in (1, 2, 3))
MIXED = ONE[:SECTOR_BYTES] + TWO[SECTOR_BYTES:]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


def kept_with(ledger: Ledger, *moments: tuple[bytes, bool]) -> Kept:
    kept = Kept("a", "11111111-0000-4000-8000-000000000000", "disk", "me", "new", state="there")
    for data, certain in moments:
        kept.add(ledger.keep_bytes(data), certain=certain)
    ledger.put(kept)
    return kept


def test_what_was_answered_must_be_there(ledger: Ledger) -> None:
    kept = kept_with(ledger, (ONE, True), (TWO, True))
    assert ledger.wrong(kept, TWO, kept) is None
    assert "wrong bytes" in (ledger.wrong(kept, ONE, kept) or "")
    assert kept.known() == ledger.keep_bytes(TWO)


def test_what_was_not_answered_may_be_there(ledger: Ledger) -> None:
    kept = kept_with(ledger, (ONE, True), (TWO, False))
    assert ledger.wrong(kept, ONE, kept) is None
    assert ledger.wrong(kept, TWO, kept) is None
    assert ledger.wrong(kept, THREE, kept) is not None
    assert ledger.wrong(kept, MIXED, kept) is not None
    assert kept.known() is None


def test_what_changed_while_it_was_read_may_be_either(ledger: Ledger) -> None:
    before, after = kept_with(ledger, (ONE, True)), kept_with(ledger, (ONE, True), (TWO, True))
    assert ledger.wrong(before, ONE, after) is None
    assert ledger.wrong(before, TWO, after) is None
    assert ledger.wrong(before, THREE, after) is not None


def test_a_guest_that_was_killed_leaves_some_of_its_sectors(ledger: Ledger) -> None:
    kept = kept_with(ledger, (ONE, True), (TWO, False))
    kept.mixed = True
    assert ledger.wrong(kept, MIXED, kept) is None
    assert ledger.wrong(kept, THREE, kept) is not None
    assert not is_mixture(MIXED[:SECTOR_BYTES], [ONE, TWO])


def test_a_copy_holds_what_its_source_held_meanwhile(ledger: Ledger) -> None:
    source = kept_with(ledger, (ONE, True))
    copy = Kept("b", "22222222-0000-4000-8000-000000000000", "snapshot", "me", "copy")
    copy.source = (source.place, source.image_id, source.settled)
    source.add(ledger.keep_bytes(TWO), certain=True)
    ledger.put(source)
    ledger.drop(source)
    ledger.take_from_source(copy)
    assert copy.allowed() == [ledger.keep_bytes(ONE), ledger.keep_bytes(TWO)]
    assert ledger.wrong(copy, THREE, copy) is not None


def test_too_much_has_happened_to_say(ledger: Ledger) -> None:
    kept = kept_with(ledger, (ONE, True))
    later = kept_with(ledger, *[(bytes([number]) * SECTOR_BYTES, True) for number in range(100)])
    assert ledger.wrong(kept, THREE, later) is None


def test_a_guests_writes_are_as_it_says(effort: Effort) -> None:
    rng = effort.random("scribble")
    for _ in range(50):
        data = bytes(SECTOR_BYTES * rng.randrange(1, 400))
        commands, states = scribble(data, rng)
        assert {len(state) for state in states} == {len(data)}
        assert (len(commands), commands[-1]) == (len(states) + 1, "flush")
        assert any(states[-1]) <= any("-P" in command for command in commands)


def test_a_guest_that_dies_between_two_writes(ledger: Ledger, effort: Effort) -> None:
    """Writes that overlap leave what is neither in the first state nor in the last."""
    rng = effort.random("overlaps")
    between = 0
    for _ in range(200):
        data = bytes(SECTOR_BYTES * 8)
        _, states = scribble(data, rng)
        kept = kept_with(ledger, (data, True))
        for state in states[:-1]:
            kept.add(ledger.keep_bytes(state), certain=False, between=True)
        kept.add(ledger.keep_bytes(states[-1]), certain=False)
        for held in states[:-1]:
            kept.mixed = True
            assert ledger.wrong(kept, held, kept) is None
            between += not is_mixture(held, [data, states[-1]])
            kept.mixed = False  # a guest that lived on: nothing may show what was there in between
            assert held in (data, states[-1]) or "between two writes" in (
                ledger.wrong(kept, held, kept) or ""
            )
    assert between
