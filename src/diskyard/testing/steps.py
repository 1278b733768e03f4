"""A host for which every change of storage is a step. Steps are counted, and one can be the last.

Changes of storage pass the host's door: the files' primitives, programs, and requests to running
programs (QMP commands, NBD writes and flushes). A :class:`Steps` is called just before and
just after each of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from diskyard.host import Clock, Commands, Files, Finished, Host, HostIdentity, Limits
from diskyard.host.identity import new_nonce
from diskyard.testing.faults import STEPS

Side = Literal["before", "after"]


@dataclass(slots=True)
class Steps:
    """The steps of one run, in all its threads.

    :param stop_at: the index of the step at which ``stop`` is called.
    :param side: whether just before that step, or just after it.
    :param stop: called there: it kills this process, or waits.
    :ivar names: the steps, in order.
    """

    stop_at: int | None = None
    side: Side = "before"
    stop: Callable[[], None] | None = None
    names: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A context for one change of storage."""
        with self._lock:
            here = len(self.names) == self.stop_at
            self.names.append(name)
        if here and self.side == "before" and self.stop is not None:
            self.stop()
        yield
        if here and self.side == "after" and self.stop is not None:
            self.stop()


class SteppingFiles(Files):
    """Files for which every change is a step."""

    def __init__(self, host: HostIdentity, steps: Steps) -> None:
        super().__init__(host)
        self.steps = steps

    def write(self, fd: int, data: bytes | memoryview, offset_bytes: int = 0) -> None:
        """See :meth:`Files.write`. It is two steps, so that half a write is tried too."""
        half = len(data) // 2
        with self.steps.step("write the first half"):
            super().write(fd, data[:half], offset_bytes)
        with self.steps.step("write the rest"):
            super().write(fd, data[half:], offset_bytes + half)


def _stepped(name: str) -> Callable[..., Any]:
    primitive = getattr(Files, name)

    def method(self: SteppingFiles, *words: Any, **named: Any) -> Any:
        with self.steps.step(name.replace("_", " ")):
            return primitive(self, *words, **named)

    return method


for _name in STEPS:
    if _name != "write":
        setattr(SteppingFiles, _name, _stepped(_name))


class SteppingCommands(Commands):
    """Programs for which every start, end and request is a step."""

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
        """See :meth:`Commands.run`. The program may end, and its caller die before it notices."""
        with self._steps.step(f"run {words[0]}"):
            return super().run(
                words, timeout_s=timeout_s, limits=limits, inherit_fds=inherit_fds, environment=environment
            )

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """See :meth:`Commands.telling`."""
        with self._steps.step(what):
            yield


def stepping_host(
    steps: Steps, host_id: str, *, earlier_boot: bool = False, boot_id: str | None = None
) -> Host:
    """This machine under another name, whose changes are steps.

    :param earlier_boot: every other host of this machine sees that its boot has ended, so that what it
        leaves behind certainly belongs to nobody, as after a crash of the whole machine.
    :param boot_id: of which boot it is instead, for several processes of one.
    """
    real = Host.real().identity
    if boot_id is None:
        boot_id = new_nonce() if earlier_boot else real.boot_id
    identity = HostIdentity(host_id, real.machine_id, boot_id)
    return Host(identity, SteppingFiles(identity, steps), SteppingCommands(steps), Clock())
