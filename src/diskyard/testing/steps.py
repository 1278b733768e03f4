"""A host that dies at a chosen step: everything that changes storage passes its door.

A run without a chosen step counts the steps; a run with one raises :class:`Died` there,
and at everything after it, as a process that was killed does nothing more. ``finally``
blocks that would clean up find the door shut too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from diskyard.host import Clock, Commands, Files, Finished, Host, HostIdentity, Limits
from diskyard.host.identity import new_nonce


class Died(BaseException):
    """The simulated process is dead. Not an Exception: nothing but the harness may catch it."""


@dataclass(slots=True)
class Steps:
    """The steps of one run.

    :param die_at: die before the step of this index; None to live.
    :ivar names: what was done, in order.
    """

    die_at: int | None = None
    names: list[str] = field(default_factory=list)
    dead: bool = False

    def begin(self, die_at: int | None) -> None:
        """Count from here on, and die before the step of this index."""
        self.die_at, self.dead = die_at, False
        self.names.clear()

    def step(self, name: str) -> None:
        """Something that changes storage is about to be done.

        :raises Died: it is not done, and nothing after it.
        """
        if self.dead or len(self.names) == self.die_at:
            self.dead = True
            raise Died(name)
        self.names.append(name)


class SteppingFiles(Files):
    """Files whose every change is a step."""

    def __init__(self, host: HostIdentity, steps: Steps) -> None:
        super().__init__(host)
        self._steps = steps

    def create(self, path: str) -> int:
        """See :meth:`Files.create`."""
        self._steps.step("create")
        return super().create(path)

    def write(self, fd: int, data: bytes, offset_bytes: int = 0) -> None:
        """See :meth:`Files.write`; two steps, so that half a write is seen too."""
        self._steps.step("write")
        half = len(data) // 2
        super().write(fd, data[:half], offset_bytes)
        self._steps.step("write the rest")
        super().write(fd, data[half:], offset_bytes + half)

    def truncate(self, fd: int, size_bytes: int) -> None:
        """See :meth:`Files.truncate`."""
        self._steps.step("truncate")
        super().truncate(fd, size_bytes)

    def preallocate(self, fd: int, size_bytes: int) -> None:
        """See :meth:`Files.preallocate`."""
        self._steps.step("preallocate")
        super().preallocate(fd, size_bytes)

    def clone(self, source_fd: int, target_fd: int) -> None:
        """See :meth:`Files.clone`."""
        self._steps.step("clone")
        super().clone(source_fd, target_fd)

    def sync(self, fd: int) -> None:
        """See :meth:`Files.sync`."""
        self._steps.step("sync")
        super().sync(fd)

    def sync_folder(self, folder: str) -> None:
        """See :meth:`Files.sync_folder`."""
        self._steps.step("sync folder")
        super().sync_folder(folder)

    def make_folder(self, path: str) -> None:
        """See :meth:`Files.make_folder`."""
        self._steps.step("make folder")
        super().make_folder(path)

    def link(self, source: str, target: str) -> None:
        """See :meth:`Files.link`."""
        self._steps.step("link")
        super().link(source, target)

    def rename(self, source: str, target: str) -> None:
        """See :meth:`Files.rename`."""
        self._steps.step("rename")
        super().rename(source, target)

    def unlink(self, path: str) -> None:
        """See :meth:`Files.unlink`."""
        self._steps.step("unlink")
        super().unlink(path)

    def remove_folder(self, path: str) -> None:
        """See :meth:`Files.remove_folder`."""
        self._steps.step("remove folder")
        super().remove_folder(path)


class SteppingCommands(Commands):
    """Commands whose every start is a step: what they change is changed by another process."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def run(
        self,
        words: Sequence[str],
        *,
        timeout_s: float,
        limits: Limits | None = None,
        inherit_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Finished:
        """See :meth:`Commands.run`; it may end, and its caller die before knowing."""
        self._steps.step(f"run {words[0]}")
        finished = super().run(
            words, timeout_s=timeout_s, limits=limits, inherit_fds=inherit_fds, environment=environment
        )
        self._steps.step(f"{words[0]} has ended")
        return finished


def stepping_host(steps: Steps, host_id: str = "dying-host") -> Host:
    """This machine in an earlier boot, under another name, whose changes are steps.

    Its boot is over for every other host of this machine: what it leaves behind is
    provably nobody's, as after a real crash.
    """
    real = Host.real()
    identity = HostIdentity(host_id, real.identity.machine_id, new_nonce())
    return Host(identity, SteppingFiles(identity, steps), SteppingCommands(steps), Clock())
