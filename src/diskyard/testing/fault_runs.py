"""An operation or fix while storage calls fail: its result, what it leaves behind, and its outcome."""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from diskyard import errors
from diskyard.host import Host
from diskyard.service import Service, call
from diskyard.testing.effort import Effort
from diskyard.testing.fault_injection import (
    PRIVATE,
    Call,
    Fault,
    Injector,
    children,
    faulty_host,
    open_descriptors,
)
from diskyard.testing.scenarios import Scenario
from diskyard.testing.world import PLACES, World, host_named, judge_outcome

Around = tuple[Callable[[], None], Callable[[], None]]
ROUNDS = 8
"""How many thorough rounds try all faults between them: there are hours of them."""
_TASKS_END_S = 120.0
_CERTAINLY_NOT = "it was not made"
"""What an error says of a change that it knows was not made (docs/errors.md)."""


class FaultRuns:
    """One scenario, prepared once, and run once for each fault.

    :param folder: the directory in which worlds are made; only the first one stays there.
    """

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self.folder = folder
        self._runs = 0
        self._prepared = World(folder / "prepared")
        self._prepared.create()
        builder = self._prepared.service(host_named("builder"))
        scenario.prepare(self._prepared, builder)
        builder.close()

    @property
    def is_fix(self) -> bool:
        """Whether a task runs it, or it waits for one. Then it goes on until it is stopped."""
        return self.scenario.act.__qualname__.startswith(("fix_first", "export"))

    def copied(self) -> World:
        """A world for one run."""
        self._runs += 1
        return self._prepared.copied(self.folder / f"run-{self._runs}")

    def calls(self) -> list[Call]:
        """The storage calls of a run in which nothing fails.

        Only verbs protect their callers from storage that hangs, so a scenario of verbs must not use
        storage itself.
        """
        injector = Injector()
        self.run(injector, None)
        assert self.is_fix or not injector.by_caller, f"not asked by a verb: {injector.by_caller}"
        return injector.calls

    def run(
        self,
        injector: Injector,
        fault: Fault | None,
        *,
        around: Around | None = None,
        host: Host | None = None,
    ) -> errors.DiskyardError | None:
        """Do it with a fault, then without, and judge everything. Return the error with which it ended.

        :param around: called before and after: it makes and ends a fault of another kind.
        :param host: the host on which it is done, if it is not the injector's.
        """
        world = self.copied()
        lasting = fault is not None and fault.lasting
        service = world.service(host or faulty_host(injector, "failing", ended=lasting))
        before, after = dict(world.images), self.scenario.after(world)
        known = {
            (place, image_id)
            for place in PLACES
            for image_id in service.connections.get(place).state().images
        }
        with nothing_left_behind(world.folder):
            error = self._act(world, service, injector, fault, around)
        if not lasting:
            tear_down(world, service)
        service.close()
        if error is not None and _CERTAINLY_NOT in error.message:
            after = {key: data for key, data in after.items() if key in before or key in known}
        judge_outcome(
            world,
            before,
            after,
            answered=error is None,
            order=random.Random(0 if fault is None else fault.at),
        )
        shutil.rmtree(world.folder)
        return error

    def _act(
        self,
        world: World,
        service: Service,
        injector: Injector,
        fault: Fault | None,
        around: Around | None,
    ) -> errors.DiskyardError | None:
        injector.begin(fault)
        faulty = fault is not None or around is not None
        try:
            if around is not None:
                around[0]()
            self.scenario.act(world, service)
            assert service.tasks.wait(timeout_s=_TASKS_END_S), "what it started does not end"
        except errors.DiskyardError as error:
            if not faulty:
                raise
            require_clear(error)
            return error
        except StopIteration:
            if not faulty:
                raise
            # A fix waits for what cannot be read now: check says so, and there is nothing to run.
            return errors.StorageError("No fix is listed as runnable.")
        finally:
            injector.end()
            if around is not None:
                around[1]()
        return None


def tear_down(world: World, service: Service) -> None:
    """Detach an image, as a caller does that does not know whether it is attached."""
    # A scenario makes and removes repositories of its own, which may be half made.
    for place in [known for known in service.connections.remembered() if known in PLACES]:
        for found in service.connections.get(place).state().attachments.values():
            if found.host == service.host.identity:
                asked = {"repositoryId": place, "imageId": found.image_id, "options": {"owner": found.owner}}
                call(service, "teardownImage", asked)


def require_clear(error: errors.DiskyardError) -> None:
    """Require an error of Diskyard's that people can act on."""
    if isinstance(error, errors.InternalError):
        raise AssertionError("a defect is shown in the place of a fault of storage") from error
    assert isinstance(error, errors.CODES[error.code])
    assert error.message.endswith("."), error.message
    assert error.advice.endswith("."), error.advice


@contextmanager
def nothing_left_behind(folder: Path) -> Iterator[None]:
    """A context that must leave no child process, descriptor, socket or private directory behind."""
    private = folder / f"{PRIVATE}sockets"
    private.mkdir()
    descriptors, processes, usual = open_descriptors(), children(), tempfile.tempdir
    tempfile.tempdir = str(private)
    try:
        yield
        left = {fd: path for fd, path in open_descriptors().items() if descriptors.get(fd) != path}
        assert not left, f"descriptors left open: {left}"
        assert not children() - processes, "a program goes on running"
        assert not os.listdir(private), "a private folder is left"
    finally:
        tempfile.tempdir = usual


def faults_to_try(calls: list[Call], effort: Effort, count: int, *purpose: object) -> list[Fault]:
    """Faults for the calls of a run: all of them in :data:`ROUNDS` rounds when thorough.

    Otherwise ``count`` faults, spread over kinds of calls (a name, and the kind of thing that it is about).
    Over all scenarios each kind gets its share, and another seed takes other calls.
    """
    everything = [fault for at, made in enumerate(calls) for fault in _faults_of(at, made)]
    if effort.thorough:
        return effort.sample(everything, count, rounds=ROUNDS)
    chance = effort.random("faults", *purpose)
    kinds: dict[Call, list[int]] = {}
    for at, made in enumerate(calls):
        kinds.setdefault(made, []).append(at)
    chosen = chance.sample(sorted(kinds, key=str), min(count, len(kinds)))
    faults = [chance.choice(_faults_of(chance.choice(kinds[kind]), kind)) for kind in chosen]
    return sorted(faults, key=lambda fault: fault.at)


def _faults_of(at: int, call: Call) -> list[Fault]:
    faults = []
    for number in call.errnos():
        faults.append(Fault(at, number))
        if number != errno.EINTR:
            faults.append(Fault(at, number, lasting=True))
        if call.may_fail_afterwards():
            faults.append(Fault(at, number, afterwards=True))
    return faults
