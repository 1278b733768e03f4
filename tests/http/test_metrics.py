"""Figures: what they count, and that asking for them never waits for storage."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as replace_fields
from prometheus_client.parser import text_string_to_metric_families

from diskyard.events import KEPT
from diskyard.host import Clock, Files, Host
from diskyard.http import repository_figures
from diskyard.http.connections import Why
from diskyard.http.metrics import Metrics
from diskyard.model.chains import Chains
from diskyard.model.options import FixType
from diskyard.model.results import Task
from diskyard.service import Service, call
from diskyard.tasks.runner import Job
from diskyard.tasks.watcher import TaskWatcher
from diskyard.version import version

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"


class SetClock(Clock):
    """A clock that a test sets."""

    at_s = 1000.0

    def monotonic_s(self) -> float:
        return self.at_s


class CountedFiles(Files):
    """Files that count the calls of one folder, and can stop answering.

    :ivar answers: cleared while they do not.
    """

    folder = "/nowhere"

    def __init__(self, host: Host) -> None:
        super().__init__(host.identity)
        self.calls: list[str] = []
        self.answers = threading.Event()
        self.answers.set()

    def passing(self, name: str, words: tuple[object, ...], do: Callable[[], Any]) -> Any:
        def counted() -> Any:
            if words and str(words[0]).startswith(self.folder):
                self.calls.append(name)
                self.answers.wait()
            return do()

        return super().passing(name, words, counted)


class Rig:
    """A service with one repository, and its figures."""

    def __init__(self, folder: Path, repo_id: str = "fast") -> None:
        real = Host.real()
        self.files, self.clock, self.repo_id = CountedFiles(real), SetClock(), repo_id
        host = replace(real, files=self.files)
        self.service = Service(host, str(folder / "state"), storage_timeout_s=1.0)
        self.metrics = Metrics(self.service, self.clock)
        place = {"path": str(folder / "place")}
        (folder / "place").mkdir()
        self.call("createStorageRepository", repoFormat="localfs-1.0", connectionParameters=place)
        self.call(
            "connectStorageRepository", repoId=repo_id, repoFormat="localfs-1.0", connectionParameters=place
        )
        self.files.folder = place["path"]

    def call(self, verb: str, **parameters: object) -> Any:
        return call(self.service, verb, parameters)

    def disk(self) -> str:
        return str(self.call("createVirtualDisk", targetRepoId=self.repo_id, size=1 << 20))

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        data, media_type = self.metrics.render()
        assert media_type == "text/plain; version=0.0.4; charset=utf-8"
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(data.decode())
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples().get((name, frozenset(labels.items())))

    def of_repository(self, name: str, **labels: str) -> float | None:
        return self.value(name, repository=self.repo_id, **labels)

    def until(self, name: str, value: float) -> None:
        """Ask for figures until one of the repository's has a value."""
        patience = threading.Event()
        for _ in range(3000):
            if self.of_repository(name) == value:
                return
            patience.wait(0.01)
        raise AssertionError(self.samples())

    def until_read(self) -> None:
        """Ask for figures until they are of now, by the clock that stands still."""
        self.until("diskyard_repository_figures_age_seconds", 0.0)


@pytest.fixture
def rig(quick_folder: Path) -> Iterator[Rig]:
    made = Rig(quick_folder)
    yield made
    made.files.answers.set()
    made.service.close()


def test_what_the_caretaker_leaves_alone(rig: Rig) -> None:
    left: Counter[tuple[str, FixType]] = Counter()
    rig.metrics.watch(lambda: 0, lambda: 0, lambda: left, lambda: 0, dict)
    gauge = "diskyard_caretaker_left_alone"
    assert rig.of_repository(gauge, type="mend") is None
    left[rig.repo_id, "mend"] += 2
    assert rig.of_repository(gauge, type="mend") == 2
    left.clear()
    assert rig.of_repository(gauge, type="mend") is None


# -- verbs -----------------------------------------------------------------------------------


def test_verbs_are_counted_by_how_they_ended(rig: Rig) -> None:
    for code in ("ok", "ok", "ImageNotFound"):
        rig.metrics.observe("removeImage", code, 0.02)
    count = "diskyard_requests_total"
    assert rig.value(count, verb="removeImage", code="ok") == 2
    assert rig.value(count, verb="removeImage", code="ImageNotFound") == 1
    seconds = "diskyard_request_seconds"
    assert rig.value(f"{seconds}_count", verb="removeImage") == 3
    assert rig.value(f"{seconds}_bucket", verb="removeImage", le="0.01") == 0
    assert rig.value(f"{seconds}_bucket", verb="removeImage", le="0.025") == 3


