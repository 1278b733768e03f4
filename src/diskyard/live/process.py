"""Which process runs a guest, so that a record about it applies to no other."""

from __future__ import annotations

from dataclasses import dataclass

from diskyard import errors
from diskyard.host import Host, ProcessIdentity, process_of, provably_gone


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this host. No other process ever equals it, also not one that gets its number later.

    :param pid: its number.
    :param started: when it started, in the words of :func:`process_with`: the boot, the namespace in which
        the number counts, and the start time of /proc/PID/stat.
    """

    pid: int
    started: str


def process_with(host: Host, pid: int) -> Process | None:
    """The process that has a number now; None if /proc shows none that runs."""
    found = process_of(host.identity, pid)
    if found is None:
        return None
    return Process(pid, f"{found.boot_id}/{found.pid_namespace}/{found.start_ticks}")


def is_alive(host: Host, process: Process) -> bool:
    """Whether a process of this host may still run: False is proof that it does not.

    :raises diskyard.errors.CorruptRecord: the words for its start are not those of :func:`process_with`.
    """
    boot_id, *numbers = process.started.split("/")
    if len(numbers) != 2 or not all(number.isascii() and number.isdigit() for number in numbers):
        raise errors.CorruptRecord(
            f"The start of process {process.pid} is told as {process.started!r}, which has no meaning."
        )
    pid_namespace, start_ticks = map(int, numbers)
    identity = ProcessIdentity(
        machine_id=host.identity.machine_id,
        boot_id=boot_id,
        pid_namespace=pid_namespace,
        pid=process.pid,
        start_ticks=start_ticks,
    )
    return not provably_gone(identity, host.identity)
