"""What a program that Diskyard starts may use and do: limits, rights, and its environment."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_DESCRIPTORS_MOST = 65_536  # a deep backing chain needs more than a shell's usual limit
_CAP_DAC_OVERRIDE, _CAP_SETPCAP = 1, 8  # linux/capability.h
_KIB = 1 << 10
_BLOCK_BYTES = 512  # of the shell's ulimit -f
_FEW_HEAPS = "glibc.malloc.arena_max=2"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use when it reads something that is not trusted."""

    address_space_bytes: int = 1 << 30
    cpu_s: int = 60
    file_size_bytes: int | None = None
    descriptors: int = 256


def limit_words(limits: Limits | None) -> list[str]:
    """The arguments of ``ulimit`` for a program: options and their values, in turn.

    No program dumps core: its memory holds what guests have on their disks. There is no limit on the number
    of processes: the kernel would count all processes of the user, and none for root.

    :param limits: None for a program that reads trusted files. Only its descriptors are limited, because the
        memory for a backing chain grows with the chain's length.
    """
    wanted = [("-c", resource.RLIMIT_CORE, 0, 1)]
    descriptors = limits.descriptors if limits else _DESCRIPTORS_MOST
    wanted.append(("-n", resource.RLIMIT_NOFILE, descriptors, 1))
    if limits:
        wanted.append(("-v", resource.RLIMIT_AS, limits.address_space_bytes, _KIB))
        wanted.append(("-t", resource.RLIMIT_CPU, limits.cpu_s, 1))
        if limits.file_size_bytes is not None:
            wanted.append(("-f", resource.RLIMIT_FSIZE, limits.file_size_bytes, _BLOCK_BYTES))
    return [
        word
        for option, number, value, unit in wanted
        for word in (option, str(_at_most_allowed(number, value) // unit))
    ]


def _at_most_allowed(number: int, value: int) -> int:
    """A limit that can be set: if this process already has a lower one, it cannot be raised."""
    _, hard = resource.getrlimit(number)
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def right_words() -> list[str]:
    """The options of ``setpriv`` that leave a program only the right to open what this process can open.

    For root, that right is the capability CAP_DAC_OVERRIDE: volumes belong to the user that runs the guests,
    and opening an inherited descriptor again (/dev/fd/N) checks their modes too. QEMU's programs need no
    other capability.
    """
    sets = _capabilities()
    words = ["--no-new-privs"]
    # A program that root executes gets everything in the bounding set. If the process may not reduce the
    # set, setpriv of util-linux 2.41 fails, and setpriv of util-linux 2.38 does nothing.
    if sets["CapEff"] >> _CAP_SETPCAP & 1:
        words.append("--bounding-set=-all,+dac_override")
    # A user other than root has such a capability as an ambient one, which must be inheritable too.
    kept = ",+dac_override" if sets["CapAmb"] >> _CAP_DAC_OVERRIDE & 1 else ""
    words.append(f"--inh-caps=-all{kept}")
    return words


def _capabilities() -> dict[str, int]:
    """This thread's sets of capabilities, by their names in proc(5)."""
    found = {}
    for line in Path("/proc/thread-self/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.startswith("Cap"):
            found[name] = int(value, 16)
    return found


def told_to(environment: Mapping[str, str] | None, limits: Limits | None) -> dict[str, str]:
    """The whole environment of a program: of this process's own variables only PATH.

    A program has no business with the tokens and passwords in Diskyard's environment.

    :param environment: additional variables for this program.
    :param limits: of this program. If its address space is limited, few of its threads get a heap of their
        own: glibc reserves 64 MiB for each, and on a busy host QEMU's threads could need all there is.
    """
    few_heaps = {} if limits is None else {"GLIBC_TUNABLES": _FEW_HEAPS}
    path = os.environ.get("PATH", os.defpath)
    return {"PATH": path, "LC_ALL": "C", **few_heaps, **(environment or {})}
