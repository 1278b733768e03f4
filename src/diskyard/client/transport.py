"""What carries calls to the service: the same process, or HTTP to a daemon."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol

from diskyard.client.values import Connected, EventType, OnProgress
from diskyard.model.requests import Request
from diskyard.model.results import Event


class Transport(Protocol):
    """Calls, what they started, and what happens."""

    def run(self, kind: type[Request], words: Mapping[str, Any]) -> Any:
        """Run a verb with its parameters as JSON-like values; its answer, of its type.

        :raises diskyard.errors.DiskyardError: of the table.
        """

    def call(self, verb: str, parameters: Any) -> Any:
        """Run a verb by its name; parameters and answer are JSON-like.

        :raises diskyard.errors.DiskyardError: of the table.
        """

    def connected(self) -> Connected:
        """The connections, in their order; no storage is asked."""

    def take_started(self) -> list[str]:
        """The ids of the tasks that calls started since this was last asked."""

    def unfinished(self) -> list[str]:
        """The ids of the tasks that calls started and that have not ended."""

    def wait(self, timeout_s: float | None, on_progress: OnProgress | None) -> bool:
        """Wait for the tasks that calls started; False if the time ran out.

        :param on_progress: is given each of them whenever it was looked at.
        """

    def watch(self, types: Sequence[EventType], timeout_s: float | None) -> Generator[Event | None]:
        """Events until the time runs out; None where the waiting caller should check by itself.

        What happens after the first None is not missed, or another None follows soon.
        """

    def events(
        self, types: Sequence[EventType], repository_id: str | None, last_event_id: str | None
    ) -> Generator[Event]:
        """Events without end."""

    def close(self) -> None:
        """Let go of what the transport has open."""
