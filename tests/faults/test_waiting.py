"""Storage that really hangs, and what waits for it: verbs, tasks, and who presses Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.caller import CALLER, Caller
from diskyard.host import Host
from diskyard.host.calls import (
    TIMEOUT_VARIABLE,
    PatientLock,
    StorageCall,
    ThreadCalls,
    default_timeout_s,
    noted,
)
from diskyard.host.supervise import Supervisor
from diskyard.operations.transfer import transfer_path
from diskyard.service import Service, call
from diskyard.tasks.limits import TaskLimits, Urgency
from diskyard.tasks.pool import TaskPool
from diskyard.tasks.waitlist import Waiting
from tests.conftest import Tally

_LONG_S = 60.0


@pytest.fixture
def storage() -> Iterator[threading.Event]:
    """Storage that answers once this is set, in the end at the latest."""
    answers = threading.Event()
    yield answers
    answers.set()


def test_a_caller_is_told_and_the_work_goes_on(storage: threading.Event) -> None:
    supervisor, done = Supervisor(0.1), threading.Event()

    def work() -> None:
        with noted("read", "/somewhere"):
            storage.wait()
        done.set()

    with pytest.raises(errors.RepositoryUnavailable) as found:
        supervisor.run(work, may_be_done=True)
    assert "read of /somewhere" in found.value.message
    assert found.value.details == {"outcome": "unknown"}
    assert supervisor.run(lambda: "others") == "others"
    storage.set()
    assert done.wait(_LONG_S)
    supervisor.close()


def test_work_that_asks_nothing_of_storage_may_last(storage: threading.Event) -> None:
    supervisor = Supervisor(0.05)
    threading.Timer(0.5, storage.set).start()
    assert supervisor.run(lambda: storage.wait(_LONG_S))
    supervisor.close()


@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt, SystemExit])
def test_what_the_work_raises_is_raised(kind: type[BaseException]) -> None:
    supervisor = Supervisor(1.0)

    def work() -> None:
        raise kind("of the work")

    with pytest.raises(kind, match="of the work"):
        supervisor.run(work)
    supervisor.close()


def test_a_lock_whose_holder_hangs_is_not_waited_for(
    storage: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIMEOUT_VARIABLE, "0.1")
    lock, held = PatientLock(), threading.Event()

    def hold() -> None:
        with lock, lock, noted("list", "/somewhere"):
            held.set()
            storage.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(_LONG_S)
    with pytest.raises(errors.RepositoryUnavailable), lock:
        pass
    storage.set()
    thread.join()
    with lock:
        pass


def test_who_waits_for_a_thread_shows_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT_VARIABLE, "0.001")
    first, second, third = (ThreadCalls() for _ in range(3))
    first.behind, second.behind = second, third
    assert first.overdue() is None
    third.current = StorageCall("read", "/somewhere", time.monotonic() - 1.0)
    assert first.overdue() == second.overdue() == third.current


def test_threads_that_were_behind_one_another_are_not_followed_for_ever() -> None:
    first, second = ThreadCalls(), ThreadCalls()
    first.behind, second.behind = second, first
    assert first.overdue() is None


def waiting(work: Callable[[], None], place: str = "a") -> Waiting:
    return Waiting(Urgency.ASKED, 0, 0, place, work)


def test_a_task_that_hangs_takes_no_others_place(storage: threading.Event) -> None:
    pool, done = TaskPool(TaskLimits(1, 1), 0.1), threading.Event()

    def hang() -> None:
        with noted("read"):
            storage.wait()

    pool.submit(waiting(hang))
    pool.submit(waiting(done.set))
    assert done.wait(_LONG_S)
    assert pool.close()  # comes back though the first one has not
    assert not storage.is_set()


def test_storage_that_hangs_gets_a_few_threads_and_others_get_their_places(storage: threading.Event) -> None:
    """Of one repository the limit and two more may be stuck; the rest waits until it answers."""
    pool = TaskPool(TaskLimits(2, 2), 0.1)
    began, last = threading.Semaphore(0), threading.Event()
    stuck = []

    def hang() -> None:
        stuck.append(threading.current_thread())
        began.release()
        with noted("read"):
            storage.wait()

    for _ in range(7):
        pool.submit(waiting(hang))
    for _ in range(4):
        assert began.acquire(timeout=_LONG_S)
    for _ in range(3):  # one after the other they pass by what waits
        other = threading.Event()
        pool.submit(waiting(other.set, "b"))
        assert other.wait(_LONG_S)
    assert len(stuck) == 4
    storage.set()
    for _ in range(3):
        assert began.acquire(timeout=_LONG_S)
    pool.submit(waiting(last.set))
    assert last.wait(_LONG_S)
    assert pool.close()


def test_a_task_waits_for_a_thread_that_the_host_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is not lost with it: more of them fail than there are places."""
    pool, start, refused = TaskPool(TaskLimits(2, 2), _LONG_S), threading.Thread.start, []

    def refuse(thread: threading.Thread) -> None:
        refused.append(thread.name)
        raise RuntimeError("can't start new thread")

    done = [threading.Event() for _ in range(4)]
    monkeypatch.setattr(threading.Thread, "start", refuse)
    for one in done[:3]:
        pool.submit(waiting(one.set))
    assert set(refused) == {"diskyard-task", "diskyard-tasks"}
    monkeypatch.setattr(threading.Thread, "start", start)
    pool.submit(waiting(done[3].set))
    assert all(one.wait(_LONG_S) for one in done)
    assert pool.close()


