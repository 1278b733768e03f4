"""What the caretaker may do in a repository, and when."""

from __future__ import annotations

from typing import Annotated

import msgspec

from diskyard.model.options import FixType


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``[[caretaker]]`` of the configuration.

    :param repository: the repoId that it is for, or ``*`` for every one.
    :param fixes: the types of fixes that it runs.
    :param hours: local time, as ``22:00-06:00``; empty for always.
    :param every_s: from one look to the next.
    :param at_most: how many fixes one look runs.
    :param rate_limit_bytes_per_s: of each fix; 0 for none.
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
