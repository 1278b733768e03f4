"""The ways to call Diskyard: embedded, over HTTP, and by the command. All raise the same errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from diskyard import errors
from diskyard.client.yard import Diskyard
from diskyard.service import Service, call
from diskyard.testing.world import host_named

_COMMAND_MOST_S = 240.0


class Caller(Protocol):
    """Someone who can call verbs."""

    def __call__(self, verb: str, parameters: dict[str, Any]) -> Any:
        """Call a verb and return its result.

        :raises diskyard.errors.DiskyardError: as the verb does.
        """

    def close(self) -> None:
        """End in order."""


class EmbeddedCaller:
    """Diskyard in this process."""

    def __init__(self, host: str, state_folder: Path) -> None:
        self._service = Service(
            host_named(host), str(state_folder), transfer_folders=(str(state_folder.parent),)
        )

    def __call__(self, verb: str, parameters: dict[str, Any]) -> Any:
        """See :class:`Caller`."""
        return call(self._service, verb, parameters)

    def close(self) -> None:
        """See :class:`Caller`."""
        self._service.close()


class HttpCaller:
    """A daemon."""

    def __init__(self, url: str) -> None:
        self._yard = Diskyard(url)

    def __call__(self, verb: str, parameters: dict[str, Any]) -> Any:
        """See :class:`Caller`."""
        return self._yard.transport.call(verb, parameters)

    def close(self) -> None:
        """See :class:`Caller`."""
        self._yard.close()


class CommandCaller:
    """The command: a process for each call."""

    def __init__(self, host: str, state_folder: Path, *, wait: bool) -> None:
        self._environment = {
            **os.environ,
            "DISKYARD_HOST_ID": host,
            "DISKYARD_STATE_DIR": str(state_folder),
        }
        self._options = ["--embedded", *([] if wait else ["--no-wait"])]

    def __call__(self, verb: str, parameters: dict[str, Any]) -> Any:
        """See :class:`Caller`."""
        words = [sys.executable, "-m", "diskyard.cli", "call", *self._options, verb, json.dumps(parameters)]
        ran = subprocess.run(
            words,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_COMMAND_MOST_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if ran.returncode == 0:
            return json.loads(ran.stdout) if ran.stdout.strip() else None
        try:
            said = json.loads(ran.stderr.strip().splitlines()[-1])
            kind = errors.CODES[said.pop("code")]
        except (ValueError, IndexError, KeyError):
            raise AssertionError(f"{verb}: status {ran.returncode}: {ran.stderr[-2000:]}") from None
        details = {
            name: str(value) for name, value in said.items() if name not in ("message", "advice", "retryable")
        }
        raise kind(said["message"], advice=said["advice"], **details)

    def close(self) -> None:
        """See :class:`Caller`."""
