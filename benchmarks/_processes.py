"""Runs what is compared, and measures it from outside: time, processor time and peak memory.

Peak memory is the kernel's own high-water mark of each process (VmHWM), read every 10 ms until the
process ends, and the peaks of all processes that ran at one time are added up. ``ru_maxrss`` would
not do: a child that is started by a large program counts that program's pages as its own.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

KiB = 1 << 10
MiB = 1 << 20
LOOK_EVERY_MS = 10

Command = Sequence[str]


class Failed(Exception):
    """A program that is compared has failed; what it said."""


@dataclass
class Outcome:
    """One run of one contestant.

    :param took_s: until the result was durable.
    :param cpu_s: of all its processes, user and system.
    :param memory_bytes: the peak of each program of the hungriest step.
    :param base_bytes: what ours had in memory before it began; part of its peak.
    :param said: what the last program printed.
    :param remark: what the table tells of it beside the figures.
    """

    took_s: float = 0.0
    cpu_s: float = 0.0
    memory_bytes: dict[str, int] = field(default_factory=dict)
    base_bytes: int = 0
    said: str = ""
    remark: str = ""

    @property
    def peak_bytes(self) -> int:
        """Of all its programs together."""
        return sum(self.memory_bytes.values())


def run(*words: str) -> str:
    """Run a program that must succeed, outside any measurement; what it printed."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


def measure(steps: Sequence[Command]) -> Outcome:
    """Run programs one after the other, and measure them together.

    :raises Failed: one of them has failed; none is left running.
    """
    total = Outcome()
    for words in steps:
        outcome = _measure_one(words)
        total.took_s += outcome.took_s
        total.cpu_s += outcome.cpu_s
        if outcome.peak_bytes > total.peak_bytes:
            total.memory_bytes = outcome.memory_bytes
        total.said = outcome.said
    return total


def _measure_one(words: Command) -> Outcome:
    begin_s = time.perf_counter()
    # In a session of its own, so that Ctrl-C reaches this program alone, which cleans up.
    child = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        memory = _Memory(child.pid)
        _watch(child.pid, memory)
        _, status, usage = os.wait4(child.pid, 0)
        took_s = time.perf_counter() - begin_s
        child.returncode = os.waitstatus_to_exitcode(status)
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    assert child.stdout is not None
    with child.stdout:
        said = child.stdout.read().decode(errors="replace")
    if child.returncode != 0:
        raise Failed(f"{' '.join(words)}: {said}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return Outcome(took_s, cpu_s, memory.by_program(), said=said)


def _watch(pid: int, memory: _Memory) -> None:
    """Look at a program's memory until it ends."""
    end = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(end, select.POLLIN)
        memory.look()
        while not poll.poll(LOOK_EVERY_MS):
            memory.look()
    finally:
        os.close(end)


class _Memory:
    """The high-water marks of a process and of all that descend from it."""

    def __init__(self, pid: int) -> None:
        self._known = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        self._peaks: dict[int, tuple[str, int]] = {}
        self._tree = {pid}

    def look(self) -> None:
        """Find new processes, and read the marks."""
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) not in self._known:
                self._known.add(int(name))
                if _parent_of(int(name)) in self._tree:
                    self._tree.add(int(name))
        for pid in self._tree:
            self._read(pid)

    def _read(self, pid: int) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
        except OSError:
            return  # it has ended
        _, found, after = status.partition("VmHWM:")
        if found:
            # A process that has just been forked is its parent's program, with its pages, until it
            # is another: what it has then replaces them.
            self._peaks[pid] = (program, int(after.split()[0]) * KiB)

    def by_program(self) -> dict[str, int]:
        """The peaks, of processes of one name added up."""
        total: dict[str, int] = {}
        for name, peak_bytes in self._peaks.values():
            total[name] = total.get(name, 0) + peak_bytes
        return total


def _parent_of(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])
