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


def test_a_sample_of_kinds_has_each_before_a_second_of_any() -> None:
    kinds = ["write"] * 50 + ["run"] + ["write"] * 40 + ["link", "sync", "sync"]
    for seed in range(20):
        chosen = Effort(seed).sample_of_kinds(kinds, 6, "a")
        assert chosen == sorted(set(chosen))
        assert sorted(kinds[index] for index in chosen) == ["link", "run", "sync", "sync", "write", "write"]
    assert Effort(1).sample_of_kinds(kinds, 6, "a") == Effort(1).sample_of_kinds(kinds, 6, "a")
    tried = {index for seed in range(200) for index in Effort(seed).sample_of_kinds(kinds, 6, "a")}
    assert len(tried) > 80, "another seed tries others"
    assert Effort(1, thorough=True).sample_of_kinds(kinds, 6, "a") == list(range(len(kinds)))
    assert Effort(1).sample_of_kinds(kinds[:3], 6, "a") == [0, 1, 2]