def test_closing_waits_no_longer_than_it_is_told(storage: threading.Event) -> None:
    pool, began = TaskPool(TaskLimits(), _LONG_S), threading.Event()

    def hang() -> None:
        began.set()
        with noted("read"):
            storage.wait()

    pool.submit(waiting(hang))
    assert began.wait(_LONG_S)
    assert not pool.close(timeout_s=0.1)
    storage.set()
    assert pool.close()


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan"])
def test_a_timeout_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT_VARIABLE, text)
    with pytest.raises(errors.InvalidParameter):
        default_timeout_s()


def test_a_transfer_folder_that_hangs(storage: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host.real()

    def realpath(path: str) -> str:
        storage.wait(_LONG_S)
        return path

    def work() -> str:
        CALLER.set(Caller("somebody", transfer_folders=("/srv",)))
        return transfer_path(host, "/srv/file")

    monkeypatch.setattr(os.path, "realpath", realpath)
    supervisor = Supervisor(0.1)
    with pytest.raises(errors.RepositoryUnavailable, match="resolve"):
        supervisor.run(lambda: copy_context().run(work))
    supervisor.close()


def test_ctrl_c_ends_a_command_whose_storage_hangs(tmp_path: Path) -> None:
    code = (
        "import sys, threading\n"
        "from diskyard.cli.program import run\n"
        "from diskyard.service import verbs\n"
        "def hang(service, request):\n"
        "    print('hangs', flush=True); threading.Event().wait()\n"
        "verbs.run_unwatched = hang\n"
        "sys.exit(run(['repo', 'list']))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "hangs\n"
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    child.stdout.close()
    assert child.wait(_LONG_S) == 128 + signal.SIGINT


def test_a_file_system_that_is_frozen(frozen: Path, tmp_path: Path, tally: Tally) -> None:
    """Not simulated: every write waits in the kernel, and no signal ends that."""
    tally("hangs")
    others = set(threading.enumerate())
    service = Service(state_folder=str(tmp_path / "service"), storage_timeout_s=0.5)
    for name, folder in (("frozen", frozen / "a"), ("well", tmp_path / "b")):
        asked = {"repoFormat": "localfs-1.0", "connectionParameters": {"path": str(folder)}}
        call(service, "createStorageRepository", asked)
        call(service, "connectStorageRepository", {"repoId": name, **asked})
    subprocess.run(["fsfreeze", "--freeze", str(frozen)], check=True)
    new_id = "11111111-2222-4333-8444-555555555555"
    disk = {"size": 1 << 20, "options": {"newImageId": new_id}}
    for _ in range(2):
        with pytest.raises(errors.RepositoryUnavailable):
            call(service, "createVirtualDisk", {"targetRepoId": "frozen", **disk})
    call(service, "createVirtualDisk", {"targetRepoId": "well", "size": 1 << 20})
    subprocess.run(["fsfreeze", "--unfreeze", str(frozen)], check=True)
    deadline_s = time.monotonic() + _LONG_S
    while True:
        try:
            assert call(service, "createVirtualDisk", {"targetRepoId": "frozen", **disk}) == new_id
            break
        except (errors.LeaseHeld, errors.RepositoryUnavailable):
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
    assert call(service, "checkStorageRepository", {"repositoryId": "frozen"}) == []
    service.close()
    for thread in set(threading.enumerate()) - others:
        if thread.name == "diskyard-verb":
            thread.join(_LONG_S)
    tally("hangs", runs=2, hangs=2)
