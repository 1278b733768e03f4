"""Policies: which fixes the daemon may run by itself, where, when, and how many."""

from __future__ import annotations

import re
import time
from typing import Annotated, Final

import msgspec

from diskyard.model.options import FixType

#: As a policy's repository: every connected one.
EVERY: Final = "*"
_HOURS = re.compile(r"([01][0-9]|2[0-4]):([0-5][0-9])-([01][0-9]|2[0-4]):([0-5][0-9])")
_DAY_MIN = 24 * 60


def minutes_of(hours: str) -> tuple[int, int]:
    """The minutes of the day at which hours begin and end.

    :raises ValueError: they are not written as ``22:00-06:00``, or are the same.
    """
    found = _HOURS.fullmatch(hours)
    if found is None:
        raise ValueError("they must be written as HH:MM-HH:MM")
    begin_min = int(found[1]) * 60 + int(found[2])
    end_min = int(found[3]) * 60 + int(found[4])
    if begin_min >= _DAY_MIN or end_min > _DAY_MIN or begin_min == end_min:
        raise ValueError("they must be from one time of the day to another")
    return begin_min, end_min


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the daemon does by itself in a repository.

    :param repository: its repoId, or ``*`` for every connected one.
    :param fixes: the types of fixes that it may run.
    :param hours: when it may begin a fix, in local time, as ``22:00-06:00``; empty for always.
    :param every_s: from the beginning of one round to that of the next.
    :param at_most: how many fixes one round in one repository may run.
    :param rate_limit_bytes_per_s: of each fix; 0 for the limit of tasks whose caller gave none.
    """

    repository: Annotated[
        str, msgspec.Meta(min_length=1, max_length=255, description='the repoId of a repository, or "*"')
    ]
    fixes: Annotated[
        tuple[FixType, ...],
        msgspec.Meta(min_length=1, description="a list of clean, merge, optimize and mend"),
    ] = ("clean", "merge")
    hours: Annotated[str, msgspec.Meta(description="HH:MM-HH:MM in local time, or empty for always")] = ""
    every_s: Annotated[int, msgspec.Meta(ge=1, le=1 << 31, description="seconds, at least 1")] = 3600
    at_most: Annotated[int, msgspec.Meta(ge=1, le=1 << 31, description="a number, at least 1")] = 100
    rate_limit_bytes_per_s: Annotated[
        int, msgspec.Meta(ge=0, le=1 << 62, description="bytes per second, 0 for no limit")
    ] = 0

    def is_open(self, wall_s: float) -> bool:
        """Whether a moment, in seconds since the epoch, is within the hours."""
        if not self.hours:
            return True
        begin_min, end_min = minutes_of(self.hours)
        local = time.localtime(wall_s)
        now_min = local.tm_hour * 60 + local.tm_min
        if begin_min < end_min:
            return begin_min <= now_min < end_min
        return now_min >= begin_min or now_min < end_min
