"""Fixes that fail: how often they failed, and when the caretaker tries them again."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from diskyard import errors
from diskyard.model.fix import Fix
from diskyard.model.options import FixType
from diskyard.model.results import Task

#: After so many failures in a row, the log says so.
FAILURES_MOST = 3
#: Errors whose reason others or the storage may remove: space is freed, a program closes an image.
_PASSING = frozenset(error.__name__ for error in (errors.NoSpace, errors.StorageError, errors.ImageInUse))
_PASSING_PAUSE_MOST_S = 3600.0
_OTHER_PAUSE_MOST_S = 24 * 3600.0
_log = logging.getLogger("diskyard.caretaker")


@dataclass(frozen=True, slots=True)
class _Failed:
    repository_id: str
    type: FixType
    count: int
    again_s: float


class LeftAlone:
    """The fixes that failed when the caretaker last tried them. Safe to use from several threads.

    A fix that failed three times in a row is left alone for two intervals of its policy, then for four,
    and so on, up to an hour if the reason may pass, otherwise up to a day. No fix is given up for good. A
    ``retryable`` error does not count, and the next round tries again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failed: dict[str, _Failed] = {}

    def note(self, fix: Fix, repository_id: str, task: Task, now_s: float, every_s: float) -> None:
        """Count how a fix ended. When it is left alone, the log says so once.

        :param now_s: on the monotonic clock.
        :param every_s: from one round of its policy to the next.
        """
        error = task.error or {}
        with self._lock:
            if task.state == "done":
                self._failed.pop(fix.fix_id, None)
            if task.state != "failed" or error.get("retryable"):
                return
            before = self._failed.get(fix.fix_id)
            count = 1 if before is None else before.count + 1
            pause_s = _pause_s(count, every_s, may_pass=error.get("code") in _PASSING)
            self._failed[fix.fix_id] = _Failed(repository_id, fix.type, count, now_s + pause_s)
        if count == FAILURES_MOST:
            words = (fix.fix_id, repository_id, fix.description, count, pause_s, error.get("message"))
            _log.error("fix %s of %s (%s) failed %d times and is left alone for %d s: %s", *words)

    def may_try(self, fix: Fix, now_s: float) -> bool:
        """Whether a fix has not failed, or may be tried again by now."""
        with self._lock:
            failed = self._failed.get(fix.fix_id)
        return failed is None or failed.count < FAILURES_MOST or now_s >= failed.again_s

    def forget_unlisted(self, repository_id: str, types: Iterable[FixType], listed: Iterable[Fix]) -> None:
        """Forget the fixes of some types that a repository no longer lists."""
        needed, types = {fix.fix_id for fix in listed}, frozenset(types)
        with self._lock:
            for fix_id, failed in list(self._failed.items()):
                if (failed.repository_id, fix_id in needed) == (repository_id, False) and (
                    failed.type in types
                ):
                    del self._failed[fix_id]

    def forget_repositories_but(self, connected: Iterable[str]) -> None:
        """Forget the fixes of repositories that are not connected any more."""
        kept = frozenset(connected)
        with self._lock:
            for fix_id, failed in list(self._failed.items()):
                if failed.repository_id not in kept:
                    del self._failed[fix_id]

    def counts(self) -> Counter[tuple[str, FixType]]:
        """How many fixes are left alone, by repository and type."""
        with self._lock:
            return Counter(
                (failed.repository_id, failed.type)
                for failed in self._failed.values()
                if failed.count >= FAILURES_MOST
            )


def _pause_s(failures: int, every_s: float, *, may_pass: bool) -> float:
    """How long a fix is left alone after so many failures. If the policy's rounds are rarer, they decide."""
    if failures < FAILURES_MOST:
        return 0.0
    doubled: float = every_s * 2 ** min(failures - FAILURES_MOST + 1, 30)
    return min(doubled, _PASSING_PAUSE_MOST_S if may_pass else _OTHER_PAUSE_MOST_S)
