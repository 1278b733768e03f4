"""Who asks for what this thread does: for the audit trail, and for what the caller may see."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody whose request is being served.

    A task runs in the context of the request that started it, so that what it commits names
    the caller, and so that it reaches no more than the caller may.

    :param actor: the name that the log's entries keep.
    :param request_id: of the request, as errors and events show it.
    :param repositories: the repoIds that this caller may use; None for all.
    :param transfer_folders: where import and export may reach; None for everywhere.
    :param repository_folders: where repositories may be made, connected and removed; None for everywhere.
    :ivar started: the ids of the tasks that the request started.
    """

    actor: str
    request_id: str = ""
    repositories: frozenset[str] | None = None
    transfer_folders: tuple[str, ...] | None = None
    repository_folders: tuple[str, ...] | None = None
    started: list[str] = field(default_factory=list)

    def may_use(self, repo_id: str | None) -> bool:
        """Whether a repository is one of the caller's; what is in none is everybody's."""
        return self.repositories is None or repo_id is None or repo_id in self.repositories


#: The caller of the running context; None where the program itself is the caller.
CALLER: ContextVar[Caller | None] = ContextVar("diskyard-caller", default=None)


def may_use(repo_id: str | None) -> bool:
    """Whether the present caller may use a repository."""
    caller = CALLER.get()
    return caller is None or caller.may_use(repo_id)
