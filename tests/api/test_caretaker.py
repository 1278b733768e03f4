"""The caretaker: which fixes it runs by itself, when, how many, and whom it lets pass."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.daemon.caretaker import Caretaker
from diskyard.daemon.policy import Policy
from diskyard.host import Clock, Host, calls
from diskyard.model.fix import Fix
from diskyard.model.results import Task
from diskyard.service import Service, call
from diskyard.tasks.limits import TaskLimits
from tests.api.helpers import COMMIT_ONLY, SIZE, Rig, actors, fix_module, fixes, picture, settle, wait_until

WHOLE = (1, 0, SIZE)
CLEAN = Policy(repository="a", fixes=("clean",))


class SetClock(Clock):
    """Time that passes as tests say, and a little besides; yesterday at noon at first."""

    def __init__(self) -> None:
        noon = time.localtime(time.time() - 24 * 3600)
        self._wall_s = time.mktime((*noon[:3], 12, 0, 0, 0, 0, -1))
        self._passed_s = 0.0

    def wall_s(self) -> float:
        return self._wall_s + self._passed_s

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self._passed_s

    def go_on(self, hours: float) -> None:
        self._passed_s += hours * 3600


class House:
    """A daemon's service with a caretaker that looks when it is told."""

    def __init__(self, rig: Rig, folder: Path, policies: tuple[Policy, ...], limits: TaskLimits) -> None:
        self.clock = SetClock()
        host = dataclasses.replace(Host.real(), clock=self.clock)
        self.service = Service(host, str(folder), limits=limits, storage_timeout_s=0.5)
        for name in "ab":
            words = {"repoFormat": rig.format, "connectionParameters": rig.place(name)}
            call(self.service, "connectStorageRepository", {"repoId": name, **words})
        self.caretaker = Caretaker(self.service, policies)

    def look_until(self, happens: Callable[[], bool]) -> None:
        def looked() -> bool:
            self.caretaker.look()
            return happens()

        wait_until(looked)

    def rest(self) -> None:
        """Until the rounds that are due now are over."""
        self.look_until(self.caretaker.is_idle)

    def tasks(self) -> list[Task]:
        """The tasks that were, in the order in which they ended; those that have not ended last."""
        return sorted(self.service.records.all(), key=lambda task: (task.ended_at or "~", task.queued_at))

    def ran(self) -> list[tuple[str, str | None, str]]:
        return [(task.verb, task.repository_id, task.state) for task in self.tasks()]

    def has_run(self, what: list[tuple[str, str | None, str]]) -> bool:
        return self.ran() == what


MakeHouse = Callable[..., House]


@pytest.fixture
def make_house(rig: Rig, tmp_path: Path) -> Iterator[MakeHouse]:
    made: list[House] = []

    def make(*policies: Policy, limits: TaskLimits | None = None) -> House:
        made.append(House(rig, tmp_path / f"house-{len(made)}", policies, limits or TaskLimits()))
        return made[-1]

    yield make
    for house in made:
        house.caretaker.stop()
        house.service.close()


def doom(rig: Rig, repo: str, number: int) -> None:
    """Leave volumes to be cleaned."""
    for _ in range(number):
        rig.yard.remove_image(repo, rig.disk(repo, WHOLE), options=COMMIT_ONLY)


