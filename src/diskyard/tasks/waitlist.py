"""The tasks that wait for a thread, and which of them is next."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass

from diskyard.tasks.limits import Urgency

#: One in so many tasks that begin is the one that has waited longest, whatever its type.
TURN = 16


@dataclass(frozen=True, slots=True)
class Waiting:
    """A task that waits for a thread.

    :param rank: the rank of its type in the order.
    :param arrival: its number in the order in which tasks came.
    :param place: the repository that it works in.
    :param work: does the work; it must not raise.
    """

    urgency: Urgency
    rank: int
    arrival: int
    place: str | None
    work: Callable[[], None]

    @property
    def order(self) -> tuple[int, int, int]:
        """The smallest is next."""
        return self.urgency, self.rank, self.arrival


class Waitlist:
    """The tasks that wait, the most urgent first. Not safe to use from several threads.

    Among tasks of the same urgency and type, the first to come is the first to go. So that a stream of
    urgent work cannot keep the rest waiting for ever, one in :data:`TURN` tasks is the one that has
    waited longest. Only tasks with the urgency FIRST go before that one.
    """

    def __init__(self) -> None:
        self._waiting: list[Waiting] = []
        self._taken = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, waiting: Waiting) -> None:
        """Add a task."""
        insort(self._waiting, waiting, key=lambda found: found.order)

    def clear(self) -> None:
        """Remove all tasks."""
        self._waiting.clear()

    def take(self, may_begin: Callable[[str | None], bool]) -> Waiting | None:
        """Take the next task that may begin; None if there is none.

        :param may_begin: whether a task may begin in a repository now.
        """
        judged: dict[str | None, bool] = {}

        def may(found: Waiting) -> bool:
            if found.place not in judged:
                judged[found.place] = may_begin(found.place)
            return judged[found.place]

        taken = next(filter(may, self._waiting), None)
        if taken is None:
            return None
        if taken.urgency is not Urgency.FIRST:
            self._taken += 1
            if self._taken % TURN == 0:
                taken = min(filter(may, self._waiting), key=lambda found: found.arrival)
        self._waiting.remove(taken)
        if not self._waiting:
            self._taken = 0
        return taken
