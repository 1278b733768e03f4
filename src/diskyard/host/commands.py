"""The only door to other programs: explicit arguments, no shell, limits, and a sure end.

Every child dies with the thread that started it (PR_SET_PDEATHSIG, set by setpriv, so
that no code of ours runs between fork and exec), so an orphan never goes on writing.
Descriptors of leases are inherited, so that a lease stays held until the child is dead.

The kernel tells a child nothing about a parent that died before the child asked to be told.
So the child checks once more after it has asked: if it has another parent by then, it ends
and the program never begins. A shell with a constant script makes that check: the program
and its arguments reach it as arguments, and are never parsed as shell text. A thread that ended
before the child asked changes nothing, because the child's parent is then another thread of the
same process. The kernel forgets the request when the child executes a program that has more rights
than its starter (set-user-ID, file capabilities, some security modules' transitions). So the rights
are given up first, and none can be gained after that (no_new_privs). Giving up rights does not
make the kernel forget. The same shell sets the limits, so that they need no process of their own.

A program keeps only what :mod:`diskyard.host.confinement` leaves it, and inherits only the
descriptors that it is given.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from diskyard import errors
from diskyard.host.calls import noted
from diskyard.host.confinement import Limits, limit_words, right_words, told_to
from diskyard.host.output import Output

Child = subprocess.Popen[bytes]
"""A program that was started, with its pipes."""

_TERMINATION_GRACE_S = 5.0
_STDOUT_MOST_BYTES = 16 << 20
#: Ends at once if its parent is not the process in the first argument. Otherwise it sets the limits that
#: follow, up to ``--``, and becomes the program that the rest names.
_WITH_ITS_PARENT = """
[ "$PPID" = "$1" ] || exit 1
shift
while [ "$1" != -- ]; do ulimit "$1" "$2" || exit 1; shift 2; done
shift
unset PWD OLDPWD
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended."""

    exit_status: int
    stdout: bytes
    stderr: str


def _not_installed(program: str) -> errors.Unsupported:
    return errors.Unsupported(
        f"The program {program} is not installed.",
        advice="Install it (Debian: qemu-utils for QEMU's tools, util-linux for setpriv).",
    )


class Commands:
    """Starts programs on this host.

    :cvar timeout_most_s: longer time-outs are cut to this.
    """

    timeout_most_s: float = math.inf

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

        :raises diskyard.errors.StorageError: the program did not end within ``timeout_s``, or printed more
            than 16 MiB, and was killed.
        :raises diskyard.errors.Unsupported: the program is not installed.
        """
        child = self.start(
            words, limits=limits, inherit_fds=inherit_fds, environment=environment, capture=True
        )
        timeout_s = min(timeout_s, self.timeout_most_s)
        deadline_s = time.monotonic() + timeout_s
        try:
            with Output(child, _STDOUT_MOST_BYTES) as output:
                while output.read(max(0.0, deadline_s - time.monotonic())):
                    if output.stdout_bytes > _STDOUT_MOST_BYTES:
                        raise errors.StorageError(f"{words[0]} printed too much and was killed.")
                    if time.monotonic() > deadline_s:
                        break
            if not self.wait(child, max(0.0, deadline_s - time.monotonic())):
                raise errors.StorageError(
                    f"{words[0]} did not end within {timeout_s:g} seconds and was killed."
                )
        finally:
            self.stop(child)
        return Finished(child.returncode, bytes(output.stdout), output.stderr())

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

        :param environment: its variables besides PATH: it gets none of this process's.
        :param capture: make a pipe for stdout too; stderr always has one.
        """
        command = [
            "setpriv",
            *right_words(),
            "--pdeathsig",
            "KILL",
            "--",
            "sh",
            "-c",
            _WITH_ITS_PARENT,
            "sh",
            str(os.getpid()),
            *limit_words(limits),
            "--",
            *words,
        ]
        told = told_to(environment, limits)
        # setpriv looks for the program itself, and would report a missing one in its own words.
        for program in (words[0], command[0]):
            if shutil.which(program, path=told["PATH"]) is None:
                raise _not_installed(program)
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if capture else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=tuple(inherit_fds),
                env=told,
                # Ctrl-C is for Diskyard, which ends its children in order.
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise _not_installed(str(error.filename)) from error
        except OSError as error:
            raise errors.StorageError(
                f"{words[0]} could not be started: {error.strerror or error}.",
                advice="Check this host's limits of processes and memory, then try again.",
            ) from error

    def wait(self, child: Child, timeout_s: float) -> bool:
        """Wait for a program to end by itself. Return whether it did."""
        try:
            child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """A context in which a running child is asked to change storage, as by a QMP command.

        Requests over a socket have no other door: this does nothing, but simulators of crashes and
        faults override it.

        :param what: as in ``qmp block-commit``.
        """
        with noted(what):
            yield

    @contextmanager
    def asking(self, what: str) -> Iterator[None]:
        """The same for a request that changes nothing, such as a read."""
        with noted(what):
            yield

    def stop(self, child: Child) -> None:
        """End a program if it still runs, and reap it; nothing is left running on return."""
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(_TERMINATION_GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
        # A program that waits for storage which does not answer ends when the storage does answer.
        with noted("end of a program"):
            child.wait()
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()
