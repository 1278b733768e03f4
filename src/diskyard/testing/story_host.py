"""One host of a story: a process of its own that runs one verb at a time.

It can be held before any change of storage, while others go on; then it goes on itself, or
is killed. How far it goes is counted in steps, not in time, so that a story can be repeated.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from diskyard import errors
from diskyard.host import Child, Clock, Commands, Host, HostIdentity, Limits
from diskyard.service import Service, call
from diskyard.tasks.pool import TASK_THREADS
from diskyard.testing.faults import SteppedFiles
from diskyard.testing.forking import FORKING
from diskyard.testing.world import World

_ANSWER_TIMEOUT_S = 20.0
_DEATH_TIMEOUT_S = 10.0
_POLL_S = 0.002


class Gate:
    """All changes of storage pass this gate, except those of the main thread, which controls it.

    Tasks change nothing before the verb that started them has answered, so that the order is always
    the same.

    :param say: called when the host is held, with the name of the step that it did not make.
    :ivar answered: whether the verb has answered.
    """

    def __init__(self, say: Any) -> None:
        self._say = say
        self._moved = threading.Condition()
        self._left: int | None = None
        self._is_held = False
        self.answered = threading.Event()

    def let_go(self, steps: int | None) -> None:
        """Allow that many more steps; None for all."""
        with self._moved:
            self._left, self._is_held = steps, False
            self._moved.notify_all()

    def pass_through(self, step: str) -> None:
        """Make a step now, or wait until it is allowed."""
        if threading.current_thread() is threading.main_thread():
            return
        if threading.current_thread().name.startswith(TASK_THREADS):
            self.answered.wait()
        with self._moved:
            while self._left == 0:
                if not self._is_held:
                    self._is_held = True
                    self._say(("held", step))
                self._moved.wait()
            if self._left is not None:
                self._left -= 1


class _GatedFiles(SteppedFiles):
    def __init__(self, host: HostIdentity, gate: Gate) -> None:
        super().__init__(host)
        self._gate = gate

    def before(self, step: str, words: Sequence[object]) -> None:
        """Wait here if the host is held."""
        self._gate.pass_through(step)


class _GatedCommands(Commands):
    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def start(
        self,
        words: Sequence[str],
        *,
        limits: Limits | None = None,
        inherit_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        capture: bool = False,
    ) -> Child:
        """See :meth:`Commands.start`."""
        self._gate.pass_through(f"start {words[0]}")
        return super().start(
            words, limits=limits, inherit_fds=inherit_fds, environment=environment, capture=capture
        )

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """See :meth:`Commands.telling`."""
        self._gate.pass_through(what)
        yield

    def stop(self, child: Child) -> None:
        """See :meth:`Commands.stop`. The program's caller may not know what the program did."""
        self._gate.pass_through("end a program")
        super().stop(child)


def identity(name: str, boot_id: str) -> HostIdentity:
    """This machine under a name, in a boot of the story."""
    return HostIdentity(name, Host.real().identity.machine_id, boot_id)


# -- in the other process ------------------------------------------------------------------


