"""What keeps a log: a store of numbered objects, which every repository format has.

entry, checkpoint
    The two kinds of numbered object. Each has two *copies* (replicas), 0 and 1, stored so that one
    damaged block cannot take both.
copy's value
    Its bytes; ``None`` if it is absent; ``b""`` if it exists and cannot be read (a copy with contents
    is never empty). If it cannot be an object of the log (:func:`diskyard.log.codec.may_be_whole`),
    the value may be only its beginning. A time-out does not mean "cannot be read": it is
    :class:`~diskyard.errors.RepositoryUnavailable`.

Every method that changes something returns only when the change survives a power cut,
and says in its docstring what a crash in it leaves. Errors of the system are raised as
:class:`OSError`. The contract is tested by ``diskyard.testing.log_contract``.
"""

from __future__ import annotations

from typing import Literal, Protocol

from diskyard.model.transaction import Frees

LogKind = Literal["entry", "checkpoint"]
Copies = tuple[bytes | None, bytes | None]


class LogStore(Protocol):
    """Where one log is kept.

    :ivar marker: random, written at creation. It names lock spaces, orders locks, and shows when two
        connections lead to the same repository.
    :ivar place: what messages call the location.
    """

    marker: str
    place: str

    def read_only_because(self) -> str | None:
        """Why nothing can be written now, for people; None if it can. The answer may change."""

    def put(self, kind: LogKind, number: int, data: bytes, *, frees: Frees = Frees.NOTHING) -> bool:
        """Store both copies of an object if it is absent. False if it exists already.

        If several callers, on any hosts, use one number, exactly one of them gets True. A crash leaves the
        object absent, or with one copy or both.

        :raises diskyard.host.publishing.UncertainError: the object may exist; the outcome is unknown.
            Any other OSError means that it does not exist.

        :param frees: what the object leads to. On a full storage it may use reserved space if it leads to
            free space, and more of it the sooner it does. Nobody else can take that space at any moment.
            If there is no space for both copies, one is enough.
        """

    def get(self, kind: LogKind, number: int) -> Copies:
        """The two copies of an object, which is absent only if both copies are."""

    def has(self, kind: LogKind, number: int) -> bool:
        """Whether a copy of an object exists, whatever it holds. Neither copy is read."""

    def numbers(self, kind: LogKind) -> dict[int, float]:
        """The numbers of all objects that have at least one copy, each with its age in seconds.

        The age counts from the time of writing, as the storage recorded it, and is used only for trimming.
        """

    def newest_number(self, kind: LogKind) -> int:
        """The highest number in :meth:`numbers`; 0 if there is none. This is quick even among very many."""

    def rewrite(self, kind: LogKind, number: int, copy: int, data: bytes) -> None:
        """Make one copy hold ``data``. The copy is absent at no moment."""

    def delete(self, kind: LogKind, number: int) -> None:
        """Remove both copies. Callers remove the lowest numbers first, and never the newest.

        A crash leaves one copy or none.
        """

    def sync_log(self) -> None:
        """Make durable what :meth:`get` has returned, even if another process wrote it."""
