"""How many parts a run's stories are told in, each with a seed of its own."""

from __future__ import annotations

from diskyard.testing.effort import Effort


def parts(count: int) -> range:
    """One part in a quick run, all of them in a thorough one."""
    return range(count if Effort.of_environment().thorough else 1)
