"""How much a run tries: a fair sample in ``scripts/test``, everything in ``scripts/torture``.

What is tried follows from the seed alone, so that a run that failed can be repeated.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
SEED_VARIABLE = "DISKYARD_SEED"
THOROUGH_VARIABLE = "DISKYARD_THOROUGH"


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to try.

    :param seed: decides what a sample holds, and every random choice.
    :param thorough: try everything, however long it takes: some of it over several rounds, each
        with the next seed.
    """

    seed: int = 0
    thorough: bool = False

    @classmethod
    def of_environment(cls) -> Effort:
        """As ``$DISKYARD_SEED`` and ``$DISKYARD_THOROUGH`` say."""
        return cls(
            int(os.environ.get(SEED_VARIABLE, "0")), os.environ.get(THOROUGH_VARIABLE, "") not in ("", "0")
        )

    def random(self, *purpose: object) -> random.Random:
        """Randomness for a purpose: the same for the same seed, whatever else is drawn."""
        return random.Random(":".join(map(str, (self.seed, *purpose))))

    def sample(self, items: Sequence[T], count: int, *purpose: object, rounds: int = 1) -> list[T]:
        """At most ``count`` of the items, in their order; all of them when thorough.

        :param rounds: over how many thorough rounds all of them are spread.
        """
        if self.thorough:
            return list(items[self.seed % rounds :: rounds])
        if len(items) <= count:
            return list(items)
        chosen = sorted(self.random("sample", *purpose).sample(range(len(items)), count))
        return [items[index] for index in chosen]
