"""Which task is next: urgency, type, arrival, the limits of host and repository, stopping, closing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from diskyard.caller import CALLER, Caller
from diskyard.host import Host
from diskyard.model.fix import FixData, Optimize
from diskyard.model.results import Task
from diskyard.mover.interface import Stopped
from diskyard.tasks.limits import TaskLimits, Urgency
from diskyard.tasks.records import Again, TaskRecords
from diskyard.tasks.runner import Job, TaskRunner
from diskyard.tasks.waitlist import TURN, Waiting, Waitlist
from diskyard.tasks.watcher import TaskWatcher

_LONG_S = 60.0


def waiting(arrival: int, rank: int, urgency: Urgency = Urgency.ASKED, place: str = "a") -> Waiting:
    return Waiting(urgency, rank, arrival, place, lambda: None)


def drain(waitlist: Waitlist) -> list[int]:
    taken = []
    while (found := waitlist.take(lambda _: True)) is not None:
        taken.append(found.arrival)
    return taken


def test_urgency_then_type_then_arrival() -> None:
    waitlist = Waitlist()
    for found in (
        waiting(0, 3, Urgency.SPARE),
        waiting(1, 0, Urgency.SPARE),
        waiting(2, 3),
        waiting(3, 0),
        waiting(4, 1),
        waiting(5, 0),
        waiting(6, 3, Urgency.FIRST),
        waiting(7, 3, Urgency.FIRST),
    ):
        waitlist.add(found)
    assert drain(waitlist) == [6, 7, 3, 5, 4, 2, 1, 0]


def test_what_may_not_begin_is_passed_by_and_keeps_its_place() -> None:
    waitlist = Waitlist()
    for arrival, place in enumerate("aab"):
        waitlist.add(waiting(arrival, 0, place=place))
    taken = waitlist.take(lambda place: place != "a")
    assert taken is not None
    assert taken.arrival == 2
    assert waitlist.take(lambda place: place != "a") is None
    assert drain(waitlist) == [0, 1]


def test_no_stream_of_urgent_work_keeps_the_rest_waiting_for_ever() -> None:
    """With a mend always waiting, each sixteenth place goes to the oldest, whatever it is."""
    waitlist = Waitlist()
    waitlist.add(waiting(0, 3))
    waitlist.add(waiting(1, 3, Urgency.SPARE))
    taken = []
    for arrival in range(2, 2 + 2 * TURN):
        waitlist.add(waiting(arrival, 0))
        found = waitlist.take(lambda _: True)
        assert found is not None
        taken.append(found.arrival)
    assert (taken.index(0), taken.index(1)) == (TURN - 1, 2 * TURN - 1)
    assert [arrival for arrival in taken if arrival > 1] == list(range(2, 2 * TURN))


def test_what_is_to_run_first_is_before_the_oldest_too() -> None:
    waitlist = Waitlist()
    waitlist.add(waiting(0, 3))
    for arrival in range(1, 3 * TURN):
        waitlist.add(waiting(arrival, 0, Urgency.FIRST))
    assert drain(waitlist) == [*range(1, 3 * TURN), 0]


@pytest.mark.parametrize(
    "words",
    [
        {"at_once": 0},
        {"at_once_per_repository": 0},
        {"at_once": 1025},
        {"rate_limit_bytes_per_s": -1},
        {"order": ["mend"]},
        {"order": ["mend", "merge", "optimize", "clean", "clean"]},
        {"order": ["mend", "mend", "optimize", "clean"]},
        {"order": ["mend", "merge", "optimize", "other"]},
        {"more": 1},
    ],
)
def test_limits_that_are_none(words: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(words, TaskLimits)
    if "more" not in words:
        with pytest.raises(ValueError, match=r"order|numbers"):
            TaskLimits(**words)  # type: ignore[arg-type]


def test_an_export_counts_as_a_mend() -> None:
    limits = TaskLimits(order=("clean", "mend", "merge", "optimize"))
    assert [limits.rank(verb) for verb in ("clean", "mend", "exportImage", "merge")] == [0, 1, 1, 2]


# -- the runner, with work that waits for a gate ----------------------------------------------


class Shop:
    """A runner whose jobs note that they ran, and when."""

    def __init__(self, folder: Path, limits: TaskLimits) -> None:
        self.told: list[Task] = []
        self.records = TaskRecords(Host.real(), str(folder))
        self.runner = TaskRunner(self.records, Host.real().clock, limits, _LONG_S, self.told.append)
        self.ran: list[str] = []
        self.gate = threading.Event()
        self.began = threading.Semaphore(0)

    def job(self, name: str, verb: str = "mend", place: str = "a") -> Job:
        def run(_: TaskWatcher) -> bool:
            self.ran.append(name)
            return True

        return Job(verb, place, None, run, place)

    def closed(self, name: str, verb: str = "mend", place: str = "a") -> Job:
        """One that waits for the gate, or for being stopped."""

        def run(watcher: TaskWatcher) -> bool:
            self.ran.append(name)
            self.began.release()
            while not self.gate.wait(0.01):
                if watcher.stop_asked():
                    raise Stopped
            return True

        again = Again(fix=FixData("marker", Optimize(image_id=name)))
        return Job(verb, place, None, run, place, again)

    def start(self, *jobs: Job, urgency: Urgency = Urgency.ASKED) -> list[str]:
        return [task.task_id for task in self.runner.start(jobs, urgency)]

    def await_begun(self, number: int) -> None:
        for _ in range(number):
            assert self.began.acquire(timeout=_LONG_S)

    def finish(self) -> None:
        self.gate.set()
        assert self.runner.wait(timeout_s=_LONG_S)

    def states(self, task_ids: list[str]) -> list[str]:
        return [self.records.get(task_id).state for task_id in task_ids]


@pytest.fixture
def make_shop(tmp_path: Path) -> Iterator[Callable[[TaskLimits], Shop]]:
    made: list[Shop] = []

    def make(limits: TaskLimits) -> Shop:
        made.append(Shop(tmp_path, limits))
        return made[-1]

    yield make
    for shop in made:
        shop.gate.set()
        shop.runner.close()


@pytest.fixture
def shop(make_shop: Callable[[TaskLimits], Shop]) -> Shop:
    """One place, taken by a job that waits for the gate."""
    made = make_shop(TaskLimits(at_once=1))
    made.start(made.closed("holder"))
    made.await_begun(1)
    return made


def test_what_waits_runs_in_the_order_of_the_types(shop: Shop) -> None:
    for verb in ("clean", "optimize", "merge", "exportImage", "mend", "clean", "mend"):
        shop.start(shop.job(f"{verb} {len(shop.told)}", verb))
    shop.start(shop.job("spare", "mend"), urgency=Urgency.SPARE)
    shop.start(shop.job("first", "clean"), urgency=Urgency.FIRST)
    shop.finish()
    assert [name.split()[0] for name in shop.ran] == [
        "holder", "first", "exportImage", "mend", "mend", "merge", "optimize", "clean", "clean", "spare",
    ]  # fmt: skip
    assert shop.ran[3:5] == sorted(shop.ran[3:5])


def test_another_order(make_shop: Callable[[TaskLimits], Shop]) -> None:
    shop = make_shop(TaskLimits(at_once=1, order=("clean", "optimize", "merge", "mend")))
    shop.start(shop.closed("holder"))
    shop.await_begun(1)
    for verb in ("mend", "merge", "optimize", "clean"):
        shop.start(shop.job(verb, verb))
    shop.finish()
    assert shop.ran == ["holder", "clean", "optimize", "merge", "mend"]


def test_a_list_runs_in_its_order_and_lets_urgent_work_pass(shop: Shop) -> None:
    """An optimize queued behind a mend is as urgent as an optimize once the mend is done."""
    shop.start(shop.job("A mend"), shop.job("A optimize", "optimize"), shop.job("A clean", "clean"))
    shop.start(shop.job("B optimize", "optimize"))
    shop.start(shop.job("C mend"))
    shop.finish()
    assert shop.ran == ["holder", "A mend", "C mend", "A optimize", "B optimize", "A clean"]


def test_a_list_is_no_two_jobs_at_a_time(make_shop: Callable[[TaskLimits], Shop]) -> None:
    shop = make_shop(TaskLimits(at_once=4, at_once_per_repository=4))
    shop.start(shop.closed("1"), shop.closed("2"))
    shop.await_begun(1)
    shop.start(shop.closed("3"))
    shop.await_begun(1)
    assert shop.ran == ["1", "3"]
    shop.finish()
    assert shop.ran == ["1", "3", "2"]


def test_so_many_at_once_on_the_host_and_in_a_repository(make_shop: Callable[[TaskLimits], Shop]) -> None:
    shop = make_shop(TaskLimits(at_once=3, at_once_per_repository=2))
    for name in ("a1", "a2", "a3", "a4", "b1", "b2"):
        shop.start(shop.closed(name, place=name[0]))
    shop.await_begun(3)
    assert set(shop.ran) == {"a1", "a2", "b1"}
    assert not shop.began.acquire(timeout=0.05)
    shop.finish()
    assert set(shop.ran[3:]) == {"a3", "a4", "b2"}


def test_a_queued_task_is_stopped_at_once_and_ends_its_list(shop: Shop) -> None:
    ids = shop.start(*(shop.job(str(number)) for number in range(4)))
    shop.runner.stop(ids[2])
    assert shop.states(ids) == ["queued", "queued", "stopped", "stopped"]
    assert all(shop.records.get(task_id).ended_at for task_id in ids[2:])
    shop.finish()
    assert shop.ran == ["holder", "0", "1"]
    assert shop.states(ids) == ["done", "done", "stopped", "stopped"]
    assert list(Path(shop.records._folder).glob("*.stop")) == []


def test_a_running_task_that_is_stopped_ends_its_list(make_shop: Callable[[TaskLimits], Shop]) -> None:
    shop = make_shop(TaskLimits())
    ids = shop.start(shop.closed("runs"), shop.job("waits"))
    shop.await_begun(1)
    shop.runner.stop(ids[0])
    assert shop.runner.wait(timeout_s=_LONG_S)
    assert shop.states(ids) == ["stopped", "stopped"]
    assert shop.ran == ["runs"]
    assert shop.records.interrupted() == []


def test_another_process_stops_a_queued_task(shop: Shop, tmp_path: Path) -> None:
    ids = shop.start(shop.job("waits"))
    TaskRunner(TaskRecords(Host.real(), str(tmp_path)), Host.real().clock).stop(ids[0])
    assert shop.runner.wait(ids, _LONG_S)
    assert shop.states(ids) == ["stopped"]
    shop.finish()
    assert shop.ran == ["holder"]


def test_another_process_stops_what_is_queued_behind_what_runs(
    make_shop: Callable[[TaskLimits], Shop], tmp_path: Path
) -> None:
    """There is a free place, but the list's first job has not ended."""
    shop = make_shop(TaskLimits())
    ids = shop.start(shop.closed("runs"), shop.job("waits"))
    shop.await_begun(1)
    TaskRunner(TaskRecords(Host.real(), str(tmp_path)), Host.real().clock).stop(ids[1])
    assert shop.runner.wait(ids[1:], _LONG_S)
    assert shop.states(ids) == ["running", "stopped"]
    shop.finish()
    assert shop.states(ids) == ["done", "stopped"]


