"""How many tasks run at a time, which of them go first, and how fast they move bytes."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, get_args

import msgspec

from diskyard.model.options import FixType, RateLimit

_MOST_AT_ONCE = 1024
AtOnce = Annotated[int, msgspec.Meta(ge=1, le=_MOST_AT_ONCE)]
_FIX_TYPES = frozenset(get_args(FixType))


class Urgency(IntEnum):
    """How urgent a task is, by who waits for it. Urgency counts before the order of the types."""

    FIRST = 0  # its caller wants it to run before all that wait
    ASKED = 1
    SPARE = 2  # nobody has requested it


class TaskLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the tasks of one process may take of a host.

    :param at_once: how many tasks run at a time.
    :param at_once_per_repository: how many of those may be in one repository.
    :param order: the types of fixes, the most urgent first; exports count as mends.
    :param queued: how many tasks may wait. Beyond that callers can add none, but tasks that were known before
        are still resumed.
    :param rate_limit_bytes_per_s: for each task whose caller gave no limit; 0 for none.
    :raises ValueError: at construction: a number is out of its range, or a type is missing.
    """

    at_once: AtOnce = 2
    at_once_per_repository: AtOnce = 2
    queued: Annotated[int, msgspec.Meta(ge=1)] = 10_000
    order: tuple[FixType, ...] = ("mend", "merge", "optimize", "clean")
    rate_limit_bytes_per_s: RateLimit = 0

    def __post_init__(self) -> None:
        if not (
            1 <= self.at_once <= _MOST_AT_ONCE
            and 1 <= self.at_once_per_repository <= _MOST_AT_ONCE
            and self.queued >= 1
            and self.rate_limit_bytes_per_s >= 0
        ):
            raise ValueError("the numbers of tasks are 1 to 1024, 1 or more wait, a rate limit is 0 or more")
        if len(self.order) != len(_FIX_TYPES) or set(self.order) != _FIX_TYPES:
            raise ValueError("order names mend, merge, optimize and clean, each of them once")

    def rank(self, verb: str) -> int:
        """The rank of a type of fix, or of ``exportImage``, in the order."""
        return self.order.index("mend" if verb == "exportImage" else verb)
