"""A process that is killed leaves no program running, at whatever moment that is."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from diskyard.host import Host
from diskyard.host.commands import Child
from diskyard.testing.fake_programs import FakePrograms

#: Only a failure takes so long.
_AT_MOST_S = 20.0
_WAITS_UNTIL_ITS_PARENT_IS_GONE = """
import os, sys, time
parent = int(open(PARENT_FILE).read())
while os.getppid() == parent:
    time.sleep(0.01)
os.execv(TRUE_PROGRAM, ["NAME", *sys.argv[1:]])
"""


@pytest.mark.parametrize("late", ["setpriv", "sh"])
def test_a_parent_that_is_killed_while_its_program_starts(tmp_path: Path, late: str) -> None:
    programs = FakePrograms(tmp_path / "bin")
    parent = str(tmp_path / "parent")  # programs have nothing of their parent's environment
    waits = _WAITS_UNTIL_ITS_PARENT_IS_GONE.replace("NAME", late).replace("PARENT_FILE", repr(parent))
    programs.wrap(late, waits)
    assert _ends_with_its_parent(
        f"""
with open({parent!r}, "w") as file:
    file.write(str(os.getpid()))
os.environ["PATH"] = {programs.path!r}
commands.start([sys.executable, "-c", "import time; time.sleep(600)"], limits=Limits(), inherit_fds=[held])
"""
    )


def test_a_parent_that_is_killed_while_its_program_runs() -> None:
    assert _ends_with_its_parent(
        """
program = "import time; print('runs', flush=True); time.sleep(600)"
child = commands.start([sys.executable, "-c", program], inherit_fds=[held], capture=True)
child.stdout.readline()
"""
    )


def test_a_program_ends_with_the_thread_that_started_it() -> None:
    commands = Host.real().commands
    started: list[Child] = []
    program = "import sys, time; print('runs', flush=True); time.sleep(600)"

    def start() -> None:
        child = commands.start([sys.executable, "-c", program], capture=True)
        assert child.stdout is not None
        child.stdout.readline()
        started.append(child)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    try:
        assert commands.wait(started[0], _AT_MOST_S)
        assert started[0].returncode == -signal.SIGKILL
    finally:
        commands.stop(started[0])


def _ends_with_its_parent(code: str) -> bool:
    """Whether what a process starts by ``code`` has ended when that process was killed after it."""
    reading, held = os.pipe()
    beginning = (
        "import os, signal, sys\nfrom diskyard.host import Host, Limits\n"
        f"held, commands = {held}, Host.real().commands\n"
    )
    end = "os.kill(os.getpid(), signal.SIGKILL)\n"
    try:
        words = [sys.executable, "-c", beginning + code + end]
        killed = subprocess.run(words, pass_fds=[held], check=False)
        assert killed.returncode == -signal.SIGKILL
    finally:
        os.close(held)
    try:
        # Who has the other end would have a lease as well; one that lives says nothing.
        readable, _, _ = select.select([reading], [], [], _AT_MOST_S)
        return bool(readable) and os.read(reading, 1) == b""
    finally:
        os.close(reading)
