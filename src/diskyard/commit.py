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


def refresh(log: Log) -> State:
    """The newest state, durable.

    :raises diskyard.errors.RepositoryUnavailable: the storage does not show it: it is gone, not
        mounted, or sick.
    """
    try:
        return log.refresh()
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise errors.RepositoryUnavailable(
            f"The repository does not answer: {error.strerror or error}{where}."
        ) from error


def commit(log: Log, plan: Callable[[Draft], Result], author: Author) -> tuple[Result, State]:
    """Plan on the newest state and publish; on losing the number, again.

    :param plan: writes on the draft what must change, or raises an error of the table, or
        leaves it as it is: then nothing is published. It may be called any number of times.
    :returns: what ``plan`` returned, and the state with its changes, which is durable.
    :raises diskyard.errors.NotARepository: the repository is being removed.
    :raises diskyard.errors.StorageError: the outcome is unknown (see :meth:`Log.publish`).
    """
    for _ in range(_ATTEMPTS):
        state = refresh(log)
        _require_open(state)
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


def _require_open(state: State) -> None:
    """Refuse to plan on the last entry there can be."""
    if state.closed:
        raise errors.NotARepository(
            "The repository is being removed: nothing can be changed in it any more.",
            advice="Finish with removeStorageRepository, then create a repository there.",
        )