def test_what_callers_send_makes_no_label(rig: Rig) -> None:
    for number in range(100):
        rig.metrics.observe(f"verb{number}", f"Code{number}", 0.1)
        rig.service.events.tell("task", "fast", task(verb=f"verb{number}", task_id=str(number)))
    assert rig.value("diskyard_requests_total", verb="unknown", code="unknown") == 100
    assert rig.value("diskyard_tasks_ended_total", type="unknown", outcome="done") == 100
    assert not any("verb1" in str(labels) for _, labels in rig.samples())


def test_each_has_figures_of_its_own(rig: Rig) -> None:
    other = Metrics(rig.service, rig.clock)
    rig.metrics.observe("listImages", "ok", 0.1)
    assert b'verb="listImages"' in rig.metrics.render()[0]
    assert b'verb="listImages"' not in other.render()[0]


def test_what_is_under_way_is_asked_for(rig: Rig) -> None:
    refused: dict[Why, int] = {"unread": 2}
    rig.metrics.watch(lambda: 7, lambda: 3, dict, lambda: 4096, lambda: refused)
    assert rig.value("diskyard_requests_in_progress") == 7
    assert rig.value("diskyard_event_streams") == 3
    assert rig.value("diskyard_answer_bytes_unsent") == 4096
    assert rig.value("diskyard_connections_refused_total", why="unread") == 2
    assert rig.value("diskyard_connections_refused_total", why="all") == 0
    assert rig.value("diskyard_build_info", version=version()) == 1
    memory = rig.value("process_resident_memory_bytes")
    assert memory is not None
    assert memory > 1 << 20


# -- tasks -----------------------------------------------------------------------------------


def task(**changes: Any) -> Task:
    some = Task(task_id="t", verb="merge", repository_id="fast", image_id=None, state="done")
    return replace_fields(some, **changes)


def test_tasks_are_counted_when_they_end(rig: Rig) -> None:
    for state in ("queued", "running", "running", "done"):
        rig.service.events.tell("task", "fast", task(state=state))
    rig.service.events.tell("task", "fast", task(task_id="u", verb="clean", state="failed"))
    rig.service.events.tell("image", "fast", {"imageId": "x"})
    for _ in range(2):
        assert rig.value("diskyard_tasks_ended_total", type="merge", outcome="done") == 1
        assert rig.value("diskyard_tasks_ended_total", type="clean", outcome="failed") == 1
    assert not any("_created" in name for name, _ in rig.samples())


def test_bytes_are_counted_once_in_each_stage(rig: Rig) -> None:
    def tell(state: str, stage: str, done_bytes: int) -> None:
        rig.service.events.tell("task", "fast", task(state=state, stage=stage, done_bytes=done_bytes))

    tell("queued", "", 0)
    tell("running", "1/2", 100)
    tell("running", "1/2", 250)
    assert rig.value("diskyard_bytes_moved_total", type="merge") == 250
    tell("running", "2/2", 400)
    tell("done", "2/2", 500)
    assert rig.value("diskyard_bytes_moved_total", type="merge") == 750
    tell("running", "1/2", 50)  # the next one
    tell("stopped", "1/2", 50)
    assert rig.value("diskyard_bytes_moved_total", type="merge") == 800


def test_many_events_between_two_scrapes_are_all_counted(rig: Rig) -> None:
    for number in range(2 * KEPT):
        rig.service.events.tell("task", "fast", task(task_id=str(number)))
        if number % 100 == 0:
            rig.metrics.observe("getTask", "ok", 0.001)
    assert rig.value("diskyard_tasks_ended_total", type="merge", outcome="done") == 2 * KEPT


def test_tasks_that_are_not_over(rig: Rig) -> None:
    end = threading.Event()

    def run(watcher: TaskWatcher) -> bool:
        return end.wait()

    rig.service.tasks.start([Job("optimize", "fast", None, run)] * 3)
    gauge = "diskyard_tasks"
    try:
        assert rig.value(gauge, type="clean", state="running") == 0
        samples = rig.samples()  # once: a task that begins between two looks would be seen as both
        labels = ({"type": "optimize", "state": state} for state in ("queued", "running"))
        assert sum(samples.get((gauge, frozenset(of.items())), 0) for of in labels) == 3
    finally:
        end.set()
    rig.service.tasks.wait()
    assert rig.value(gauge, type="optimize", state="queued") == 0


# -- repositories ------------------------------------------------------------------------------


def test_the_figures_of_a_repository(rig: Rig) -> None:
    disk = rig.disk()
    rig.call("createSnapshot", targetRepoId="fast", baseVirtualDiskId=disk)
    rig.until_read()
    (info,) = rig.call("listStorageRepositories")
    for name in ("capacity", "used", "provisioned", "reclaimable"):
        assert rig.of_repository(f"diskyard_repository_{name}_bytes") == info[f"{name}Bytes"], name
    assert rig.of_repository("diskyard_repository_free_bytes") is not None
    assert rig.of_repository("diskyard_repository_up") == 1
    for kind, status, count in (
        ("virtual_disk", "optimized", 1),
        ("snapshot", "optimized", 1),
        ("snapshot", "broken", 0),
    ):
        assert rig.of_repository("diskyard_images", kind=kind, status=status) == count


