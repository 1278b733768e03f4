"""Who works for whom: nobody is left waiting, nobody works twice, and who leaves is not worked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from diskyard.log.turns import Job, Turns, fail_all
from diskyard.testing.faults import Crash

LONG_S = 60.0
Work = Callable[[Sequence[Job[str]]], None]


def answer_all(jobs: Sequence[Job[str]]) -> None:
    for number, job in enumerate(jobs):
        job.succeed(f"{number} of {len(jobs)}")


class Crowd:
    """Jobs that come one after another while the first one is at work."""

    def __init__(self, turns: Turns[Job[str]]) -> None:
        self.turns = turns
        self.may_go = threading.Event()
        self.jobs: list[Job[str]] = []
        self.ended: list[object] = []
        self._threads: list[threading.Thread] = []

    def hold(self) -> None:
        begun = threading.Event()

        def work(jobs: Sequence[Job[str]]) -> None:
            begun.set()
            assert self.may_go.wait(LONG_S)
            jobs[0].succeed("held")

        self._start(lambda job: self.turns.take_part(job, work))
        assert begun.wait(LONG_S)

    def come(self, work: Work = answer_all, *, woken: threading.Event | None = None) -> None:
        """One more waits; it works with ``work`` when it is its turn."""

        def take_part(job: Job[str]) -> None:
            if woken is not None:
                job.woken = woken
            self.turns.take_part(job, work)

        waiting = self.turns.waiting()
        self._start(take_part)
        while self.turns.waiting() == waiting and woken is None:
            pass

    def _start(self, take_part: Callable[[Job[str]], None]) -> None:
        def run() -> None:
            job: Job[str] = Job()
            self.jobs.append(job)
            try:
                take_part(job)
                self.ended.append(job.answer())
            except BaseException as error:  # noqa: BLE001 - how it ended
                self.ended.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        self._threads.append(thread)

    def go(self) -> list[object]:
        self.may_go.set()
        for thread in self._threads:
            thread.join(LONG_S)
            assert not thread.is_alive()
        return self.ended


def test_those_who_wait_are_worked_for_at_once() -> None:
    crowd = Crowd(Turns(must_stay=True))
    crowd.hold()
    for _ in range(3):
        crowd.come()
    assert sorted(map(str, crowd.go())) == ["0 of 3", "1 of 3", "2 of 3", "held"]


def test_what_is_left_undone_comes_first_the_next_time() -> None:
    crowd = Crowd(Turns(must_stay=True))
    order: list[int] = []

    def one(jobs: Sequence[Job[str]]) -> None:
        order.append(crowd.jobs.index(jobs[0]))
        jobs[0].succeed("done")

    crowd.hold()
    for _ in range(4):
        crowd.come(one)
    assert crowd.go() == ["held", *["done"] * 4]
    assert order == [1, 2, 3, 4]


def test_an_exception_of_who_works_leaves_the_others_to_the_next() -> None:
    crowd = Crowd(Turns(must_stay=True))

    def crash(jobs: Sequence[Job[str]]) -> None:
        jobs[1].succeed("before the crash")
        raise Crash

    crowd.hold()
    crowd.come(crash)
    crowd.come()
    crowd.come()
    held, *others = crowd.go()
    assert held == "held"
    assert {type(found) for found in others} == {Crash, str}
    assert {"before the crash", "0 of 1"} <= set(map(str, others))


class CrashingEvent(threading.Event):
    """Whoever waits for it is ended once it may be."""

    def __init__(self, may_crash: threading.Event) -> None:
        super().__init__()
        self._may_crash = may_crash

    def wait(self, timeout: float | None = None) -> bool:
        self._may_crash.wait(LONG_S)
        raise Crash


@pytest.mark.parametrize("before_its_turn", [True, False])
def test_who_is_ended_while_it_waits_is_in_nobodys_way(before_its_turn: bool) -> None:
    crowd = Crowd(Turns(must_stay=True))
    may_crash = threading.Event()
    crowd.hold()
    crowd.come(woken=CrashingEvent(may_crash))
    while not crowd.turns.waiting():
        pass
    crowd.come()
    if before_its_turn:
        may_crash.set()
        while crowd.turns.waiting() > 1:
            pass
        crowd.may_go.set()
    else:
        crowd.may_go.set()
        while len(crowd.ended) < 1:
            pass
        may_crash.set()
    assert sorted(str(found) or "crash" for found in crowd.go()) == ["0 of 1", "crash", "held"]


def test_each_has_an_error_of_its_own() -> None:
    jobs: list[Job[str]] = [Job() for _ in range(3)]
    fail_all(jobs, OSError(5, "failed", "/path"))
    found = []
    for job in jobs:
        with pytest.raises(OSError, match="failed") as caught:
            job.answer()
        found.append(caught.value)
    assert len({id(error) for error in found}) == 3
    assert {(error.errno, error.filename) for error in found} == {(5, "/path")}
