"""The real program, run as people and scripts run it, and QEMU's tools to look at the bytes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diskyard import Diskyard
from tests.cli.daemons import Daemons

PROGRAM = (sys.executable, "-m", "diskyard.cli")
ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\n")


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def id(self) -> str:
        assert ID.fullmatch(self.out), self
        return self.out.strip()


class Program:
    """The program with two repositories connected, ``fast`` and ``backup``."""

    def __init__(self, folder: Path, daemons: Daemons) -> None:
        self.folder = folder
        self.daemons = daemons
        self._children: list[subprocess.Popen[str]] = []
        for name in ("fast", "backup"):
            (folder / name).mkdir()

    def run(self, *words: str, status: int | None = 0, stdin: str = "", **environment: str) -> Ended:
        environment = self.daemons.environment(words, environment)
        return self.alone(*words, status=status, stdin=stdin, **environment)

    def alone(self, *words: str, status: int | None = 0, stdin: str = "", **environment: str) -> Ended:
        """Run it without starting a daemon for it."""
        done = subprocess.run(
            [*PROGRAM, *words],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=self.folder,
            timeout=60,
            env={**os.environ, **environment},
            check=False,
        )
        ended = Ended(done.returncode, done.stdout, done.stderr)
        assert ended.status == status if status is not None else ended.status != 0, ended
        assert "Traceback" not in ended.err, ended
        return ended

    def call(self, verb: str, status: int = 0, **parameters: object) -> Any:
        ended = self.run("call", verb, json.dumps(parameters), status=status)
        return json.loads(ended.err) if status else ended.json

    def yard(self) -> Diskyard:
        """A client of the daemon."""
        return self.daemons.yard()

    def disk(self, repo: str, name: str) -> str:
        """A disk of 1 MiB, made without the program: its id."""
        with Diskyard() as yard:
            return yard.create_virtual_disk(repo, 1 << 20, user_data={"name": name})

    def start(self, *words: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [*PROGRAM, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={**os.environ, **self.daemons.environment(words, {})},
        )
        self._children.append(child)
        return child

    def end(self) -> None:
        """End what a test that failed left running."""
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.communicate()

    def on_terminal(self, *words: str, columns: int = 80) -> str:
        """What a terminal of this width is sent."""
        ours, theirs = pty.openpty()
        terminal = {"COLUMNS": str(columns), "TERM": "xterm"}
        environment = {**os.environ, **self.daemons.environment(words, terminal)}
        child = subprocess.Popen(
            [*PROGRAM, *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=self.folder,
            env=environment,
        )
        os.close(theirs)
        sent = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # a terminal ends so when nobody has its other side open
                break
            if not part:
                break
            sent += part
        os.close(ours)
        assert child.wait() == 0, sent
        return sent.decode()

    def write(self, image: str, pattern: int, offset: str, length: str) -> None:
        """Write to REPO/NAME through QEMU, as a guest."""
        self._with_image(image, "wrote", f"write -P {pattern} {offset} {length}", read_only=False)

    def reads(self, image: str, pattern: int, offset: str, length: str) -> None:
        """Assert what QEMU reads from REPO/NAME."""
        self._with_image(image, "read", f"read -P {pattern} {offset} {length}", read_only=True)

    def _with_image(self, image: str, word: str, command: str, *, read_only: bool) -> None:
        repo, _, name = image.partition("/")
        with Diskyard() as yard:
            images = yard.list_images(repo).images
            (image_id,) = (found.image_id for found in images if found.user_data.get("name") == name)
            attached = yard.prepare_image(repo, image_id, {"read_only": read_only})
            done = subprocess.run(
                [
                    "qemu-io",
                    *(["-r"] if read_only else []),
                    "-c",
                    command,
                    f"json:{json.dumps(attached.blockdev)}",
                ],
                capture_output=True,
                text=True,
                check=True,
            )
            yard.teardown_image(repo, image_id)
        assert word in done.stdout, done
        assert "failed" not in done.stdout + done.stderr, done


def interrupt_when_running(child: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str, str]:
    """Send a signal once the id is printed, which is when the work begins."""
    assert child.stdout is not None
    first = child.stdout.readline()
    time.sleep(0.3)
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    return child.returncode, first + out, err
