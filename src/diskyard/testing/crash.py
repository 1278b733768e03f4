"""A scenario in a process of its own, which is killed (SIGKILL), or held, at a chosen step.

Processes are forked from a server that has everything imported and no threads, so that one
costs about 20 ms.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from diskyard import errors
from diskyard.host.identity import new_nonce
from diskyard.testing.forking import FORKING
from diskyard.testing.scenarios import find_scenario
from diskyard.testing.steps import Side, Steps, stepping_host
from diskyard.testing.world import World

ACTING_HOST = "acting-host"
_END_TIMEOUT_S = 120.0
_ORPHANS_TIMEOUT_S = 10.0
_POLL_S = 0.002
_RUN_VARIABLE = "DISKYARD_TEST_RUN"  # programs inherit this variable, which is how they are found


@dataclass(frozen=True, slots=True)
class Ran:
    """What happened to a scenario's process.

    :param names: the steps that it did, in order; empty if it was killed.
    :param answered: its caller got the answer that it was done.
    :param error_code: of the error that its caller got instead.
    :param killed: it died by SIGKILL.
    """

    names: tuple[str, ...]
    answered: bool
    error_code: str | None
    killed: bool


def run_scenario(
    name: str,
    world: World,
    *,
    kill_at: int | None = None,
    side: Side = "before",
    boot_id: str | None = None,
) -> Ran:
    """Run a scenario's operation in another process, which may be killed.

    :param kill_at: the index of the step at which it is killed; None to let it live.
    :param side: whether just before that step, or just after it.
    :param boot_id: of its boot; None for one that has ended.
    """
    ours, theirs = FORKING.Pipe()
    run_id = new_nonce()
    args = (name, _bare(world), run_id, kill_at, side, False, boot_id or new_nonce(), theirs)
    process = FORKING.Process(target=_play, args=args)
    process.start()
    theirs.close()
    with ours:
        ran = _listen(ours)
    _end(process, run_id)
    return replace(ran, killed=process.exitcode == -signal.SIGKILL)


class Held:
    """A scenario's process that waits in the middle of its operation, as a suspended one does."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        first = pipe.recv()
        self.is_held: bool = first == "held"
        self._first: Any = first

    def go_on(self) -> Ran:
        """Let it go on to its end."""
        if self.is_held:
            self._pipe.send("go on")
            return _listen(self._pipe)
        return _listen(self._pipe, self._first)


@contextmanager
def held_scenario(name: str, world: World, *, hold_at: int, boot_id: str | None = None) -> Iterator[Held]:
    """Run a scenario's operation in another process, which waits before a step until it may go on.

    :param boot_id: of its boot; None for this machine's.
    """
    ours, theirs = FORKING.Pipe()
    run_id = new_nonce()
    args = (name, _bare(world), run_id, hold_at, "before", True, boot_id, theirs)
    process = FORKING.Process(target=_play, args=args)
    process.start()
    theirs.close()
    try:
        with ours:
            yield Held(ours)
    finally:
        _end(process, run_id)


def _bare(world: World) -> World:
    """The parts of a world that another process needs."""
    return replace(world, images={}, user_data={})


def _listen(pipe: Connection, first: Any = None) -> Ran:
    names: tuple[str, ...] = ()
    answered, error_code = False, None
    try:
        while True:
            told = first or pipe.recv()
            first = None
            match told:
                case ("ended", code):
                    answered, error_code = code is None, code
                case ("steps", found):
                    names = tuple(found)
    except EOFError:
        return Ran(names, answered, error_code, killed=False)


def _play(
    name: str,
    world: World,
    run_id: str,
    stop_at: int | None,
    side: Side,
    hold: bool,
    boot_id: str | None,
    pipe: Connection,
) -> None:
    """The work of the other process."""
    os.environ[_RUN_VARIABLE] = run_id
    steps = Steps()
    service = world.service(stepping_host(steps, ACTING_HOST, boot_id=boot_id))
    scenario = find_scenario(name)
    steps.names.clear()
    steps.side, steps.stop_at = side, stop_at
    steps.stop = (lambda: _wait(pipe)) if hold else _die
    error_code = None
    try:
        scenario.act(world, service)
    except errors.DiskyardError as error:
        error_code = error.code
    steps.stop = None
    pipe.send(("ended", error_code))
    service.close()
    pipe.send(("steps", steps.names))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _wait(pipe: Connection) -> None:
    pipe.send("held")
    pipe.recv()


def _end(process: multiprocessing.process.BaseProcess, run_id: str) -> None:
    """Wait for a process, and for the programs that it started, which die with it."""
    process.join(_END_TIMEOUT_S)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError("the operation did not come to an end")
    deadline_s = time.monotonic() + _ORPHANS_TIMEOUT_S
    while left := _processes_of(run_id):
        assert time.monotonic() < deadline_s, f"programs outlive the process that started them: {left}"
        time.sleep(_POLL_S)


def _processes_of(run_id: str) -> list[str]:
    """The processes that were started by a run, and by those."""
    mark = f"{_RUN_VARIABLE}={run_id}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended since it was listed
                if mark in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found
