"""The only way in which plans become transactions. Plans of several threads share one transaction.

Threads that arrive while an entry is being published wait, and join the next entry together
(docs/decisions/0012-group-commit.md).
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
_RECORDS_MOST = 1000  # in an entry of several changes: far below the size that an entry may have


@dataclass(frozen=True, slots=True)
class Committed(Generic[Result]):
    """The outcome of a plan. Both states are durable.

    :param result: what the plan returned.
    :param before: the state to which the entry with the plan's changes was applied.
    :param state: the state after that entry, which may have other threads' changes too. If nothing was
        changed, it is ``before``.
    """

    result: Result
    before: State
    state: State


def refresh(log: Log) -> State:
    """The newest state, durable.

    :raises diskyard.errors.RepositoryUnavailable: the storage does not show it: it is gone, not mounted, or
        it fails.
    """
    return _answer_of(log.refresh)


def newest_known(log: Log) -> State:
    """The newest state that this process knows, durable or not, without reading newer entries.

    It tells which leases to take and which volumes to look at. A plan, or a newer state, must check that.

    :raises diskyard.errors.RepositoryUnavailable: no state is known, and the storage does not show one.
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
    """Plan on the newest state and publish. If another writer takes the entry's number, plan again.

    :param plan: writes the changes on the draft. If it raises an error of the table, or leaves the draft as
        it is, nothing is published for it. It may be called any number of times, in any thread that commits
        to this log.
    :param missing: what a look at the storage has found. The plan finds it in its draft.
    :returns: what ``plan`` returned, and the states before and after. The changes are durable.
    :raises diskyard.errors.NotARepository: the repository is being removed.
    :raises diskyard.errors.UnknownOutcome: the changes may have been made (see :meth:`Log.publish`).
    """
    change = _Change(plan, author, missing)
    log.writers.take_part(change, partial(_commit, log))
    committed: Committed[Result] = change.answer()
    return committed


class _Change(Waiter[Committed[Any]]):
    """The change that one thread wants to make."""

    def __init__(self, plan: Callable[[Draft], object], author: Author, missing: Looked) -> None:
        super().__init__()
        self.plan = plan
        self.author = author
        self.missing = missing


def _commit(log: Log, changes: Sequence[_Change]) -> None:
    """Answer the first change, and with it all those that go into the same entry."""
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
                # Nothing was published. Try each change alone: only changes that free space may use the
                # reserve, and a change that cannot be published must not be in the others' way.
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
    """Changes that are planned on one state, each on top of those before it.

    If the first one changes nothing or is refused, it is answered alone, without an entry. Changes that do
    not fit into the entry are left for the next one.

    :ivar members: the changes that are in the entry. Others that were planned, and change nothing or are
        refused, are answered with them: they were planned on top of changes that must be published first.
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
        """Whether these changes fit into the entry too. An entry changes each record at most once.

        So an entry's id that is kept in a record, such as a revision, still names a single change.
        """
        if not self.members:
            return True
        ids = changes.ids()
        return self._ids.isdisjoint(ids) and len(self._ids) + len(ids) <= _RECORDS_MOST

    def publish(self, log: Log) -> bool:
        """Publish the changes, if there are any; False if they must be planned again."""
        if not self._parts:
            return True
        after = log.publish(self._parts, self._state, self._nonce, frees=self._frees)
        if after is None:
            return False
        self._after = after
        return True

    def answer(self) -> None:
        """Give every planned change its outcome."""
        for answer in self._answers:
            answer(self._state, self._after)


def _answer(change: _Change, result: object, before: State, after: State) -> None:
    change.succeed(Committed(result, before, after))


def _refuse(change: _Change, error: Exception, _before: State, _after: State) -> None:
    change.fail(error)


def _require_open(state: State) -> None:
    """Refuse to plan on a state that was closed: no entry can follow."""
    if state.closed:
        raise errors.NotARepository(
            "The repository is being removed: nothing can be changed in it any more.",
            advice="Finish with removeStorageRepository, then create a repository there.",
        )
