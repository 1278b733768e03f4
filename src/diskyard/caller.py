"""The caller for whom this thread works: for the audit trail, and for what the caller may see."""

from __future__ import annotations

import os
import weakref
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass, field


class HandedFile:
    """A file, or a directory, that a caller opened and handed over; closed once nothing refers to it.

    :param fd: its descriptor, which this object takes over.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        # Not when the process ends: a thread may still use it, and the number may then be another file's.
        weakref.finalize(self, os.close, fd).atexit = False


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller whose request is being served.

    A task runs in the context of the request that started it. So its commits name the caller, and it can
    reach only what the caller may reach.

    :param actor: the name in the log's entries.
    :param request_id: of the request, as errors and events show it.
    :param repositories: the repoIds that this caller may use; None for all.
    :param transfer_folders: the directories for imports and exports; None for everywhere.
    :param repository_folders: where repositories may be made, connected and removed; None for everywhere.
    :param is_limited: the caller has a token, and gets only a part of what all callers share.
    :param handed: what was handed over, open: the file to import, or the directory for an export.
    :ivar started: the ids of the tasks that the request started.
    """

    actor: str
    request_id: str = ""
    repositories: frozenset[str] | None = None
    transfer_folders: tuple[str, ...] | None = None
    repository_folders: tuple[str, ...] | None = None
    is_limited: bool = False
    handed: HandedFile | None = None
    started: list[str] = field(default_factory=list)

    @property
    def share(self) -> Share:
        """The caller's share of what all callers use."""
        return Share(self.actor, self.is_limited)

    def may_use(self, repo_id: str | None) -> bool:
        """Whether the caller may use a repository; what belongs to no repository is visible to all."""
        return self.repositories is None or repo_id is None or repo_id in self.repositories


#: The caller in the running context; None if the program itself is the caller.
CALLER: ContextVar[Caller | None] = ContextVar("diskyard-caller", default=None)


def may_use(repo_id: str | None) -> bool:
    """Whether the present caller may use a repository."""
    caller = CALLER.get()
    return caller is None or caller.may_use(repo_id)


def handed() -> HandedFile | None:
    """What the present caller opened and handed over with the request, if anything."""
    caller = CALLER.get()
    return None if caller is None else caller.handed


def share() -> Share:
    """The share of the present caller, or of the program itself if there is no caller."""
    caller = CALLER.get()
    return Share("", is_limited=False) if caller is None else caller.share


@dataclass(frozen=True, slots=True)
class Share:
    """The caller to whom a part of something shared is counted.

    :param actor: the caller.
    :param is_limited: the caller gets at most a quarter, and all such callers together leave a quarter
        to those on the Unix socket.
    """

    actor: str
    is_limited: bool


class Parts:
    """Divides something among callers, so that no caller with a token gets all of it.

    If there is very little of it, each caller can still get one piece, however large.

    :param most: how much there is.
    :ivar count: how much is taken.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._quarter = max(1, most // 4)
        self._of_actor: Counter[str] = Counter()
        self._limited = 0
        self.count = 0

    def in_the_way(self, share: Share, amount: int = 1) -> str | None:
        """Why a caller can have no more: the message says who has how much. None if it can have more."""
        own = self._of_actor[share.actor]
        if self.count and self.count + amount > self._most:
            return f"{self.count} {{words}}"
        if share.is_limited and own and own + amount > self._quarter:
            return f"{own} {{words}} for {share.actor}"
        rest = max(1, self._most - self._quarter)
        if share.is_limited and self._limited and self._limited + amount > rest:
            return f"{self._limited} {{words}} for callers with tokens"
        return None

    def add(self, share: Share, amount: int = 1) -> None:
        """Count an amount as taken."""
        self.count += amount
        self._limited += amount * share.is_limited
        self._of_actor[share.actor] += amount

    def remove(self, share: Share, amount: int = 1) -> None:
        """Count an amount as returned."""
        self.count -= amount
        self._limited -= amount * share.is_limited
        self._of_actor[share.actor] -= amount
        if not self._of_actor[share.actor]:
            del self._of_actor[share.actor]
