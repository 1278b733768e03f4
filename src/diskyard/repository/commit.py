"""The one way in which plans become a transaction; those of several threads share one.

Who comes while an entry is being published waits, and goes into the next one together with all
that wait (docs/decisions/0012-group-commit.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from diskyard import errors
from diskyard.host.identity import new_nonce
from diskyard.log.log import Author, Log, unknown_outcome
from diskyard.log.turns import Waiter, fail_all
from diskyard.model.looked import NOT_LOOKED, Looked
from diskyard.model.state import State
from diskyard.model.transaction import Changes, Draft, Frees, Part
from diskyard.planner.normalise import normalise, verify

Result = TypeVar("Result")
_ATTEMPTS = 10_000
_RECORDS_MOST = 1000  # of several changes in one entry: far below the size that an entry may have


@dataclass(frozen=True, slots=True)
class Committed(Generic[Result]):
    """What came of a plan.

    :param result: what the plan returned.
    :param before: durable: the entry that holds the plan's changes was put on it.
    :param state: durable, and with them: what that entry leads to, which may hold other threads' changes too.
        If nothing was changed, it is ``before``.
    """

    result: Result
    before: State
    state: State


def refresh(log: Log) -> State:
    """The newest state, durable.

    :raises diskyard.errors.RepositoryUnavailable: the storage does not show it: it is gone, not
        mounted, or sick.
    """
    return _answer_of(log.refresh)


def newest_known(log: Log) -> State:
    """The newest state that this process knows, durable or not, without looking for news.

    It says where to look and what to lease; a plan, or a later look, must tell whether that was right.

    :raises diskyard.errors.RepositoryUnavailable: none is known, and the storage does not show it.
    """
    return _answer_of(log.newest_known)


def _answer_of(ask: Callable[[], State]) -> State:
    try:
        return ask()
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise errors.RepositoryUnavailable(
            f"The repository does not answer: {error.strerror or error}{where}."
        ) from error


def commit(
    log: Log, plan: Callable[[Draft], Result], author: Author, missing: Looked = NOT_LOOKED
) -> Committed[Result]:
    """Plan on the newest state and publish; on losing the number, again.

    :param plan: writes on the draft what must change, or raises an error of the table, or
        leaves it as it is: then nothing is published for it. It may be called any number of
        times, in any thread that commits to this log.
    :param missing: what a look at the storage has found; the plan has it in its draft.
    :returns: what ``plan`` returned, and the state after it; its changes are durable.
    :raises diskyard.errors.NotARepository: the repository is being removed.
    :raises diskyard.errors.UnknownOutcome: it may be made (see :meth:`Log.publish`).
    """
    change = _Change(plan, author, missing)
    log.writers.take_part(change, partial(_commit, log))
    committed: Committed[Result] = change.answer()
    return committed


class _Change(Waiter[Committed[Any]]):
    """What one thread wants to change."""

    def __init__(self, plan: Callable[[Draft], object], author: Author, missing: Looked) -> None:
        super().__init__()
        self.plan = plan
        self.author = author
        self.missing = missing


def _commit(log: Log, changes: Sequence[_Change]) -> None:
    """Answer the first of some changes, and with it those that go into the same entry."""
    for _ in range(_ATTEMPTS):
        try:
            group = _Group(refresh(log), changes)
        except Exception as error:  # noqa: BLE001 - raised again in the threads that asked
            fail_all(changes, error)
            return
        try:
            if group.publish(log):
                group.answer()
                return
        except errors.DiskyardError as error:
            if len(group.members) > 1 and not isinstance(error, errors.UnknownOutcome):
                # Nothing was made. Alone each gets what it can: the reserve is for those only
                # that lead to less, and what cannot be published at all is in nobody's way.
                for change in group.members:
                    _commit(log, [change])
                return
            fail_all(group.members, error)
            return
        except BaseException as error:
            fail_all(group.members, unknown_outcome(f"it ended with {error!r}"))
            raise
    fail_all(
        changes,
        errors.RepositoryUnavailable(
            "Other writers were quicker each time.", advice="Try again when there is less load."
        ),
    )


class _Group:
    """Changes planned on one state, each on top of those before it.

    If the first one changes nothing, it is answered alone, without an entry. Changes that do not fit
    into the entry are left for the next one.

    :ivar members: those whose changes are in the entry. Others that were planned, and change nothing or are
        refused, are answered with them: they were planned on changes that must stand first.
    """

    def __init__(self, state: State, changes: Sequence[_Change]) -> None:
        self.members: list[_Change] = []
        self._state = self._on_top = self._after = state
        self._nonce = new_nonce()
        self._parts: list[Part] = []
        self._ids: set[str] = set()
        self._frees = Frees.AT_ONCE
        self._answers: list[Callable[[State, State], None]] = []
        for change in changes:
            if change is changes[0] or self.members:
                self._add(change)

    def _add(self, change: _Change) -> None:
        draft = Draft(self._on_top, self._nonce, change.missing)
        try:
            _require_open(draft.state)
            result = change.plan(draft)
            normalise(draft)
            verify(draft)
        except Exception as error:  # noqa: BLE001 - raised again in the thread that asked
            self._answers.append(partial(_refuse, change, error))
            return
        changes = draft.changes()
        if not self._has_room_for(changes):
            return  # for the next entry
        self._answers.append(partial(_answer, change, result))
        if changes:
            self.members.append(change)
            self._on_top = draft.state
            self._ids.update(changes.ids())
            self._frees = min(self._frees, draft.frees())
            self._parts.append(change.author.part(changes))

    def _has_room_for(self, changes: Changes) -> bool:
        """Whether the entry may have these changes too: of each record it has at most one.

        What is noted with the entry that changed it, as a revision is, then still names one change.
        """
        if not self.members:
            return True
        ids = changes.ids()
        return self._ids.isdisjoint(ids) and len(self._ids) + len(ids) <= _RECORDS_MOST

    def publish(self, log: Log) -> bool:
        """Make the changes, if there are any; False if they must be planned again."""
        if not self._parts:
            return True
        after = log.publish(self._parts, self._state, self._nonce, frees=self._frees)
        if after is None:
            return False
        self._after = after
        return True

    def answer(self) -> None:
        """Tell all that were planned what came of it."""
        for answer in self._answers:
            answer(self._state, self._after)


def _answer(change: _Change, result: object, before: State, after: State) -> None:
    change.succeed(Committed(result, before, after))


def _refuse(change: _Change, error: Exception, _before: State, _after: State) -> None:
    change.fail(error)


def _require_open(state: State) -> None:
    """Refuse to plan on the last entry there can be."""
    if state.closed:
        raise errors.NotARepository(
            "The repository is being removed: nothing can be changed in it any more.",
            advice="Finish with removeStorageRepository, then create a repository there.",
        )
