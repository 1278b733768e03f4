"""What goes wrong around a verb on a running guest's disk, apart from deaths: its storage and its monitor."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

from qemu.qmp.message import Message
from qemu.qmp.models import ErrorResponse
from qemu.qmp.qmp_client import ExecuteError

from diskyard import errors
from diskyard.host import Clock, Commands, Files, Host
from diskyard.mover.qemu.connection import only_asks
from diskyard.service import Service, call
from diskyard.testing.crash import ACTING_HOST
from diskyard.testing.fault_injection import Fault, Injector, faulty_host
from diskyard.testing.fault_runs import nothing_left_behind, require_clear
from diskyard.testing.hang_runs import note_outcome
from diskyard.testing.live_runs import LiveRun
from diskyard.testing.world import PLACES, host_named

Trouble = Literal["refused", "full", "lost before", "lost after", "silent before", "silent after", "stopped"]
TROUBLES: tuple[Trouble, ...] = (
    *("refused", "full", "lost before", "lost after", "silent before", "silent after", "stopped"),
)
"""How a request to the guest's QEMU goes wrong.

It is refused, with words for an I/O error or for full storage. The connection ends, or no answer comes,
before the request has an effect or after it. Or QEMU stands still (SIGSTOP), and finds the request when it
goes on, after the verb has ended.
"""

_STOPPED_TIMEOUT_S = 2.0
_HANG_END_S = 60.0
_WRITES_STOP_MOST_S = 30.0


class TroubledMonitor(Commands):
    """Programs and requests, of which one request over QMP goes wrong.

    :param at: the index of the request; None for none.
    :param pid: the guest's QEMU.
    :param look: called when it goes wrong; what it returns is kept.
    :ivar asked: the requests, in order.
    :ivar seen: what ``look`` returned; None if nothing went wrong.
    """

    def __init__(self, at: int | None, trouble: Trouble, pid: int, look: Callable[[], object]) -> None:
        self.asked: list[str] = []
        self.seen: object = None
        self._at, self._trouble, self._pid, self._look = at, trouble, pid, look
        self._at_first = look()
        if trouble == "stopped":
            self.timeout_most_s = _STOPPED_TIMEOUT_S

    @property
    def left_open(self) -> bool:
        """Whether a request that changes something got no answer, or one about an earlier change."""
        if self.seen is None or self._trouble in ("refused", "full"):
            return False
        name = self.asked[self._at or 0].removeprefix("qmp ")
        return self.seen == self._at_first or not (only_asks(name) or name == "connect")

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """See :meth:`Commands.telling`."""
        with super().telling(what), self._trouble_with(what):
            yield

    @contextmanager
    def asking(self, what: str) -> Iterator[None]:
        """See :meth:`Commands.asking`."""
        with super().asking(what), self._trouble_with(what):
            yield

    @contextmanager
    def _trouble_with(self, what: str) -> Iterator[None]:
        here = what.startswith("qmp ") and len(self.asked) == self._at
        if what.startswith("qmp "):
            self.asked.append(what)
        if not here:
            yield
            return
        self.seen = self._look()
        if self._trouble == "stopped":
            os.kill(self._pid, signal.SIGSTOP)
        elif self._trouble in ("refused", "full"):
            raise _refusal(what, errno.ENOSPC if self._trouble == "full" else errno.EIO)
        elif self._trouble.endswith("before"):
            raise self._no_answer()
        yield
        if self._trouble.endswith("after"):
            raise self._no_answer()

    def _no_answer(self) -> Exception:
        lost = self._trouble.startswith("lost")
        return ConnectionResetError(errno.ECONNRESET, "Connection reset by peer") if lost else TimeoutError()


def _refusal(what: str, number: int) -> ExecuteError:
    message = Message({"error": {"class": "GenericError", "desc": f"Could not do it: {os.strerror(number)}"}})
    return ExecuteError(ErrorResponse(message), Message({"execute": what}), message)


def _do_on(run: LiveRun, host: Host, begin: Callable[[], None]) -> errors.DiskyardError | None:
    """Do the scenario of a run in this process. Return the error with which it ended, if any.

    :param host: the guest's host.
    :param begin: called when the host is ready.
    """
    service = run.world.service(host)
    try:
        with nothing_left_behind(run.world.folder):
            begin()
            run.scenario.act(run.world, service)
    except errors.DiskyardError as error:
        require_clear(error)
        return error
    except StopIteration:
        # A fix waits for what cannot be read or asked now: check says so, and there is nothing to run.
        return errors.StorageError("No fix is listed as runnable.")
    finally:
        service.close()
    return None


def in_trouble(run: LiveRun, at: int | None, trouble: Trouble) -> tuple[list[str], bool]:
    """Do the scenario while a request to the guest goes wrong.

    Nothing may be decided if it got no answer. A verb that has told the guest nothing yet may undo itself.

    :returns: the requests, in order, and whether it was answered.
    """
    identity = host_named(ACTING_HOST).identity
    witness = run.service("witness")

    def log() -> object:
        state = witness.connections.get("a").state()
        return [found.switching for found in state.attachments_of(run.world.names["d"])]

    monitor = TroubledMonitor(at, trouble, run.guest.pid, log)
    host = Host(identity, Files(identity), monitor, Clock())
    try:
        error = _do_on(run, host, lambda: None)
        if error is not None and monitor.left_open:
            assert log() == monitor.seen, "something was decided though the guest did not answer"
    finally:
        if run.guest.is_alive():
            os.kill(run.guest.pid, signal.SIGCONT)
        witness.close()
    assert error is None or monitor.seen is not None, error
    return monitor.asked, error is None


def with_failing_storage(run: LiveRun, injector: Injector, fault: Fault | None) -> bool:
    """Do the scenario while a storage call fails, or none does. Return whether it was answered."""
    host = faulty_host(injector, ACTING_HOST)
    try:
        error = _do_on(run, host, lambda: injector.begin(fault))
    finally:
        injector.end()
    assert error is None or injector.failed, error
    return error is None


def while_storage_hangs(run: LiveRun, at: int) -> tuple[bool, bool]:
    """Do the scenario while a storage call does not return. The guest goes on, and so do others elsewhere.

    :returns: whether the call was made, and whether the scenario was answered.
    """
    injector = Injector()
    outcome: list[BaseException | None] = []
    service = run.world.service(faulty_host(injector, ACTING_HOST))
    others = set(threading.enumerate())
    thread = threading.Thread(
        target=note_outcome, args=(partial(run.scenario.act, run.world, service), injector, outcome)
    )
    injector.hang(at, [str(run.world.folder / place) for place in PLACES])
    thread.start()
    try:
        hung = injector.hangs.wait(_HANG_END_S) and not outcome
        if hung:
            _look_around(run, service, injector)
    finally:
        injector.release()
    thread.join(_HANG_END_S)
    assert not thread.is_alive(), "the caller waits for ever"
    service.supervisor.close()
    for left in set(threading.enumerate()) - others:
        if left.name == "diskyard-verb":
            left.join(_HANG_END_S)
            assert not left.is_alive(), "a verb does not end though its storage answers"
    assert service.tasks.wait(timeout_s=_HANG_END_S), "what it started does not end"
    service.close()
    return hung, outcome == [None]


def _look_around(run: LiveRun, service: Service, injector: Injector) -> None:
    """The guest writes on, and verbs in the other repository are answered."""
    if run.guest.is_alive():
        run.guest.wait_for(3, _WRITES_STOP_MOST_S)
    for place in PLACES:
        if injector.hung_root != str(run.world.folder / place):
            call(service, "listImages", {"repositoryId": place})
