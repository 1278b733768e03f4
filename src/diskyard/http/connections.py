"""The connections of all callers: how many each has, what they have not read yet, what was refused."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from starlette.types import Scope

from diskyard import errors
from diskyard.caller import Share
from diskyard.http.limits import Limits, Queue

_log = logging.getLogger("diskyard.http")
_TOLD_EVERY_S = 10.0

#: Why a connection was refused or cut: as many as there may be ``in all``, of one ``address`` or of
#: one ``token``; its TLS did not ``begin`` in time or made room for others; its caller took nothing of an
#: answer (``unread``); the answer failed on the way (``failed``).
Why = Literal["all", "address", "token", "handshake", "unread", "failed"]


@dataclass(slots=True)
class Held:
    """One connection, for as long as it lasts.

    :param peer: the other side of it.
    :param is_limited: it is a TCP connection; each caller gets only a part of these.
    :param cut: ends it at once, with what was not sent.
    :param drained: waits until what was written has left this process, or the connection has ended.
    :ivar gone: set when it has ended.
    :ivar actors: the callers that have used it.
    """

    peer: str
    is_limited: bool
    cut: Callable[[], None]
    drained: asyncio.Event
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    actors: set[str] = field(default_factory=set)

    @property
    def share(self) -> Share:
        """The share of the caller that uses it; that of its address until the caller is known."""
        return Share(min(self.actors, default=f"address:{self.peer}"), self.is_limited)


class Connections:
    """Those of a daemon; only in its event loop.

    :ivar unsent: the bytes of answers that are made and not taken.
    :ivar refused: how many were refused or cut, by the reason.
    """

    def __init__(self, limits: Limits) -> None:
        self._most = limits.connections_per_token
        self._of_token: Counter[str] = Counter()
        self._told_s: dict[Why, float] = {}
        self.unsent = Queue(limits.answer_bytes)
        self.refused: Counter[Why] = Counter()

    def use(self, held: Held, actor: str) -> None:
        """Count a connection to the caller that a token on it names.

        :raises diskyard.errors.TooManyRequests: the caller has too many others.
        """
        if not held.is_limited or actor in held.actors:
            return
        if self._of_token[actor] >= self._most:
            self.note("token", held.peer, actor=actor)
            raise errors.TooManyRequests(
                f"{self._of_token[actor]} connections are open for {actor}.",
                advice="Use fewer connections, each for many requests; this one is closed.",
            )
        self._of_token[actor] += 1
        held.actors.add(actor)

    def end(self, held: Held) -> None:
        """A connection has ended."""
        held.gone.set()
        for actor in held.actors:
            self._of_token[actor] -= 1
            if not self._of_token[actor]:
                del self._of_token[actor]

    def note(self, why: Why, peer: str, **details: object) -> None:
        """Count a connection that is refused or cut; of one reason a line is logged now and then."""
        self.refused[why] += 1
        now_s = time.monotonic()
        if now_s - self._told_s.get(why, -_TOLD_EVERY_S) >= _TOLD_EVERY_S:
            self._told_s[why] = now_s
            words = {"why": why, "peer": peer, "count": self.refused[why], **details}
            _log.warning("a connection is refused or cut: %s", words)


def connection_of(scope: Scope) -> Held | None:
    """The connection of a request; None if whatever serves it keeps none."""
    found = scope.get("state", {}).get("connection")
    return found if isinstance(found, Held) else None
