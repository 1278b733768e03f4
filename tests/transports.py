"""How a test reaches the service: embedded, or a daemon over its Unix socket or over TLS.

Each test of the API and of the command line is run over one of the three, which a hash of the seed
and of its name chooses; ``$DISKYARD_TEST_TRANSPORT`` chooses one for all. What is about being
embedded says so with ``@pytest.mark.embedded("why")``, and the run counts it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from diskyard import Diskyard
from diskyard.client.values import OnProgress
from diskyard.daemon.caretaker import Caretaker
from diskyard.daemon.config import (
    Config,
    LimitsConfig,
    RepositoriesConfig,
    SocketConfig,
    TcpConfig,
    TransferConfig,
)
from diskyard.daemon.daemon import make_application
from diskyard.daemon.listeners import Listeners
from diskyard.daemon.tokens import Tokens
from diskyard.host import Host
from diskyard.testing.daemon_process import make_certificate
from diskyard.testing.effort import Effort

TransportName = Literal["embedded", "unix", "tls"]
VARIABLE = "DISKYARD_TEST_TRANSPORT"
PROPERTY = "diskyard-transport"
_START_MOST_S = 30.0

#: What the running test uses; tests of other folders are embedded.
current: TransportName = "embedded"


def chosen(
    request: pytest.FixtureRequest, among: Sequence[TransportName] = get_args(TransportName)
) -> TransportName:
    """The transport of a test, noted for the summary of the run."""
    mark = request.node.get_closest_marker("embedded")
    if mark is not None:
        (reason,) = mark.args
        request.node.user_properties.append((PROPERTY, f"embedded, which they are about: {reason}"))
        return "embedded"
    forced = os.environ.get(VARIABLE, "")
    assert forced in ("", *get_args(TransportName)), f"${VARIABLE} is {forced!r}"
    fitting = [name for name in among if name == forced] or list(among)
    words = f"{Effort.of_environment().seed}:{request.node.nodeid}"
    name = fitting[hashlib.sha256(words.encode()).digest()[0] % len(fitting)]
    request.node.user_properties.append((PROPERTY, name))
    return name


@cache
def certificate() -> tuple[Path, Path]:
    """The certificate and key of this process's servers."""
    return make_certificate(Path(tempfile.mkdtemp(prefix="diskyard-tls-")))


class _Server:
    """The real application on real sockets, around the service of a test, in a thread."""

    def __init__(self, yard: Diskyard, name: TransportName) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="diskyard-"))
        tcp = None
        if name == "tls":
            pem, key = certificate()
            tcp = TcpConfig(listen="127.0.0.1:0", certificate=str(pem), key=str(key))
        config = Config(
            state_dir=str(self._folder),
            socket=SocketConfig(path=str(self._folder / "d.sock")),
            tcp=tcp,
            limits=LimitsConfig(requests_per_s=0, work_ms_per_s=0),
            transfer=TransferConfig(folders=("/",)),
            repositories=RepositoriesConfig(folders=("/",)),
        )
        _, self.token = Tokens(str(self._folder)).create("tests", "admin", None, None)
        self._application = make_application(config, yard.service, None, Caretaker(yard.service, ()))
        self._application.health.ready = True
        self._listeners = Listeners(config, Host.real(), self._application.connections)
        self.url = self._listeners.tls_url or f"unix://{self._listeners.socket_path}"
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="test-server")
        self._thread.start()
        deadline_s = time.monotonic() + _START_MOST_S
        while not self._listeners.listening:
            assert self._thread.is_alive(), self._failure
            assert time.monotonic() < deadline_s
            time.sleep(0.002)

    def _serve(self) -> None:
        try:
            asyncio.run(self._listeners.serve(self._application.asgi()))
        except BaseException as error:  # noqa: BLE001 - raised where the server is closed
            self._failure = error

    def close(self) -> None:
        """End it; what is asked is answered first."""
        self._application.health.stopping = True
        self._application.streams.stopping.set()
        self._listeners.stop()
        self._thread.join()
        self._listeners.close()
        shutil.rmtree(self._folder)
        assert self._failure is None, self._failure


class Served(Diskyard):
    """A client of a daemon whose service is in this process, where a test can look at it."""

    def __init__(self, embedded: Diskyard, name: TransportName) -> None:
        self._server = _Server(embedded, name)
        ca_file = str(certificate()[0]) if name == "tls" else None
        super().__init__(self._server.url, token=self._server.token, ca_file=ca_file)
        self._embedded = embedded
        self._service = embedded.service
        self._is_open = True

    def wait_for_tasks(self, timeout_s: float | None = None, on_progress: OnProgress | None = None) -> bool:
        """Wait for this client's tasks, and for those that the host began of itself."""
        ended = super().wait_for_tasks(timeout_s, on_progress)
        return ended and self.service.tasks.wait(timeout_s=timeout_s)

    def close(self) -> None:
        """End the client, the server and the service."""
        if not self._is_open:
            return
        self._is_open = False
        super().close()
        self._server.close()
        self._embedded.close()


def served(embedded: Diskyard) -> Diskyard:
    """A host of a test, as the running test is to reach it."""
    return embedded if current == "embedded" else Served(embedded, current)


def summary(reports: list[Any]) -> list[str]:
    """How many tests were run over what, one line each."""
    counts: dict[str, int] = {}
    for report in reports:
        for key, value in getattr(report, "user_properties", ()):
            if key == PROPERTY:
                counts[value] = counts.get(value, 0) + 1
    return [f"{count} tests: {what}" for what, count in sorted(counts.items())]
