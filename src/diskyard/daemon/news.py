"""Changes in the connected repositories as events: those of this host, and those of others."""

from __future__ import annotations

import threading
from collections.abc import Callable

from diskyard import errors
from diskyard.events import Events
from diskyard.host.supervise import Running, Supervisor
from diskyard.image_events import image_events
from diskyard.model.state import State
from diskyard.model.transaction import Entry
from diskyard.repository.connections import Connections
from diskyard.repository.repository import Repository
from diskyard.service import Service

_LOOK_EVERY_S = 2.0


class News:
    """Reports the events of images.

    What this host commits or reads is reported at once. While anybody listens, each repository is
    checked every two seconds for commits of other hosts; otherwise storage is left alone.
    """

    def __init__(self, service: Service) -> None:
        self._connections: Connections = service.connections
        self._events: Events = service.events
        self._supervisor: Supervisor = service.supervisor
        self._asked: dict[str, Running] = {}
        self._stopping = threading.Event()
        service.connections.when_connected(self._follow)

    def start(self) -> None:
        """Check for news from now on, in a thread of its own."""
        threading.Thread(target=self._run, name="diskyard-news", daemon=True).start()

    def stop(self) -> None:
        """Check no more."""
        self._stopping.set()

    def _follow(self, repo_id: str, repo: Repository) -> Callable[[], None]:
        capabilities = repo.storage.capabilities

        def tell(entry: Entry | None, before: State, after: State) -> None:
            try:
                events = None if entry is None else image_events(repo_id, capabilities, entry, before, after)
            except errors.RepositoryUnavailable:  # the index cannot be read: what changed is unknown
                events = None
            if events is None:
                self._events.tell("reset", repo_id, {})
                return
            for event in events:
                self._events.tell("image", repo_id, event)

        return repo.log.watch(tell)

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_EVERY_S):
            if self._events.has_listeners():
                self.look()

    def look(self) -> None:
        """Check every connected repository for news, except those that have not answered yet."""
        for repo_id, repo in self._connections.connected().items():
            asked = self._asked.get(repo_id)
            if asked is None or asked.has_ended():
                # It fails where a verb would fail too, and the verb reports that to its caller.
                self._asked[repo_id] = self._supervisor.begin(repo.state)
