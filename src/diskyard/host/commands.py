"""The only door to other programs: explicit arguments, no shell, limits, and an end.

Every child dies with the thread that started it (PR_SET_PDEATHSIG, set by setpriv, so
that no code of ours runs between fork and exec), so an orphan never goes on writing.
Descriptors of leases are inherited, so that a lease stays held until the child is dead.

One gap is left: if this process dies in the milliseconds between fork and setpriv's call,
nobody tells the child. A program that does its work and ends is harmed by nothing but a
lease held until then. A qemu-storage-daemon, which has no way to end when its monitor is
closed, idles and holds its leases until it is killed by hand: nothing is written meanwhile,
since only its parent would have asked for that.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from diskyard import errors

Child = subprocess.Popen[bytes]
"""A program that was started, with its pipes."""

_TERMINATION_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use when it reads something that is not trusted."""

    address_space_bytes: int = 1 << 30
    cpu_s: int = 60
    file_size_bytes: int | None = None

    def prefix(self) -> list[str]:
        """The command line that sets these limits for what follows it."""
        words = ["prlimit", f"--as={self.address_space_bytes}", f"--cpu={self.cpu_s}", "--core=0"]
        if self.file_size_bytes is not None:
            words.append(f"--fsize={self.file_size_bytes}")
        return [*words, "--"]


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended."""

    exit_status: int
    stdout: bytes
    stderr: str


def _raise_descriptor_limit() -> list[str]:
    """A deep backing chain needs more descriptors than a shell's usual limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return [] if soft == hard else ["prlimit", f"--nofile={hard}:{hard}", "--"]


class Commands:
    """Starts programs for this host."""

    def run(
        self,
        words: Sequence[str],
        *,
        timeout_s: float,
        limits: Limits | None = None,
        inherit_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Finished:
        """Run a program to its end and return what it printed.

        :raises diskyard.errors.StorageError: it did not end within ``timeout_s``; it is killed.
        :raises diskyard.errors.Unsupported: it is not installed.
        """
        child = self.start(
            words, limits=limits, inherit_fds=inherit_fds, environment=environment, capture=True
        )
        try:
            stdout, stderr = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise errors.StorageError(
                f"{words[0]} did not end within {timeout_s:g} seconds and was killed."
            ) from None
        finally:
            self.stop(child)
        return Finished(child.returncode, stdout, stderr.decode(errors="replace").strip())

    def start(
        self,
        words: Sequence[str],
        *,
        limits: Limits | None = None,
        inherit_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        capture: bool = False,
    ) -> Child:
        """Start a program; the caller ends it with :meth:`stop`.

        The file-descriptor limit is raised to its hard limit, for deep backing chains.

        :param capture: keep what it prints on stdout too; stderr is always a pipe.
        """
        command = [
            *_raise_descriptor_limit(),
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--",
            *(limits.prefix() if limits else ()),
            *words,
        ]
        merged = {**os.environ, "LC_ALL": "C", **(environment or {})}
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if capture else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=tuple(inherit_fds),
                env=merged,
                # Ctrl-C is for Diskyard, which ends its children in order.
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise errors.Unsupported(
                f"The program {error.filename} is not installed.",
                advice="Install it (Debian: qemu-utils for QEMU's tools, util-linux for setpriv and prlimit).",
            ) from error

    def wait(self, child: Child, timeout_s: float) -> bool:
        """Wait for a program to end by itself; whether it did."""
        try:
            child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """Something that changes storage is asked of a running child within, as a QMP command is.

        The door for what is said over a socket: it does nothing here, and is where simulators
        of crashes and faults stand.

        :param what: as in ``qmp block-commit``.
        """
        yield

    def stop(self, child: Child) -> None:
        """End a program if it still runs, and reap it; nothing is left running on return."""
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(_TERMINATION_GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
        child.wait()
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()
