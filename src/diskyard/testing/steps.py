"""A host whose every change of storage is a step: counted, stopped at, or the last thing it does.

What passes the host's door changes storage: the files' primitives, programs, and what
running programs are told (QMP commands, NBD writes and flushes). A :class:`Steps` sees each
of them just before and just after.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from diskyard.host import Clock, Commands, Files, Finished, Host, HostIdentity, Limits
from diskyard.host.bulk import DIRECT_ALIGNMENT_BYTES
from diskyard.host.identity import new_nonce
from diskyard.testing.faults import STEPS

Side = Literal["before", "after"]


@dataclass(slots=True)
class Steps:
    """The steps of one run, of all its threads.

    :param stop_at: the index of the step at which ``stop`` is called.
    :param side: whether just before it is done, or just after.
    :param stop: what is done there: it kills this process, or waits.
    :ivar names: what was done, in order.
    """

    stop_at: int | None = None
    side: Side = "before"
    stop: Callable[[], None] | None = None
    names: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Something that changes storage is done within."""
        with self._lock:
            here = len(self.names) == self.stop_at
            self.names.append(name)
        if here and self.side == "before" and self.stop is not None:
            self.stop()
        yield
        if here and self.side == "after" and self.stop is not None:
            self.stop()


class SteppingFiles(Files):
    """Files whose every change is a step."""

    def __init__(self, host: HostIdentity, steps: Steps) -> None:
        super().__init__(host)
        self.steps = steps

    def write(self, fd: int, data: bytes | memoryview, offset_bytes: int = 0) -> None:
        """See :meth:`Files.write`; two steps, so that half a write is seen too."""
        half = len(data) // 2
        if half > DIRECT_ALIGNMENT_BYTES:
            half -= half % DIRECT_ALIGNMENT_BYTES  # past the page cache no other part can be written
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
    """Programs whose every start and end is a step, and what they are told while they run."""

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
        with self._steps.step(f"run {words[0]}"):
            return super().run(
                words, timeout_s=timeout_s, limits=limits, inherit_fds=inherit_fds, environment=environment
            )

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """See :meth:`Commands.telling`."""
        with self._steps.step(what):
            yield


def stepping_host(steps: Steps, host_id: str, *, earlier_boot: bool) -> Host:
    """This machine under another name, whose changes are steps.

    :param earlier_boot: its boot is over for every other host of this machine: what it leaves
        behind is provably nobody's, as after a crash of the whole machine.
    """
    real = Host.real().identity
    boot_id = new_nonce() if earlier_boot else real.boot_id
    identity = HostIdentity(host_id, real.machine_id, boot_id)
    return Host(identity, SteppingFiles(identity, steps), SteppingCommands(steps), Clock())
