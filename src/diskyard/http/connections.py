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

#: Why a connection was refused or cut. There are too many in ``all``, from one ``address`` or for one
#: ``token``. Its TLS ``handshake`` was not complete in time, or it was cut to let others in. Its caller has
#: read nothing of an answer (``unread``). Or the answer failed on the way (``failed``).
Why = Literal["all", "address", "token", "handshake", "unread", "failed"]


@dataclass(slots=True)
class Held:
    """One connection, for as long as it lasts.

    :param peer: its other side.
    :param is_limited: it is a TCP connection; each caller gets only a part of these.
    :param cut: ends it at once, dropping what was not sent.
    :param drained: set unless written bytes are still in this process; set when the connection has ended.
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
    """The connections of a daemon; only for its event loop.

    :ivar unsent: the bytes of answers that are made and not read.
    :ivar refused: how many were refused or cut, by reason.
    """

    def __init__(self, limits: Limits) -> None:
        self._most = limits.connections_per_token
        self._of_token: Counter[str] = Counter()
        self._told_s: dict[Why, float] = {}
        self.unsent = Queue(limits.answer_bytes)
        self.refused: Counter[Why] = Counter()

    def use(self, held: Held, actor: str) -> None:
        """Count a connection for the caller whose token came on it.

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
        """Record that a connection has ended."""
        held.gone.set()
        for actor in held.actors:
            self._of_token[actor] -= 1
            if not self._of_token[actor]:
                del self._of_token[actor]

    def note(self, why: Why, peer: str, **details: object) -> None:
        """Count a connection that is refused or cut. Now and then, one line is logged for each reason."""
        self.refused[why] += 1
        now_s = time.monotonic()
        if now_s - self._told_s.get(why, -_TOLD_EVERY_S) >= _TOLD_EVERY_S:
            self._told_s[why] = now_s
            words = {"why": why, "peer": peer, "count": self.refused[why], **details}
            _log.warning("a connection is refused or cut: %s", words)


def connection_of(scope: Scope) -> Held | None:
    """The connection of a request; None if the server keeps none."""
    found = scope.get("state", {}).get("connection")
    return found if isinstance(found, Held) else None
