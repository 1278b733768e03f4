"""A host whose storage daemons are killed at a chosen request."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from diskyard.host import Child, Clock, Commands, Files, Host, Limits
from diskyard.testing.world import host_named


class KillingCommands(Commands):
    """Programs that are killed, once, if they have been started and still run.

    :ivar asked: the QMP commands and NBD requests since :meth:`begin`, in order.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._children: list[Child] = []
        self._kill_at: int | None = None
        self._afterwards = False
        self._lock = threading.Lock()

    def begin(self, kill_at: int | None, *, afterwards: bool = False) -> None:
        """Kill at the request with this index, before it is made or after it was answered."""
        self.asked, self._kill_at, self._afterwards = [], kill_at, afterwards

    def end(self) -> None:
        """Kill no more."""
        self._kill_at = None

    def start(
        self,
        words: Sequence[str],
        *,
        limits: Limits | None = None,
        inherit_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        capture: bool = False,
    ) -> Child:
        """See :meth:`Commands.start`."""
        child = super().start(
            words, limits=limits, inherit_fds=inherit_fds, environment=environment, capture=capture
        )
        self._children.append(child)
        return child

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """See :meth:`Commands.telling`."""
        with super().telling(what), self._around(what):
            yield

    @contextmanager
    def asking(self, what: str) -> Iterator[None]:
        """See :meth:`Commands.asking`."""
        with super().asking(what), self._around(what):
            yield

    @contextmanager
    def _around(self, what: str) -> Iterator[None]:
        with self._lock:
            here = len(self.asked) == self._kill_at
            self.asked.append(what)
        if here and not self._afterwards:
            self._kill()
        yield
        if here and self._afterwards:
            self._kill()

    def _kill(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
                child.wait()


def killing_host(host_id: str) -> tuple[Host, KillingCommands]:
    """This machine under another name, whose storage daemons can be killed."""
    identity = host_named(host_id).identity
    commands = KillingCommands()
    return Host(identity, Files(identity), commands, Clock()), commands
