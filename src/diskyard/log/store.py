"""What keeps a log: a store of numbered objects, which every repository format has.

entry, checkpoint
    The two kinds of numbered object. Each exists as two *copies*, 0 and 1, stored so that one damaged
    block cannot take both.
copy's value
    Its bytes; ``None`` if it is absent; ``b""`` if it is there and cannot be read (a
    copy with contents is never empty). Of one that cannot be an object of the log
    (:func:`diskyard.log.codec.may_be_whole`) it may be the beginning only. A time-out is not
    "cannot be read": it is :class:`~diskyard.errors.RepositoryUnavailable`.

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

    :ivar marker: random, written at creation; names lock spaces, orders locks and detects
        that two connections reach the same place.
    :ivar place: what people call the place in messages.
    """

    marker: str
    place: str

    def read_only_because(self) -> str | None:
        """Why nothing can be written in the place now, for people; None if it can. It may change."""

    def put(self, kind: LogKind, number: int, data: bytes, *, frees: Frees = Frees.NOTHING) -> bool:
        """Store both copies of an object if it is absent; False if it is there already.

        Of several callers with one number, on any hosts, exactly one gets True. A crash
        leaves it absent, or there with one copy or both.

        :raises diskyard.host.publishing.UncertainError: it may be there; the outcome is unknown.
            Any other OSError means that it is not.

        :param frees: what it leads to: on a full storage it may use room that is kept for what
            frees some, and more of it the sooner it does. That room is nobody else's at any moment.
            One copy is enough then, where there is no room for both.
        """

    def get(self, kind: LogKind, number: int) -> Copies:
        """The two copies of an object. It is absent only if both are."""

    def has(self, kind: LogKind, number: int) -> bool:
        """Whether a copy of an object is there, whatever it holds: neither is read."""

    def numbers(self, kind: LogKind) -> dict[int, float]:
        """The numbers of the objects of which a copy is there, each with its age in seconds.

        The age counts from the storage's own time of writing and is used for trimming only.
        """

    def newest_number(self, kind: LogKind) -> int:
        """The highest number of :meth:`numbers`; 0 if there is none. Of very many it is quick to find."""

    def rewrite(self, kind: LogKind, number: int, copy: int, data: bytes) -> None:
        """Make one copy hold ``data``, without a moment at which it is absent."""

    def delete(self, kind: LogKind, number: int) -> None:
        """Remove both copies. Callers remove lowest numbers first, and never the newest.

        A crash leaves one copy or none.
        """

    def sync_log(self) -> None:
        """Make durable what :meth:`get` has shown, also if another process wrote it."""