def test_storage_is_asked_when_figures_are_and_not_more_than_every_15_s(rig: Rig) -> None:
    rig.files.calls.clear()
    rig.metrics.observe("listImages", "ok", 0.1)
    assert rig.files.calls == []
    rig.until_read()
    assert rig.files.calls
    rig.files.calls.clear()
    rig.clock.at_s += 14.9
    for _ in range(5):
        assert rig.of_repository("diskyard_repository_figures_age_seconds") == pytest.approx(14.9)
    assert rig.files.calls == []
    rig.clock.at_s += 0.1
    rig.until_read()
    assert rig.files.calls


def test_a_reading_that_takes_long_is_not_repeated_soon(rig: Rig) -> None:
    rig.files.answers.clear()
    rig.samples()
    rig.clock.at_s += 10
    rig.files.answers.set()
    rig.until_read()
    rig.clock.at_s += 180
    assert rig.of_repository("diskyard_repository_figures_age_seconds") == 180
    rig.clock.at_s += 20
    rig.until_read()


def test_storage_that_hangs_keeps_no_scrape_and_one_thread(rig: Rig) -> None:
    rig.disk()
    rig.until_read()
    used = rig.of_repository("diskyard_repository_used_bytes")
    rig.clock.at_s += 60
    rig.files.answers.clear()
    rig.files.calls.clear()
    for _ in range(50):
        rig.samples()
        rig.clock.at_s += 60
    rig.until("diskyard_repository_up", 0)
    assert len(rig.files.calls) == 1
    assert rig.of_repository("diskyard_repository_used_bytes") == used
    assert rig.of_repository("diskyard_repository_figures_age_seconds") == 51 * 60
    rig.files.answers.set()
    rig.until("diskyard_repository_up", 1)
    rig.clock.at_s += 300
    rig.until_read()


def test_a_repository_that_is_gone(rig: Rig, quick_folder: Path) -> None:
    (quick_folder / "place").rename(quick_folder / "away")
    rig.until("diskyard_repository_up", 0)
    assert rig.of_repository("diskyard_repository_used_bytes") is None
    (quick_folder / "away").rename(quick_folder / "place")
    rig.clock.at_s += 15
    rig.until_read()
    rig.call("disconnectStorageRepository", repoId="fast")
    assert not any("repository" in dict(labels) for _, labels in rig.samples())


def test_images_are_counted_again_only_when_the_log_has_moved(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[str] = []

    class Counted(Chains):
        def status(self, image: Any, *more: Any) -> Any:
            judged.append(image.id)
            return super().status(image, *more)

    monkeypatch.setattr(repository_figures, "Chains", Counted)
    first = rig.disk()
    rig.until_read()
    assert judged == [first]
    for _ in range(3):
        rig.clock.at_s += 15
        rig.until_read()
    assert judged == [first]
    second = rig.disk()
    rig.clock.at_s += 15
    rig.until_read()
    assert sorted(judged[1:]) == sorted((first, second))
    assert rig.of_repository("diskyard_images", kind="virtual_disk", status="optimized") == 2


def test_a_repo_id_may_be_any_text(quick_folder: Path) -> None:
    rig = Rig(quick_folder, repo_id='a"b\\c{d="é"}, e')
    rig.until_read()
    assert rig.of_repository("diskyard_repository_up") == 1
    rig.service.close()


def test_a_defect_in_a_reading_is_told(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*words: object) -> None:
        raise LookupError("a defect")

    monkeypatch.setattr(repository_figures, "repository_info", fail)
    rig.until("diskyard_repository_up", 0)
    assert "a defect" in caplog.text


# -- the dashboard ---------------------------------------------------------------------------------


def test_the_dashboard_shows_what_there_is(rig: Rig) -> None:
    text = rig.metrics.render()[0].decode()
    families = dict(re.findall(r"(?m)^# TYPE (\S+) (\S+)$", text))
    there = set(families)
    for name, kind in families.items():
        if kind == "histogram":
            there |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    dashboard = json.loads((PACKAGING / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    queries += [found["definition"] for found in dashboard["templating"]["list"] if "definition" in found]
    used = {name for query in queries for name in re.findall(r"\b(?:diskyard|process)_\w+", query)}
    assert used - there == set()
    assert {name for name in families if name.startswith("diskyard_")} - {
        found for name in used for found in (name, re.sub("_(bucket|sum|count)$", "", name))
    } == set()  # and each of ours is shown