class Gate:
    """Cleaning waits here, once it has begun."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.begun = threading.Semaphore(0)
        original = fix_module("clean").clean_volume

        def held(*words: object) -> object:
            self.begun.release()
            assert self.open.wait(60)
            return original(*words)

        patch.setattr(fix_module("clean"), "clean_volume", held)

    def await_begun(self) -> None:
        assert self.begun.acquire(timeout=60)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.open.set()


def test_rounds_of_its_types_and_no_more_than_it_may(rig: Rig, make_house: MakeHouse) -> None:
    doom(rig, "a", 5)
    doom(rig, "b", 1)
    copy = rig.yard.copy_image("a", rig.disk("b", WHOLE), options=COMMIT_ONLY)
    house = make_house(Policy(repository="a", fixes=("clean",), at_most=2))
    for rounds in (1, 2):
        house.rest()
        house.rest()  # nothing is due
        assert house.ran() == [("clean", "a", "done")] * 2 * rounds
        assert len(fixes(rig.yard, "a", "clean")) == 5 - 2 * rounds
        house.clock.go_on(1)
    house.rest()
    house.clock.go_on(1)
    house.rest()
    assert house.ran() == [("clean", "a", "done")] * 5
    assert [fix.image_id for fix in fixes(rig.yard, "a")] == [copy]
    assert len(fixes(rig.yard, "b")) == 1
    assert actors(rig.repository("a"), "clean") == {"caretaker"}


def test_every_repository_that_is_connected(rig: Rig, make_house: MakeHouse) -> None:
    for repo in "ab":
        doom(rig, repo, 2)
    copy = rig.yard.copy_image("a", rig.disk("b", WHOLE), options=COMMIT_ONLY)
    house = make_house(Policy(repository="*", fixes=("clean", "mend")))
    house.rest()
    assert sorted(house.ran()) == [("clean", "a", "done")] * 2 + [("clean", "b", "done")] * 2 + [
        ("mend", "a", "done")
    ]
    rig.expect("a", copy, picture(SIZE, WHOLE))
    rig.clean_slate("a", "b")


def test_without_policies_there_is_nothing(rig: Rig, make_house: MakeHouse) -> None:
    doom(rig, "a", 1)
    house = make_house()
    house.caretaker.start()
    assert "diskyard-caretaker" not in {thread.name for thread in threading.enumerate()}
    house.rest()
    assert house.ran() == []


def test_whoever_asks_goes_before_it(rig: Rig, make_house: MakeHouse, gate: Gate) -> None:
    """With one place taken: its mend was queued first, and runs last."""
    doom(rig, "a", 2)
    copy = rig.yard.copy_image("a", rig.disk("b", WHOLE), options=COMMIT_ONLY)
    house = make_house(Policy(repository="a", fixes=("mend",)), limits=TaskLimits(at_once=1))

    def ask(fix: Fix) -> None:
        call(house.service, "fixStorageRepository", {"repositoryId": "a", "fix": fix})

    first, second = fixes(rig.yard, "a", "clean")
    ask(first)
    gate.await_begun()
    house.look_until(lambda: len(house.tasks()) == 2)
    ask(second)
    gate.open.set()
    house.rest()
    assert house.service.tasks.wait(timeout_s=60)
    assert [task.verb for task in house.tasks()] == ["clean", "clean", "mend"]
    assert [task.image_id for task in house.tasks()] == [None, None, copy]


def test_a_round_waits_for_the_one_before(rig: Rig, make_house: MakeHouse, gate: Gate) -> None:
    doom(rig, "a", 3)
    house = make_house(Policy(repository="a", fixes=("clean",), at_most=1))
    house.look_until(lambda: len(house.tasks()) == 1)
    gate.await_begun()
    for _ in range(3):
        house.clock.go_on(2)
        house.caretaker.look()
    assert house.ran() == [("clean", "a", "running")]
    gate.open.set()
    house.look_until(lambda: len(house.tasks()) == 2)
    house.rest()
    assert house.ran() == [("clean", "a", "done")] * 2
    assert len(fixes(rig.yard, "a")) == 1


def test_hours(rig: Rig, make_house: MakeHouse, gate: Gate) -> None:
    """From six in the evening on; at midnight what runs goes on and the rest waits for the evening."""
    doom(rig, "a", 3)
    house = make_house(Policy(repository="a", fixes=("clean",), hours="18:00-00:00"))
    house.rest()
    house.clock.go_on(5.9)
    house.rest()
    assert house.ran() == []
    house.clock.go_on(0.1)
    house.look_until(lambda: len(house.tasks()) == 1)
    gate.await_begun()
    house.clock.go_on(6)
    house.caretaker.look()
    gate.open.set()
    house.rest()
    assert house.ran() == [("clean", "a", "done")]
    house.clock.go_on(17)
    house.rest()
    assert house.ran() == [("clean", "a", "done")]


def test_what_is_queued_when_the_hours_end_is_taken_back(rig: Rig, make_house: MakeHouse, gate: Gate) -> None:
    doom(rig, "a", 3)
    house = make_house(
        Policy(repository="a", fixes=("clean",), hours="12:00-13:00"), limits=TaskLimits(at_once=1)
    )
    (fix, *_) = fixes(rig.yard, "a")
    call(house.service, "fixStorageRepository", {"repositoryId": "a", "fix": fix})
    gate.await_begun()
    house.look_until(lambda: len(house.tasks()) == 2)
    house.clock.go_on(1)
    house.rest()
    assert house.ran() == [("clean", "a", "stopped"), ("clean", "a", "running")]
    gate.open.set()
    assert house.service.tasks.wait(timeout_s=60)
    house.rest()
    assert len(fixes(rig.yard, "a")) == 2


def test_a_repository_that_does_not_answer_is_tried_the_next_time(
    rig: Rig, make_house: MakeHouse, caplog: pytest.LogCaptureFixture
) -> None:
    for repo in "ab":
        doom(rig, repo, 1)
    house = make_house(Policy(repository="*", fixes=("clean",)))
    folder = Path(rig.place("a")["path"])
    shutil.move(folder, folder.with_name("away"))
    for _ in range(2):
        house.rest()
        house.clock.go_on(1)
    shutil.move(folder.with_name("away"), folder)
    assert house.ran() == [("clean", "b", "done")]
    said = [record.getMessage() for record in caplog.records if record.name == "diskyard.caretaker"]
    assert [line.startswith("repository a could not be checked") for line in said] == [True, True]
    house.rest()
    assert house.ran() == [("clean", "b", "done"), ("clean", "a", "done")]


def test_storage_that_hangs_is_noted_once_and_holds_nobody_up(
    rig: Rig, make_house: MakeHouse, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its check hangs no other begins, and the other repository is looked after."""
    for repo in "ab":
        doom(rig, repo, 2)
    house = make_house(
        Policy(repository="*", fixes=("clean",), at_most=1), limits=TaskLimits(at_once_per_repository=1)
    )
    answers, asked = threading.Event(), []
    storage = house.service.connections.get("a").storage
    original = storage.list_leftovers

    def hang() -> object:
        asked.append(1)
        with calls.noted("list", "a"):
            answers.wait(60)
        return original()

    monkeypatch.setattr(storage, "list_leftovers", hang)
    for rounds in (1, 2):
        house.look_until(partial(house.has_run, [("clean", "b", "done")] * rounds))
        house.look_until(lambda: "could not be checked" in caplog.text)
        house.clock.go_on(1)
    assert asked == [1]
    assert caplog.text.count("could not be checked") == 1
    answers.set()
    house.rest()
    assert house.ran() == [("clean", "b", "done")] * 2 + [("clean", "a", "done")]