def _play(world: World, who: HostIdentity, seed: str, pipe: Connection) -> None:
    """The process of a host: it carries out requests until the pipe ends."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # Ids depend on the story, so that it can be repeated.
    randomness = random.Random(seed)
    uuid.uuid4 = lambda: uuid.UUID(int=randomness.getrandbits(128), version=4)
    saying = threading.Lock()

    def say(words: tuple[Any, ...]) -> None:
        with saying:
            pipe.send(words)

    gate = Gate(say)
    service = world.service(Host(who, _GatedFiles(who, gate), _GatedCommands(gate), Clock()))
    say(("idle", []))
    while True:
        match pipe.recv():
            case ("run", verb, parameters, steps):
                gate.let_go(steps)
                run = functools.partial(_run, service, verb, parameters, gate, say)
                threading.Thread(target=run, daemon=True).start()
            case ("go on", steps):
                gate.let_go(steps)
            case ("stop tasks",):
                # Not by the verb, which would run on a thread of its own and be held at the gate.
                for task in service.tasks.unfinished():
                    service.records.ask_to_stop(task.task_id)
                say(("stopping",))
            case ("close",):
                service.close()
                return


def _run(service: Service, verb: str, parameters: Any, gate: Gate, say: Any) -> None:
    """Answer the verb, then wait for the tasks that it started."""
    gate.answered.clear()
    service.tasks.take_started()
    try:
        answer = call(service, verb, parameters)
    except errors.DiskyardError as error:
        say(("refused", error.to_json()))
    else:
        say(("answered", answer))
    gate.answered.set()
    service.tasks.wait()
    ended = [service.records.get(task_id) for task_id in service.tasks.take_started()]
    say(("idle", [(task.verb, task.state, (task.error or {}).get("code")) for task in ended]))


# -- in the process that runs the story ----------------------------------------------------


@dataclass
class Heard:
    """What a host has reported about the verb that it runs.

    :ivar answer: the verb's result, in a tuple of one.
    :ivar error: or its error, as JSON.
    :ivar held_before: the step at which the host is held; None if it is not.
    :ivar ended: the tasks that the verb started, with state and error code, once all have ended.
    """

    answer: tuple[Any] | None = None
    error: dict[str, Any] | None = None
    held_before: str | None = None
    ended: list[tuple[str, str, str | None]] | None = None


@dataclass
class StoryHost:
    """A host's process, as the story controls it.

    :ivar heard: about the last verb.
    :ivar starts: how often the host was started.
    """

    world: World
    who: HostIdentity
    seed: str
    starts: int = 0
    heard: Heard = field(default_factory=Heard)

    def start(self) -> None:
        """Start the process, which connects both repositories."""
        ours, theirs = FORKING.Pipe()
        self.starts += 1
        bare = World(self.world.folder, format=self.world.format, earlier=self.world.earlier)
        words = (bare, self.who, f"{self.seed} {self.who.host_id} {self.starts}", theirs)
        self._process = FORKING.Process(target=_play, args=words)
        self._process.start()
        theirs.close()
        self._pipe = ours
        self.heard = Heard()
        self._listen()

    @property
    def is_idle(self) -> bool:
        """Whether it can run another verb."""
        return self.heard.ended is not None

    def run(self, verb: str, parameters: Any, steps: int | None = None) -> Heard:
        """Run a verb and everything that it starts to the end, or hold it after so many steps."""
        assert self.is_idle
        self.heard = Heard()
        self._pipe.send(("run", verb, parameters, steps))
        return self._listen()

    def go_on(self, steps: int | None = None) -> Heard:
        """Let a host that is held go on, to the end or for so many steps."""
        self.heard.held_before = None
        self._pipe.send(("go on", steps))
        return self._listen()

    def run_until(self, step: str, verb: str, parameters: Any) -> Heard:
        """Run a verb, and hold it before the first step whose name contains these words."""
        heard = self.run(verb, parameters, 0)
        while heard.held_before is not None and step not in heard.held_before:
            heard = self.go_on(1)
        return heard

    def stop_tasks(self) -> None:
        """Request that this host's tasks stop."""
        self._pipe.send(("stop tasks",))
        assert self._receive() == ("stopping",)

    def kill(self) -> None:
        """Kill it (SIGKILL), and with it its programs. It is gone on return."""
        pid = self._process.pid
        assert pid is not None
        family = _descendants(pid)
        os.kill(pid, signal.SIGKILL)
        self._process.join()
        self._pipe.close()
        deadline_s = time.monotonic() + _DEATH_TIMEOUT_S
        while any(_lives(child) for child in family):
            assert time.monotonic() < deadline_s, "programs outlive the process that started them"
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Let it end in order."""
        self._pipe.send(("close",))
        self._process.join(_ANSWER_TIMEOUT_S)
        if self._process.exitcode is None:
            self._give_up("did not end")
        self._pipe.close()

    def _listen(self) -> Heard:
        while True:
            match self._receive():
                case ("answered", answer):
                    self.heard.answer = (answer,)
                case ("refused", error):
                    self.heard.error = error
                case ("held", step):
                    self.heard.held_before = step
                    return self.heard
                case ("idle", ended):
                    self.heard.ended = ended
                    return self.heard

    def _receive(self) -> Any:
        if not self._pipe.poll(_ANSWER_TIMEOUT_S):
            self._give_up("does not answer")
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise AssertionError(f"{self.who.host_id} ended with {self._process.exitcode}") from None

    def _give_up(self, why: str) -> None:
        """Make it print on stderr where its threads are, and end it."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGUSR1)
        time.sleep(1.0)
        self._process.kill()
        raise AssertionError(f"{self.who.host_id} {why}")


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _fields(int(folder.name))
        if fields:
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, left = [], [pid]
    while left:
        of_one = children.get(left.pop(), [])
        found += of_one
        left += of_one
    return found


def _lives(pid: int) -> bool:
    return _fields(pid)[:1] not in ([], ["Z"])


def _fields(pid: int) -> list[str]:
    """What /proc shows of a process after its name: state, parent, and more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return stat.rpartition(")")[2].split()
