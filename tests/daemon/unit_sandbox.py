"""Becomes a program under the restrictions of a unit of systemd's, without systemd.

``python unit_sandbox.py UNIT WRITABLE-FOLDER -- PROGRAM...``, as root, in a mount namespace of its own
(``unshare --mount --propagation private``). What each setting means is in systemd.exec(5); one that is
not known here ends it, so that none is left out unseen.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import seccomp

_NEW_NAMESPACES = sum(1 << bit for bit in (17, 25, 26, 27, 28, 29, 30))  # sched.h: CLONE_NEW*
_PROT_WRITE, _PROT_EXEC = 2, 4
_PSEUDO_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_BOUND_IN_DEV = ("pts", "shm", "mqueue", "hugepages")
#: Kept by who starts the program, about its life rather than its powers, or empty of meaning without systemd.
_NOT_POWERS = {
    "Type", "ExecStart", "ExecReload", "Restart", "RestartSec", "RestartPreventExitStatus", "WatchdogSec",
    "TimeoutStopSec", "KillMode", "StateDirectory", "StateDirectoryMode", "RuntimeDirectory",
    "RuntimeDirectoryMode", "LogsDirectory", "LogsDirectoryMode", "ConfigurationDirectory", "Environment",
    "RemoveIPC", "KeyringMode", "ProtectProc", "ProcSubset", "AmbientCapabilities", "MemoryMax", "MemoryHigh",
    "TasksMax",
    # Always done here:
    "NoNewPrivileges", "ProtectKernelTunables", "ProtectControlGroups", "MemoryDenyWriteExecute",
    # Not imitated: nothing in the test sets such bits, or has a foreign program.
    "RestrictSUIDSGID", "SystemCallArchitectures",
}  # fmt: skip
_DENIED = {
    "RestrictNamespaces": ("unshare", "setns"),
    "RestrictRealtime": ("sched_setscheduler", "sched_setattr"),
    "LockPersonality": ("personality",),
    "ProtectClock": ("@clock",),
    "ProtectHostname": ("sethostname", "setdomainname"),
    "ProtectKernelLogs": ("syslog",),
    "ProtectKernelModules": ("@module",),
}


def settings(unit: Path) -> list[tuple[str, str]]:
    """What a unit's [Service] says, in its order: some settings come more than once."""
    section, found = "", []
    for line in unit.read_text(encoding="utf-8").splitlines():
        words = line.strip()
        if words.startswith("["):
            section = words
        elif words and words[0] not in "#;" and section == "[Service]":
            name, _, value = words.partition("=")
            found.append((name, value))
    return found


def mount(*words: str) -> None:
    """Change what this namespace sees."""
    subprocess.run(["mount", "--no-mtab", *words], check=True)


def hide_devices(value: str, writable: Path) -> None:
    """PrivateDevices: pseudo devices alone, and the folders that are no devices."""
    assert value == "yes"
    new = Path(tempfile.mkdtemp(dir="/tmp"))
    mount("-t", "tmpfs", "-o", "mode=755,size=1m", "tmpfs", str(new))
    for name in _PSEUDO_DEVICES:
        (new / name).touch()
        mount("--bind", f"/dev/{name}", str(new / name))
    for name in _BOUND_IN_DEV:
        if Path("/dev", name).is_dir():
            (new / name).mkdir()
            mount("--rbind", f"/dev/{name}", str(new / name))
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (new / name).symlink_to(target)
    mount("--move", str(new), "/dev")
    new.rmdir()


def make_read_only(value: str, writable: Path) -> None:
    """ProtectSystem=strict, and the settings that make parts of /proc and /sys read-only."""
    assert value == "strict"
    mount("--bind", str(writable), str(writable))
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        place = line.split()[4].encode().decode("unicode_escape")
        kept = place == str(writable) or place == "/proc" or place.startswith("/proc/")
        if not kept and place.rpartition("/")[2] not in _PSEUDO_DEVICES:
            # What lies below another mount, or is gone, cannot be seen anyway.
            subprocess.run(
                ["mount", "--no-mtab", "-o", "remount,bind,ro", place], check=False, stderr=subprocess.DEVNULL
            )
    mount("--bind", "/proc/sys", "/proc/sys")
    mount("-o", "remount,bind,ro", "/proc/sys")


