"""The one loop in which a plan becomes a transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from diskyard import errors
from diskyard.log.log import Author, Log, Published
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.planner.normalise import normalise, verify

Result = TypeVar("Result")
_ATTEMPTS = 10_000


def commit(log: Log, plan: Callable[[Draft], Result], author: Author) -> tuple[Result, State]:
    """Plan on the newest state and publish; on losing the number, again.

    :param plan: writes on the draft what must change, or raises an error of the table, or
        leaves it as it is: then nothing is published. It may be called any number of times.
    :returns: what ``plan`` returned, and the state with its changes, which is durable.
    :raises diskyard.errors.StorageError: the outcome is unknown (see :meth:`Log.publish`).
    """
    for _ in range(_ATTEMPTS):
        state = log.refresh()
        draft = Draft(state)
        result = plan(draft)
        normalise(draft)
        verify(draft)
        changes = draft.changes()
        if not changes:
            return result, state
        if log.publish(changes, state, author, use_reserve=draft.leads_to_less()) is Published.STANDS:
            return result, log.newest_known()
    raise errors.RepositoryUnavailable(
        "Other writers were quicker every time.", advice="Try again when there is less load."
    )