class Failing:
    """Cleaning fails with this error, if there is one.

    :ivar tries: how often it was tried.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.error: errors.DiskyardError | None = None
        self.tries = 0
        original = fix_module("clean").clean_volume

        def clean(*words: object) -> object:
            self.tries += 1
            if self.error is not None:
                raise self.error
            return original(*words)

        patch.setattr(fix_module("clean"), "clean_volume", clean)


def tries(house: House, failing: Failing, hours: int) -> list[int]:
    """In which of so many hours, one round in each, a fix was tried."""
    found = []
    for hour in range(hours):
        before = failing.tries
        house.rest()
        house.clock.go_on(1)
        if failing.tries > before:
            found.append(hour)
    return found


def test_a_fix_that_fails_is_tried_more_and_more_seldom(
    rig: Rig, make_house: MakeHouse, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At last once a day. What asks for another try is tried in each round; another start counts anew."""
    doom(rig, "a", 1)
    (fix,) = fixes(rig.yard, "a")
    failing = Failing(monkeypatch)
    failing.error = errors.LeaseHeld("Somebody works on it.")
    house = make_house(CLEAN)
    assert tries(house, failing, 4) == [0, 1, 2, 3]
    assert house.caretaker.left_alone.counts() == {}
    failing.error = errors.ImageBroken("It is broken.")
    assert tries(house, failing, 80) == [0, 1, 2, 4, 8, 16, 32, 56]
    (left,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert fix.fix_id in left.getMessage()
    assert house.caretaker.left_alone.counts() == {("a", "clean"): 1}
    assert tries(make_house(CLEAN), failing, 1) == [0]
    failing.error = None
    house.rest()
    rig.clean_slate("a")
    assert house.caretaker.left_alone.counts() == {}


@pytest.mark.parametrize(
    "error",
    [errors.NoSpace("It is full."), errors.StorageError("QEMU."), errors.ImageInUse("A guest has it.")],
    ids=lambda error: error.code,
)
def test_what_passes_by_itself_is_tried_again_within_an_hour(
    rig: Rig, make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch, error: errors.DiskyardError
) -> None:
    doom(rig, "a", 1)
    failing = Failing(monkeypatch)
    failing.error = error
    house = make_house(Policy(repository="a", fixes=("clean",), every_s=600))
    for _ in range(24 * 6):
        house.rest()
        house.clock.go_on(1 / 6)
    failing.error = None
    house.rest()
    house.clock.go_on(1)
    house.rest()
    assert 24 <= failing.tries < 40
    rig.clean_slate("a")


def test_what_is_mended_by_others_is_left_alone_no_more(
    rig: Rig, make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    for repo in "ab":
        doom(rig, repo, 1)
    failing = Failing(monkeypatch)
    failing.error = errors.NoSpace("It is full.")
    house = make_house(Policy(repository="*", fixes=("clean",)))
    tries(house, failing, 3)
    assert house.caretaker.left_alone.counts() == {("a", "clean"): 1, ("b", "clean"): 1}
    failing.error = None
    settle(rig.yard, "a")
    call(house.service, "disconnectStorageRepository", {"repoId": "b"})
    house.rest()
    house.clock.go_on(1)
    house.rest()
    assert house.caretaker.left_alone.counts() == {}


def test_a_task_that_is_stopped_ends_its_round(rig: Rig, make_house: MakeHouse, gate: Gate) -> None:
    doom(rig, "a", 2)
    house = make_house(CLEAN, limits=TaskLimits(at_once=1))
    held, _ = fixes(rig.yard, "a")
    call(house.service, "fixStorageRepository", {"repositoryId": "a", "fix": held})
    gate.await_begun()
    house.look_until(lambda: len(house.tasks()) == 2)
    (queued,) = (task for task in house.tasks() if task.state == "queued")
    call(house.service, "stopTask", {"taskId": queued.task_id})
    house.rest()
    gate.open.set()
    assert house.service.tasks.wait(timeout_s=60)
    house.rest()
    assert sorted(state for _, _, state in house.ran()) == ["done", "stopped"]


def test_its_thread_runs_rounds_and_ends_while_storage_hangs(
    rig: Rig, make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    for repo in "ab":
        doom(rig, repo, 3)
    house = make_house(Policy(repository="*", fixes=("clean",)))
    answers = threading.Event()
    storage = house.service.connections.get("b").storage

    def hang() -> object:
        with calls.noted("list", "b"):
            answers.wait(60)
        return []

    monkeypatch.setattr(storage, "list_leftovers", hang)
    house.caretaker.start()
    wait_until(lambda: house.ran() == [("clean", "a", "done")] * 3)
    house.caretaker.stop()  # comes back though the check does not
    assert not answers.is_set()
    answers.set()
    settle(rig.yard, "b")
    rig.clean_slate("a", "b")
