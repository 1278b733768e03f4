"""What callers share, and that who takes much waits for it alone."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack

import pytest

from diskyard import errors
from diskyard.caller import Share
from diskyard.http import long_calls
from diskyard.http.bulkheads import Bulkheads
from diskyard.http.limits import Limits, Queue, Rates
from diskyard.http.long_calls import NO_PLACE, Courtesy, LongCalls, is_long
from diskyard.model import requests as ask
from diskyard.model.courtesy import WAY, give_way

PATIENCE_S = 20.0
GREEDY, OTHER = Share("token:greedy", is_limited=True), Share("token:other", is_limited=True)
OPERATOR = Share("user:root", is_limited=False)


class SetClock:
    """A clock that a test sets."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_dear_caller_waits_for_what_it_took_and_others_do_not() -> None:
    clock = SetClock()
    work = Rates.of_work(500, clock)
    work.charge("greedy", 5_000)  # all that may be used at once
    work.require("greedy")
    work.charge("greedy", 1_200)
    with pytest.raises(errors.TooManyRequests) as refused:
        work.require("greedy")
    assert refused.value.retry_after_s == 3
    work.require("other")
    clock.now_s += refused.value.retry_after_s
    work.require("greedy")


def test_calls_that_cost_little_are_not_counted_as_much() -> None:
    clock = SetClock()
    work = Rates.of_work(500, clock)
    for _ in range(1_000):
        work.require("modest")
        work.charge("modest", 3)
        clock.now_s += 0.01


def test_nobody_waits_behind_who_has_all_of_their_part() -> None:
    async def attempt() -> list[str]:
        queue, order = Queue(8), list[str]()

        async def take(share: Share) -> None:
            await queue.enter(share)
            order.append(share.actor)

        first = [asyncio.create_task(take(GREEDY)) for _ in range(5)]
        await asyncio.sleep(0)
        assert order == [GREEDY.actor] * 2  # a quarter
        for share in (OTHER, OPERATOR):
            await asyncio.wait_for(take(share), PATIENCE_S)
        queue.leave(GREEDY)
        await asyncio.wait(first, timeout=0.01)
        for task in first:
            task.cancel()
        await asyncio.gather(*first, return_exceptions=True)
        queue.leave(OPERATOR)
        assert queue.count == 3
        return order

    names = [GREEDY.actor, GREEDY.actor, OTHER.actor, OPERATOR.actor, GREEDY.actor]
    assert asyncio.run(attempt()) == names


@pytest.mark.parametrize("share", [OPERATOR, GREEDY])
def test_who_has_gone_is_passed_over_and_the_next_gets_the_turn(share: Share) -> None:
    """The task of who waits is cancelled, and has not run since, when something is given back."""

    async def attempt() -> None:
        queue = Queue(1)
        await queue.enter(share)
        gone, next_one = asyncio.create_task(queue.enter(share)), asyncio.create_task(queue.enter(share))
        await asyncio.sleep(0)
        gone.cancel()
        queue.leave(share)
        await asyncio.wait_for(next_one, PATIENCE_S)
        assert gone.cancelled()
        assert queue.count == 1
        queue.leave(share)
        assert (queue.count, queue._waiting) == (0, [])

    asyncio.run(attempt())


def test_a_turn_that_comes_as_its_task_is_cancelled_is_given_back_once() -> None:
    async def attempt() -> None:
        queue = Queue(1)
        await queue.enter(OPERATOR)
        gone, next_one = (asyncio.create_task(queue.enter(OPERATOR)) for _ in range(2))
        await asyncio.sleep(0)
        queue.leave(OPERATOR)
        gone.cancel()
        await asyncio.wait_for(next_one, PATIENCE_S)
        assert gone.cancelled()
        assert queue.count == 1
        queue.leave(OPERATOR)
        assert (queue.count, queue._waiting) == (0, [])

    asyncio.run(attempt())


def test_a_lane_has_room_for_others_and_for_the_operator() -> None:
    async def attempt() -> None:
        bulkheads = Bulkheads(Limits(concurrent_per_repository=8), PATIENCE_S)
        begun = [asyncio.create_task(bulkheads.enter("a", GREEDY)) for _ in range(20)]
        await asyncio.sleep(0)
        assert sum(task.done() and task.exception() is None for task in begun) == 2
        refused = [task for task in begun if task.done() and task.exception() is not None]
        assert len(refused) == 20 - 2 - 4  # so many wait
        assert all(isinstance(task.exception(), errors.TooManyRequests) for task in refused)
        for share in (OTHER, OTHER, OPERATOR, OPERATOR):
            await asyncio.wait_for(bulkheads.enter("a", share), PATIENCE_S)
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)

    asyncio.run(attempt())