@pytest.mark.parametrize("resumable", [False, True])
def test_closing_ends_what_is_queued_and_what_runs(shop: Shop, *, resumable: bool) -> None:
    (held,) = [task.task_id for task in shop.runner.unfinished()]
    queued = shop.start(shop.closed("1"), shop.closed("2"))
    assert shop.runner.close(resumable=resumable)
    late = shop.start(shop.closed("late"))
    assert shop.states([held, *queued, *late]) == ["stopped"] * 4
    assert shop.ran == ["holder"]
    names = [record.task.task_id for record in shop.records.interrupted()]
    assert names == ([held, *queued, *late] if resumable else [])


def test_what_its_caller_stopped_is_not_resumable(shop: Shop) -> None:
    queued = shop.start(shop.closed("1"))
    shop.runner.stop(queued[0])
    (held,) = [task.task_id for task in shop.runner.unfinished()]
    shop.runner.stop(held)
    assert shop.runner.close(resumable=True)
    assert shop.records.interrupted() == []


def test_jobs_run_in_the_context_of_their_caller(shop: Shop) -> None:
    seen: list[Caller | None] = []

    def run(_: TaskWatcher) -> bool:
        seen.append(CALLER.get())
        return False

    alice, bob = Caller("alice"), Caller("bob")
    ids = []
    for caller in (alice, bob):
        token = CALLER.set(caller)
        ids.append(shop.start(Job("mend", "a", None, run), Job("mend", "a", None, run)))
        CALLER.reset(token)
    shop.finish()
    assert seen == [alice, alice, bob, bob]
    assert [alice.started, bob.started] == ids


def test_every_change_that_is_shown_is_told(make_shop: Callable[[TaskLimits], Shop]) -> None:
    """Progress is throttled as it is shown; the end is always told, as the record has it."""
    shop = make_shop(TaskLimits())

    def run(watcher: TaskWatcher) -> bool:
        for done_bytes in range(1000):
            watcher.report("1/1", done_bytes, 1000)
        return True

    (task_id,) = shop.start(Job("mend", "a", None, run))
    assert shop.runner.wait(timeout_s=_LONG_S)
    assert [task.state for task in shop.told][:2] == ["queued", "running"]
    assert len(shop.told) < 100
    assert shop.told[-1] == shop.records.get(task_id)
    assert (shop.told[-1].state, shop.told[-1].done_bytes, shop.told[-1].percent) == ("done", 999, 100)
