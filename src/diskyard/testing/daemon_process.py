"""A real daemon in a process of its own, on a Unix socket and on TLS, for tests to call, stop and kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from diskyard import cli
from diskyard.testing.forking import FORKING

_START_MOST_S = 30.0
_STOP_MOST_S = 60.0
_LOOK_S = 0.02


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    files = ["-keyout", str(key), "-out", str(certificate), "-addext", names]
    subprocess.run(["openssl", *words.split(), *files], check=True, capture_output=True)
    return certificate, key


def _become(words: Sequence[str], environment: Mapping[str, str], log_path: Path) -> None:
    """Be the daemon, in a process that was forked for it."""
    os.environ.clear()
    os.environ.update(environment)
    with log_path.open("ab") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    sys.argv[1:] = words
    cli.main()


class DaemonProcess:
    """A daemon on a state directory; started by :meth:`start` or a ``with`` block.

    :param folder: for its files; has a short path, since the socket is in it.
    :param tables: tables of the configuration beyond those for listening: ``{"tasks": {"at_once": 1}}``. By
        default repositories may be in its directory.
    :param environment: variables of the process beyond the caller's own.
    :param through: the command line of a program that then executes the daemon.
    :param forked: fork it from a process that has imported all it needs, which saves half a second of work.
        For tests that are not about how it is started, or what it is as a process.
    :ivar socket_path: where it answers without a token.
    :ivar ca_file: the certificate with which its TLS certificate is checked.
    """

    def __init__(
        self,
        folder: Path,
        tables: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        *,
        state_folder: Path | None = None,
        through: Sequence[str] = (),
        forked: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.state_folder = state_folder or folder / "state"
        self.socket_path = folder / "d.sock"
        self.ca_file, self._key = make_certificate(folder)
        self._tables = dict(tables or {})
        self._through = tuple(through)
        self._forked = forked
        assert not (through and forked)
        self._environment = {
            **os.environ,
            **(environment or {}),
            "DISKYARD_STATE_DIR": str(self.state_folder),
        }
        self._process: subprocess.Popen[bytes] | BaseProcess | None = None
        self.log_path = folder / "log"

    @property
    def url(self) -> str:
        """Its URL on the Unix socket, for the client."""
        return f"unix://{self.socket_path}"

    @property
    def tls_url(self) -> str:
        """Its URL for callers with tokens."""
        announced = json.loads((self.state_folder / "daemon.json").read_text())
        return str(announced["tls_url"])

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    def place(self, name: str) -> dict[str, str]:
        """Connection parameters for a repository in the daemon's directory."""
        return {"path": str(self.folder / f"repo-{name}")}

    def start(self) -> Self:
        """Start it and wait until it is ready."""
        config = self.folder / "diskyard.toml"
        config.write_text(self._toml())
        words = ["serve", "--config", str(config)]
        if self._forked:
            arguments = (words, self._environment, self.log_path)
            self._process = FORKING.Process(target=_become, args=arguments, daemon=True)
            self._process.start()
        else:
            self._process = self._executed(words)
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop(signal.SIGKILL)
            raise
        return self

    def _executed(self, words: Sequence[str]) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [*self._through, sys.executable, "-m", "diskyard.cli", *words],
                env=self._environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def _status(self) -> int | None:
        """Its exit status, if it has ended."""
        assert self._process is not None
        return self._process.exitcode if isinstance(self._process, BaseProcess) else self._process.poll()

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + _START_MOST_S
        while not self._is_ready():
            assert self._status() is None, self.log_path.read_text()
            assert time.monotonic() < deadline_s, self.log_path.read_text()
            time.sleep(_LOOK_S)

    def _is_ready(self) -> bool:
        try:
            announced = json.loads((self.state_folder / "daemon.json").read_text())
        except FileNotFoundError:
            return False
        if announced["pid"] != self.pid:
            return False  # the socket of a daemon that was killed
        with self.client() as client:
            return client.get("/healthz/ready").status_code == 200

    def _toml(self) -> str:
        tables: dict[str, Any] = {
            "repositories": {"folders": [str(self.folder)]},
            "socket": {"path": str(self.socket_path)},
            "tcp": {"listen": "127.0.0.1:0", "certificate": str(self.ca_file), "key": str(self._key)},
            **self._tables,
        }
        lines = []
        for name, found in tables.items():
            for table in found if isinstance(found, list) else [found]:
                lines.append(f"[[{name}]]" if isinstance(found, list) else f"[{name}]")
                # Values that JSON and TOML write in the same way: text, numbers, booleans, lists of these.
                lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        return "\n".join(lines)

    def client(self, **words: Any) -> httpx.Client:
        """A plain HTTP client on the Unix socket."""
        transport = httpx.HTTPTransport(uds=str(self.socket_path), verify=False)  # plain HTTP
        return httpx.Client(transport=transport, base_url="http://daemon", timeout=60.0, **words)

    def call(self, verb: str, **parameters: Any) -> Any:
        """Call a verb on the Unix socket; its result."""
        with self.client() as client:
            answer = client.post(f"/v1/{verb}", json=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait_for_task(self, task_id: str) -> Any:
        """Wait until a task has ended; the task as it ended."""
        deadline_s = time.monotonic() + _STOP_MOST_S
        while (task := self.call("getTask", taskId=task_id))["state"] in ("queued", "running"):
            assert time.monotonic() < deadline_s, task
            time.sleep(_LOOK_S)
        return task

    def wait_for_image(self, repository_id: str, image_id: str) -> str:
        """Wait until nothing works on an image any more; its status."""
        deadline_s = time.monotonic() + _STOP_MOST_S
        while True:
            found = self.call("getImageStatus", repositoryId=repository_id, imageId=image_id)
            if found["taskId"] is None:
                return str(found["status"])
            assert time.monotonic() < deadline_s, found
            time.sleep(_LOOK_S)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal and wait for its end; its exit status."""
        self.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; its exit status."""
        if isinstance(self._process, BaseProcess):
            self._process.join(_STOP_MOST_S)
        else:
            assert self._process is not None
            self._process.wait(_STOP_MOST_S)
        status = self._status()
        assert status is not None, "it does not end"
        self._process = None
        return status

    def send_signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal, if it has not ended."""
        if self._status() is None:
            os.kill(self.pid, number)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.stop(signal.SIGTERM if kind is None else signal.SIGKILL)
