"""The identity of this host, and which of its processes are alive."""

from __future__ import annotations

import functools
import hashlib
import os
import uuid
from pathlib import Path

import msgspec

from diskyard import errors
from diskyard.model.identity import HostIdentity


class ProcessIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """One process of one boot of one machine. No other process ever has the same identity.

    :param pid_namespace: the namespace in which ``pid`` counts: a container has its own process ids, and
        may well share the machine's id and its files.
    """

    machine_id: str
    boot_id: str
    pid_namespace: int
    pid: int
    start_ticks: int


def _machine_id() -> str:
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text:
            # machine-id(5) asks programs not to show the id itself.
            return hashlib.blake2b(text.encode(), key=b"diskyard", digest_size=16).hexdigest()
    raise errors.InternalError(
        "This host has no machine id.",
        advice="Create /etc/machine-id, for instance with systemd-machine-id-setup.",
    )


def this_host() -> HostIdentity:
    """The identity of this host; ``$DISKYARD_HOST_ID`` names it instead of its machine id."""
    machine_id = _machine_id()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    host_id = os.environ.get("DISKYARD_HOST_ID") or machine_id
    if len(host_id.encode(errors="replace")) > 255 or not host_id.isprintable():
        raise errors.InvalidParameter("$DISKYARD_HOST_ID must be 1-255 bytes of printable text.")
    return HostIdentity(host_id=host_id, machine_id=machine_id, boot_id=boot_id.replace("-", ""))


def _start_ticks(pid: int) -> int | None:
    """When a process of this host started, in clock ticks since boot; None if /proc does not show it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The command name, in parentheses, may itself contain spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    # A zombie has ended; it only waits for its parent.
    return None if fields[0] == "Z" else int(fields[19])


def _pid_namespace() -> int:
    """The number of the PID namespace of this process: ``/proc`` shows it as ``pid:[4026531836]``."""
    return int(os.readlink("/proc/self/ns/pid").partition("[")[2].rstrip("]"))


def this_process(host: HostIdentity) -> ProcessIdentity:
    """The identity of the calling process."""
    pid, pid_namespace, start_ticks = _own_numbers()
    return ProcessIdentity(
        machine_id=host.machine_id,
        boot_id=host.boot_id,
        pid_namespace=pid_namespace,
        pid=pid,
        start_ticks=start_ticks,
    )


def process_of(host: HostIdentity, pid: int) -> ProcessIdentity | None:
    """The identity of the process that has a number in this namespace; None if /proc shows none that runs."""
    start_ticks = _start_ticks(pid)
    if start_ticks is None:
        return None
    return ProcessIdentity(
        machine_id=host.machine_id,
        boot_id=host.boot_id,
        pid_namespace=_pid_namespace(),
        pid=pid,
        start_ticks=start_ticks,
    )


@functools.cache
def _own_numbers() -> tuple[int, int, int]:
    """Process id, PID namespace and start time of this process; cached, as each temporary file needs them."""
    pid = os.getpid()
    start_ticks = _start_ticks(pid)
    if start_ticks is None:
        raise errors.InternalError("/proc does not show this process.")
    return pid, _pid_namespace(), start_ticks


os.register_at_fork(after_in_child=_own_numbers.cache_clear)


def provably_gone(process: ProcessIdentity, host: HostIdentity) -> bool:
    """Whether ``process`` certainly no longer runs; False whenever this host cannot know."""
    if process.machine_id != host.machine_id:
        return False
    if process.boot_id != host.boot_id:
        return True
    if process.pid_namespace != _pid_namespace():
        return False  # /proc shows the processes of another namespace here
    ticks = _start_ticks(process.pid)
    if ticks is None:
        return not _is_hidden(process.pid)
    return ticks != process.start_ticks


def _is_hidden(pid: int) -> bool:
    """Whether a process has this number although /proc does not show it: proc(5) may hide other users'."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # This user may signal it, so /proc would show it if it were alive: it is a zombie.
    return False


def provably_gone_host(other: HostIdentity, host: HostIdentity) -> bool:
    """Whether a boot of a machine has certainly ended; False whenever this host cannot know."""
    return other.machine_id == host.machine_id and other.boot_id != host.boot_id


def new_uuid() -> str:
    """A fresh random UUID, lower case with hyphens."""
    return str(uuid.uuid4())


def uuid_of(*words: str) -> str:
    """The UUID that stands for some words: the same whenever it is asked for."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "\0".join(words)))


def new_nonce() -> str:
    """128 random bits in hexadecimal."""
    return uuid.uuid4().hex
