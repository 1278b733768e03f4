"""Another host at work between two looks of a verb or fix: at each of them, one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from diskyard import Diskyard, errors
from diskyard.repository.repository import Repository

Result = TypeVar("Result")
LOOKS = ("state", "try_commit")


@dataclass
class Looks:
    """The looks of one host at its logs; before one of them something is done.

    :param at: the number of the look, from 1.
    :ivar seen: how many there were.
    """

    yard: Diskyard
    at: int
    action: Callable[[], object]
    seen: int = 0
    inside: bool = field(default=False)

    def look(self) -> None:
        """Called before each look."""
        self.seen += 1
        if self.seen == self.at:
            self.inside = True
            try:
                self.action()
            finally:
                self.inside = False


@contextlib.contextmanager
def before_look(yard: Diskyard, at: int, action: Callable[[], object]) -> Iterator[Looks]:
    """Do something before the look of this number that a host takes at any log, or commit that it makes."""
    looks = Looks(yard, at, action)

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(self: Repository, *arguments: Any, **words: Any) -> Any:
            if self.host is yard.service.host and not looks.inside:
                looks.look()
            return original(self, *arguments, **words)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for name in LOOKS:  # every commit is one of try_commit
            patch.setattr(Repository, name, watched(getattr(Repository, name)))
        yield looks


def outcome(action: Callable[[], Result]) -> tuple[Result | None, errors.DiskyardError | None]:
    """What an action answered, or the error with which it failed."""
    try:
        return action(), None
    except errors.DiskyardError as error:
        return None, error
