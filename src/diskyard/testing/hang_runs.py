"""An operation or fix while a storage does not answer at all, and when it answers again."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Sequence
from functools import partial

from diskyard import errors
from diskyard.service import Service, call
from diskyard.testing.effort import Effort
from diskyard.testing.fault_injection import Call, Injector, faulty_host
from diskyard.testing.fault_runs import ROUNDS, FaultRuns, nothing_left_behind, require_clear, tear_down
from diskyard.testing.world import PLACES, World, judge_outcome

_END_S = 60.0


def note_outcome(act: Callable[[], object], injector: Injector, outcome: list[BaseException | None]) -> None:
    """Do it in a thread, as the caller of a verb does, or as a task runs a fix, and note how it ended."""
    try:
        act()
        outcome.append(None)
    except (errors.DiskyardError, StopIteration) as error:
        outcome.append(error)
    except BaseException as error:
        outcome.append(error)
        raise
    finally:
        injector.hangs.set()


class HangRuns(FaultRuns):
    """One scenario, prepared once, and run once for each call that hangs."""

    def run_hung(self, at: int) -> bool:
        """Do it while a call hangs, check what others can do, let it end, and judge.

        :returns: whether the call that was to hang was made at all.
        """
        world, injector = self.copied(), Injector()
        others = set(threading.enumerate())
        service = world.service(faulty_host(injector, "hanging"))
        before, after = dict(world.images), self.scenario.after(world)
        outcome: list[BaseException | None] = []
        with nothing_left_behind(world.folder):
            injector.hang(at, [str(world.folder / place) for place in PLACES])
            thread = threading.Thread(
                target=note_outcome, args=(partial(self.scenario.act, world, service), injector, outcome)
            )
            thread.start()
            try:
                hung = injector.hangs.wait(_END_S) and not outcome
                if hung:
                    self._look_around(world, service, injector)
                if hung and not self.is_fix:
                    thread.join(_END_S)
                    assert not thread.is_alive(), "the caller waits for ever"
                    assert isinstance(outcome[0], errors.RepositoryUnavailable)
                    require_clear(outcome[0])
            finally:
                injector.release()
            thread.join(_END_S)
            _await_verbs(service, others)
            assert service.tasks.wait(timeout_s=_END_S), "what it started does not end"
        tear_down(world, service)
        service.close()
        judge_outcome(world, before, after, answered=outcome == [None], order=random.Random(at))
        shutil.rmtree(world.folder)
        return hung

    def _look_around(self, world: World, service: Service, injector: Injector) -> None:
        """Check that the other repository answers as usual, and that the one that hangs gives an error."""
        for place in PLACES:
            hangs = injector.hung_root == str(world.folder / place)
            found = None
            try:
                call(service, "listImages", {"repositoryId": place})
            except errors.RepositoryUnavailable as error:
                found = error
            if found is not None:
                require_clear(found)
            assert hangs == (found is not None), f"{place} {'hangs' if hangs else 'is well'}: {found}"


def _await_verbs(service: Service, others: set[threading.Thread]) -> None:
    """Wait for the verbs whose callers have left, but not for the threads of other services."""
    service.supervisor.close()
    for thread in set(threading.enumerate()) - others:
        if thread.name == "diskyard-verb":
            thread.join(_END_S)
            assert not thread.is_alive(), "a verb does not end though its storage answers"


def hangs_to_try(calls: Sequence[Call], effort: Effort, count: int, *purpose: object) -> list[int]:
    """Indexes of calls: all of them in :data:`ROUNDS` rounds when thorough."""
    return effort.sample(range(len(calls)), count, "hangs", *purpose, rounds=ROUNDS)
