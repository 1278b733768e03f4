"""Who works for whom: nobody is left waiting, nobody works twice, and who leaves is not worked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from diskyard.log.turns import Turns, Waiter, fail_all
from diskyard.testing.faults import Crash

LONG_S = 60.0
Work = Callable[[Sequence[Waiter[str]]], None]


def answer_all(waiters: Sequence[Waiter[str]]) -> None:
    for number, waiter in enumerate(waiters):
        waiter.succeed(f"{number} of {len(waiters)}")


class Crowd:
    """Jobs that come one after another while the first one is at work."""

    def __init__(self, turns: Turns[Waiter[str]]) -> None:
        self.turns = turns
        self.may_go = threading.Event()
        self.waiters: list[Waiter[str]] = []
        self.ended: list[object] = []
        self._threads: list[threading.Thread] = []

    def hold(self) -> None:
        begun = threading.Event()

        def work(waiters: Sequence[Waiter[str]]) -> None:
            begun.set()
            assert self.may_go.wait(LONG_S)
            waiters[0].succeed("held")

        self._start(lambda waiter: self.turns.take_part(waiter, work))
        assert begun.wait(LONG_S)

    def come(self, work: Work = answer_all, *, woken: threading.Event | None = None) -> None:
        """One more waits; it works with ``work`` when it is its turn."""

        def take_part(waiter: Waiter[str]) -> None:
            if woken is not None:
                waiter.woken = woken
            self.turns.take_part(waiter, work)

        waiting = self.turns.waiting()
        self._start(take_part)
        while self.turns.waiting() == waiting and woken is None:
            pass

    def _start(self, take_part: Callable[[Waiter[str]], None]) -> None:
        def run() -> None:
            waiter: Waiter[str] = Waiter()
            self.waiters.append(waiter)
            try:
                take_part(waiter)
                self.ended.append(waiter.answer())
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

    def one(waiters: Sequence[Waiter[str]]) -> None:
        order.append(crowd.waiters.index(waiters[0]))
        waiters[0].succeed("done")

    crowd.hold()
    for _ in range(4):
        crowd.come(one)
    assert crowd.go() == ["held", *["done"] * 4]
    assert order == [1, 2, 3, 4]


def test_an_exception_of_who_works_leaves_the_others_to_the_next() -> None:
    crowd = Crowd(Turns(must_stay=True))

    def crash(waiters: Sequence[Waiter[str]]) -> None:
        waiters[1].succeed("before the crash")
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
    waiters: list[Waiter[str]] = [Waiter() for _ in range(3)]
    fail_all(waiters, OSError(5, "failed", "/path"))
    found = []
    for waiter in waiters:
        with pytest.raises(OSError, match="failed") as caught:
            waiter.answer()
        found.append(caught.value)
    assert len({id(error) for error in found}) == 3
    assert {(error.errno, error.filename) for error in found} == {(5, "/path")}