def test_what_is_long_grows_with_a_repository() -> None:
    assert not is_long(ask.ListImages(repository_id="a", limit=200))
    assert is_long(ask.ListImages(repository_id="a", limit=201))
    assert is_long(ask.ListImages(repository_id="a", limit=1, status="broken"))
    assert is_long(ask.CheckStorageRepository(repository_id="a"))
    assert not is_long(ask.GetHostInfo())


def test_a_token_waits_for_one_piece_of_another_and_not_for_all() -> None:
    """A greedy one has asked for very many pieces when another comes."""

    async def attempt() -> list[str]:
        long = LongCalls(Limits(long_calls=1, long_calls_per_token=4), PATIENCE_S)
        order: list[str] = []

        async def call(share: Share, pieces: int) -> None:
            async with long.begun(share, "a"):
                for _ in range(pieces):
                    async with long.turn(share, "a"):
                        order.append(share.actor)
                        await asyncio.sleep(0)

        greedy = [asyncio.create_task(call(GREEDY, 25)) for _ in range(4)]
        await asyncio.sleep(0)
        await asyncio.wait_for(call(OTHER, 3), PATIENCE_S)
        so_far = list(order)
        await asyncio.gather(*greedy)
        assert order.count(GREEDY.actor) == 100
        assert not long._bulkheads
        return so_far

    so_far = asyncio.run(attempt())
    assert so_far.count(OTHER.actor) == 3
    assert so_far.count(GREEDY.actor) <= 5


def test_a_long_call_is_under_way_until_its_answer_is_taken() -> None:
    async def attempt() -> None:
        long = LongCalls(Limits(long_calls_per_token=1), PATIENCE_S)
        async with AsyncExitStack() as unread:
            await unread.enter_async_context(long.begun(GREEDY, "a"))
            waiting = [asyncio.create_task(_begin(long, GREEDY, "a")) for _ in range(4)]
            await asyncio.sleep(0)
            with pytest.raises(errors.TooManyRequests) as refused:
                await _begin(long, GREEDY, "a")
            assert "Read the answers" in refused.value.advice
            # Another repository, which may be the one of two that answers; another token; the operator.
            await asyncio.wait_for(_begin(long, GREEDY, "b"), PATIENCE_S)
            await asyncio.wait_for(_begin(long, OTHER, "a"), PATIENCE_S)
            await asyncio.wait_for(_begin(long, OPERATOR, "a"), PATIENCE_S)
        await asyncio.gather(*waiting)

    asyncio.run(attempt())


async def _begin(long: LongCalls, share: Share, bulkhead: str) -> None:
    async with long.begun(share, bulkhead), long.turn(share, bulkhead):
        pass


def test_long_work_gives_way_to_short_calls_and_gets_on_all_the_same() -> None:
    courtesy, ended = Courtesy(), threading.Event()
    steps: list[int] = []

    def work() -> None:
        WAY.set(courtesy.of_one())
        while len(steps) < 20_000:
            give_way()
            steps.append(courtesy._short)
        ended.set()

    async def attempt() -> None:
        with courtesy.short():
            threading.Thread(target=work, daemon=True).start()
            while not steps:  # there is a short call without end, and it gets on
                await asyncio.sleep(0.001)

    asyncio.run(attempt())
    assert ended.wait(PATIENCE_S)
    assert courtesy._short == 0


def test_a_call_that_waits_for_storage_is_not_short_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_calls, "_SHORT_MOST_S", 0.01)

    async def attempt() -> None:
        courtesy, seen = Courtesy(), list[int]()
        with courtesy.short():
            seen.append(courtesy._short)
            while courtesy._short:
                await asyncio.sleep(0.01)
            with courtesy.short():
                seen.append(courtesy._short)
        assert [*seen, courtesy._short] == [1, 1, 0]

    asyncio.run(asyncio.wait_for(attempt(), PATIENCE_S))


def test_a_list_of_places_of_which_one_hangs_keeps_no_other_waiting() -> None:
    async def attempt() -> None:
        long = LongCalls(Limits(long_calls=1), PATIENCE_S)
        places, tasks = f"{NO_PLACE}ListStorageRepositories", f"{NO_PLACE}ListTasks"
        async with long.begun(GREEDY, places), long.turn(GREEDY, places):
            await asyncio.wait_for(_begin(long, OTHER, places), PATIENCE_S)
            await asyncio.wait_for(_begin(long, GREEDY, tasks), PATIENCE_S)

    asyncio.run(attempt())


def test_work_that_nobody_waits_for_is_not_kept() -> None:
    asked: list[int] = []
    give_way()
    token = WAY.set(lambda: asked.append(1))
    try:
        give_way()
    finally:
        WAY.reset(token)
    assert asked == [1]
