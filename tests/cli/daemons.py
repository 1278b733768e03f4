"""The daemon that a test of the command line is run against, if it is run against one."""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path

from diskyard import Diskyard
from diskyard.daemon.tokens import Tokens
from diskyard.testing.daemon_process import DaemonProcess
from tests.transports import TransportName

#: Commands that ask nobody: no daemon is started for them.
_LOCAL = {"--help", "--version", "completion", "serve", "token"}
_TABLES = {"transfer": {"folders": ["/"]}, "repositories": {"folders": ["/"]}}


class Daemons:
    """The daemon of a test's state folder, and one for each other host that a command is run as.

    On the Unix socket the command line finds it by itself; over TLS the environment names it.
    """

    def __init__(self, transport: TransportName, state_folder: Path) -> None:
        self.transport = transport
        self._state_folder = state_folder
        self._folder = Path(tempfile.mkdtemp(prefix="diskyard-"))
        self._running: dict[str, DaemonProcess] = {}

    def environment(self, words: tuple[str, ...], given: dict[str, str]) -> dict[str, str]:
        """The variables of a command: those given, and those that name the daemon, which is started."""
        if self.transport == "embedded" or (words and words[0] in _LOCAL):
            return given
        host_id = given.get("DISKYARD_HOST_ID", "")
        daemon = self._running.get(host_id) or self._start(host_id)
        if self.transport == "unix":
            # The file in the state folder names it; of another host, nothing does.
            return {**given, "DISKYARD_URL": daemon.url} if host_id else given
        token = (daemon.state_folder / "test-token").read_text()
        found = {
            "DISKYARD_URL": daemon.tls_url,
            "DISKYARD_TOKEN": token,
            "DISKYARD_CA_FILE": str(daemon.ca_file),
        }
        return {**found, **given}

    def _start(self, host_id: str) -> DaemonProcess:
        environment = {"DISKYARD_HOST_ID": host_id} if host_id else {}
        state_folder = self._state_folder
        if host_id:
            state_folder = self._folder / f"state-{len(self._running)}"
            state_folder.mkdir()
            shutil.copy(self._state_folder / "connections.json", state_folder)
        folder = self._folder / f"{len(self._running)}"
        daemon = DaemonProcess(folder, _TABLES, environment, state_folder=state_folder, forked=True)
        if self.transport == "tls":
            _, token = Tokens(str(state_folder)).create("tests", "admin", None, None)
            (state_folder / "test-token").write_text(token)
        self._running[host_id] = daemon.start()
        return daemon

    def yard(self) -> Diskyard:
        """A client of the daemon."""
        self.environment(("repo", "list"), {})
        daemon = self._running[""]
        if self.transport == "unix":
            return Diskyard(daemon.url)
        token = (daemon.state_folder / "test-token").read_text()
        return Diskyard(daemon.tls_url, token=token, ca_file=str(daemon.ca_file))

    def kill(self) -> None:
        """End the daemon in the middle of whatever it does."""
        self._running.pop("").stop(signal.SIGKILL)

    @property
    def log(self) -> str:
        """What the daemons told."""
        return "".join(daemon.log_path.read_text() for daemon in self._running.values())

    def end(self) -> None:
        """Stop them all, in order."""
        for daemon in self._running.values():
            status = daemon.stop()
            assert status == 0, daemon.log_path.read_text()
        shutil.rmtree(self._folder)
