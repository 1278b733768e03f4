"""How much a run tries: a fair sample in ``scripts/test``, everything in ``scripts/torture``.

The choice depends only on the seed, so that a run that failed can be repeated.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
SEED_VARIABLE = "DISKYARD_SEED"
THOROUGH_VARIABLE = "DISKYARD_THOROUGH"
MINUTES_VARIABLE = "DISKYARD_MINUTES"
FILE_SYSTEMS_VARIABLE = "DISKYARD_FILE_SYSTEMS"


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to try.

    :param seed: decides which samples are taken, and every random choice.
    :param thorough: try everything, however long it takes; some of it spread over several rounds, each
        with the next seed.
    :param minutes: how long an endless attacker runs; None for its usual time.
    :param file_systems: the kinds that such attackers use; none for all that they know.
    """

    seed: int = 0
    thorough: bool = False
    minutes: float | None = None
    file_systems: tuple[str, ...] = ()

    @classmethod
    def of_environment(cls) -> Effort:
        """The effort that the environment names. All variables are optional."""
        minutes = os.environ.get(MINUTES_VARIABLE, "")
        return cls(
            seed=int(os.environ.get(SEED_VARIABLE, "0")),
            thorough=os.environ.get(THOROUGH_VARIABLE, "") not in ("", "0"),
            minutes=float(minutes) if minutes else None,
            file_systems=tuple(os.environ.get(FILE_SYSTEMS_VARIABLE, "").replace(",", " ").split()),
        )

    def seconds(self, quick_s: float, thorough_minutes: float) -> float:
        """How long an endless attacker runs."""
        if self.minutes is not None:
            return 60 * self.minutes
        return 60 * thorough_minutes if self.thorough else quick_s

    def kinds(self, known: Sequence[str]) -> list[str]:
        """The kinds of file systems to use, of those that an attacker knows."""
        return [kind for kind in known if not self.file_systems or kind in self.file_systems]

    def random(self, *purpose: object) -> random.Random:
        """Randomness for one purpose: the same for the same seed, whatever is drawn for other purposes."""
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

    def sample_of_kinds(self, kinds: Sequence[str], count: int, *purpose: object) -> list[int]:
        """At most ``count`` of the indexes, in their order; all of them when thorough.

        :param kinds: what kind of thing is at each index. One of each is chosen before a second of any,
            so that what is rare is tried as often as what there is much of.
        """
        if self.thorough:
            return list(range(len(kinds)))
        indexes = list(range(len(kinds)))
        self.random("sample of kinds", *purpose).shuffle(indexes)
        seen = Counter[str]()
        turns = []
        for index in indexes:
            turns.append((seen[kinds[index]], index))
            seen[kinds[index]] += 1
        return sorted(index for _, index in sorted(turns, key=lambda turn: turn[0])[:count])
