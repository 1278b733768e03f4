"""How calls reach the service: in the same process, or over HTTP to a daemon."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol

from diskyard.client.values import Connected, EventType, OnProgress
from diskyard.model.requests import Request
from diskyard.model.results import Event


class Transport(Protocol):
    """Calls, the tasks that they started, and events."""

    def run(self, kind: type[Request], words: Mapping[str, Any]) -> Any:
        """Run a verb with its parameters as JSON-like values. Return its result, in its own type.

        :raises diskyard.errors.DiskyardError: any error of the verb.
        """

    def call(self, verb: str, parameters: Any) -> Any:
        """Run a verb by its name; parameters and result are JSON-like.

        :raises diskyard.errors.DiskyardError: any error of the verb.
        """

    def connected(self) -> Connected:
        """The connections, in their order. No storage is used."""

    def take_started(self) -> list[str]:
        """The ids of the tasks that calls started since the last use of this method."""

    def unfinished(self) -> list[str]:
        """The ids of the tasks that calls started and that have not ended."""

    def wait(self, timeout_s: float | None, on_progress: OnProgress | None) -> bool:
        """Wait for the tasks that calls started; False if the time ran out.

        :param on_progress: called with each of these tasks at each check.
        """

    def watch(self, types: Sequence[EventType], timeout_s: float | None) -> Generator[Event | None]:
        """Events until the time runs out. None means that the waiting caller should check by itself.

        Events after the first None are not missed; if some are, another None follows soon.
        """

    def events(
        self, types: Sequence[EventType], repository_id: str | None, last_event_id: str | None
    ) -> Generator[Event]:
        """Events without end."""

    def close(self) -> None:
        """Close everything that the transport has open."""