class Calls:
    """The system calls that a unit allows."""

    def __init__(self) -> None:
        self.allowed: set[str] | None = None
        self.number = errno.EPERM
        self.rules: list[tuple[object, ...]] = []

    def filter(self, value: str) -> None:
        """SystemCallFilter: the first time a list of what is allowed, then more or less of it."""
        less = value.startswith("~")
        named = {call for word in value.removeprefix("~").split() for call in _calls(word)}
        if self.allowed is None:
            assert not less, "a filter that begins with what is forbidden is not known here"
            self.allowed = _calls("@default") | named
        elif less:
            self.allowed -= named
        else:
            self.allowed |= named

    def load(self, denied: set[str], families: set[str]) -> None:
        """Put it into force for this process and all it starts."""
        assert self.allowed is not None, "the unit has no SystemCallFilter"
        chosen = seccomp.SyscallFilter(defaction=seccomp.ERRNO(self.number))
        narrowed = {"socket", "clone", "clone3", "mmap", "mprotect", "pkey_mprotect"}
        for name in sorted(self.allowed - denied - narrowed):
            try:
                chosen.add_rule(seccomp.ALLOW, name)
            except RuntimeError:  # another architecture's, or newer than the library
                continue
        for family in families:
            chosen.add_rule(seccomp.ALLOW, "socket", seccomp.Arg(0, seccomp.EQ, int(getattr(socket, family))))
        chosen.add_rule(seccomp.ALLOW, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, _NEW_NAMESPACES, 0))
        # Its flags cannot be seen: the C library is told that there is none, as systemd does.
        chosen.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
        both = _PROT_WRITE | _PROT_EXEC
        for part in (0, _PROT_WRITE, _PROT_EXEC):
            chosen.add_rule(seccomp.ALLOW, "mmap", seccomp.Arg(2, seccomp.MASKED_EQ, both, part))
        for name in ("mprotect", "pkey_mprotect"):
            chosen.add_rule(seccomp.ALLOW, name, seccomp.Arg(2, seccomp.MASKED_EQ, _PROT_EXEC, 0))
        chosen.load()


def _calls(word: str) -> set[str]:
    """The system calls of a group, or the one that is named."""
    if not word.startswith("@"):
        return {word}
    told = subprocess.run(
        ["systemd-analyze", "syscall-filter", word], check=True, capture_output=True, text=True
    )
    words = [line.strip() for line in told.stdout.splitlines()[1:]]
    return {call for inner in words if inner and inner[0] != "#" for call in _calls(inner)}


def restrict(unit: Path, writable: Path) -> list[str]:
    """Take the powers that a unit takes, but capabilities; the words of the program that takes those."""
    calls, denied, families, bounding = Calls(), set[str](), set[str](), ""
    for name, value in settings(unit):
        match name, value:
            case "CapabilityBoundingSet", _:
                kept = (f"+{word.removeprefix('CAP_').lower()}" for word in value.split())
                bounding = ",".join(["-all", *kept])
            case "SystemCallFilter", _:
                calls.filter(value)
            case "SystemCallErrorNumber", _:
                calls.number = int(getattr(errno, value))
            case "RestrictAddressFamilies", _:
                families |= set(value.split())
            case "UMask", _:
                os.umask(int(value, 8))
            case "LimitNOFILE", _:
                most = min(
                    int(value), resource.getrlimit(resource.RLIMIT_NOFILE)[1]
                )  # who raises it is not here
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            case _ if name in _DENIED and value == "yes":
                denied |= {call for word in _DENIED[name] for call in _calls(word)}
            case _ if name in _MOUNTED:
                _MOUNTED[name](value, writable)
            case _ if name not in _NOT_POWERS:
                raise SystemExit(f"{unit.name}: {name}={value} is not known here")
    calls.load(denied, families)
    return ["setpriv", "--bounding-set", bounding, "--inh-caps=-all", "--no-new-privs", "--"]


def hide_temporary(value: str, writable: Path) -> None:
    """PrivateTmp: empty folders, of this program alone."""
    assert value == "yes"
    for place in ("/tmp", "/var/tmp"):
        mount("-t", "tmpfs", "tmpfs", place)


def hide_homes(value: str, writable: Path) -> None:
    """ProtectHome: empty folders; not where this very program is."""
    assert value == "yes"
    for place in ("/home", "/root", "/run/user"):
        if Path(place).is_dir() and not Path(__file__).resolve().is_relative_to(place):
            mount("-t", "tmpfs", "-o", "mode=0,ro", "tmpfs", place)


_MOUNTED = {
    "PrivateTmp": hide_temporary,
    "PrivateDevices": hide_devices,
    "ProtectSystem": make_read_only,
    "ProtectHome": hide_homes,
}

if __name__ == "__main__":
    unit, writable, between, *program = sys.argv[1:]
    assert between == "--"
    words = [*restrict(Path(unit), Path(writable)), *program]
    os.execvp(words[0], words)  # noqa: S606 - there is no shell, which is as it should be
