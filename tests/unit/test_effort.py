"""What a run tries follows from its seed, and in so many rounds everything is tried."""

from __future__ import annotations

from diskyard.testing.effort import Effort

ITEMS = list(range(1000))


def test_a_quick_run_tries_a_sample_that_the_seed_decides() -> None:
    chosen = Effort(1).sample(ITEMS, 10, "purpose")
    assert len(chosen) == 10
    assert chosen == sorted(chosen) == Effort(1).sample(ITEMS, 10, "purpose")
    assert chosen != Effort(2).sample(ITEMS, 10, "purpose")
    assert chosen != Effort(1).sample(ITEMS, 10, "another")


def test_a_thorough_round_tries_everything() -> None:
    assert Effort(1, thorough=True).sample(ITEMS, 10) == ITEMS


def test_thorough_rounds_try_everything_between_them() -> None:
    rounds = [Effort(seed, thorough=True).sample(ITEMS, 10, rounds=8) for seed in range(21, 29)]
    assert all(len(found) == 125 for found in rounds)
    assert sorted(item for found in rounds for item in found) == ITEMS
