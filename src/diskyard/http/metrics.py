"""The figures of a daemon in Prometheus' text format."""

from __future__ import annotations

import threading
from collections import Counter as Counts
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from diskyard import errors
from diskyard.events import Events
from diskyard.host import Clock
from diskyard.http.connections import Why
from diskyard.http.repository_figures import RepositoryFigures
from diskyard.model.options import FixType
from diskyard.model.verbs import VERBS
from diskyard.service import Service
from diskyard.version import version

UNKNOWN = "unknown"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_FIXES: tuple[str, ...] = get_args(FixType)
_TYPES = (*_FIXES, *VERBS)
_CODES = ("ok", *errors.CODES)
_UNFINISHED = ("queued", "running")
_BEHIND_MOST = 1000


class Metrics:
    """Counts what one daemon does. Safe to use from several threads.

    Tasks are counted from the service's events, when figures are requested and while requests are
    answered. If 10,000 events come and neither happens, the oldest of them are not counted.

    :param clock: for the ages of figures.
    """

    def __init__(self, service: Service, clock: Clock) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            "diskyard_requests", "Verbs answered.", ["verb", "code"], registry=self._registry
        )
        self._seconds = Histogram(
            "diskyard_request_seconds",
            "From a verb's request to its answer.",
            ["verb"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._in_progress = Gauge(
            "diskyard_requests_in_progress",
            "Requests whose answers are not made, or not read yet.",
            registry=self._registry,
        )
        self._event_streams = Gauge(
            "diskyard_event_streams", "Callers that listen to events.", registry=self._registry
        )
        self._unsent = Gauge(
            "diskyard_answer_bytes_unsent",
            "Bytes of answers that are made and not sent.",
            registry=self._registry,
        )
        build = Gauge("diskyard_build_info", "The daemon's version.", ["version"], registry=self._registry)
        build.labels(version()).set(1)
        self._tasks = _Tasks(service, self._registry)
        self._registry.register(RepositoryFigures(service, clock))
        ProcessCollector(registry=self._registry)

    def watch(
        self,
        requests_in_progress: Callable[[], int],
        event_streams: Callable[[], int],
        left_alone: Callable[[], Mapping[tuple[str, FixType], int]],
        unsent_bytes: Callable[[], int],
        refused: Callable[[], Mapping[Why, int]],
    ) -> None:
        """Functions to call for the present numbers whenever figures are requested.

        :param left_alone: fixes that the caretaker leaves alone for now, by repository and type.
        :param unsent_bytes: bytes of answers that are made and not read.
        :param refused: connections that were refused or cut so far, by reason.
        """
        self._in_progress.set_function(requests_in_progress)
        self._event_streams.set_function(event_streams)
        self._unsent.set_function(unsent_bytes)
        self._registry.register(_LeftAlone(left_alone))
        self._registry.register(_Refused(refused))

    def observe(self, verb: str, code: str, seconds: float) -> None:
        """Count a verb that was answered.

        :param code: ``ok``, or the code of the error.
        """
        verb = verb if verb in VERBS else UNKNOWN
        self._requests.labels(verb, code if code in _CODES else UNKNOWN).inc()
        self._seconds.labels(verb).observe(seconds)
        self._tasks.keep_up()

    def render(self) -> tuple[bytes, str]:
        """All figures, and their media type. This waits for no storage."""
        self._tasks.catch_up()
        return generate_latest(_WithoutTimes(self._registry)), CONTENT_TYPE_PLAIN_0_0_4


@dataclass(frozen=True, slots=True)
class _WithoutTimes(Collector):
    """A registry without the time at which each counter began, which would double the number of lines."""

    registry: CollectorRegistry

    def collect(self) -> Iterator[Metric]:
        for metric in self.registry.collect():
            metric.samples = [found for found in metric.samples if not found.name.endswith("_created")]
            yield metric


@dataclass(frozen=True, slots=True)
class _LeftAlone(Collector):
    """The fixes that failed too often. A repository without any is left out."""

    ask: Callable[[], Mapping[tuple[str, FixType], int]]

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "diskyard_caretaker_left_alone",
            "Fixes that failed three times in a row and are tried less often.",
            labels=["repository", "type"],
        )
        for (repository_id, of_type), count in sorted(self.ask().items()):
            family.add_metric([repository_id, of_type], count)
        yield family


@dataclass(frozen=True, slots=True)
class _Refused(Collector):
    """Connections that were refused, or ended against their callers' will."""

    ask: Callable[[], Mapping[Why, int]]

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "diskyard_connections_refused", "Connections refused or cut, by reason.", labels=["why"]
        )
        counts = self.ask()
        for why in get_args(Why):
            family.add_metric([why], counts.get(why, 0))
        yield family


class _Tasks(Collector):
    """Tasks of this process. Unfinished ones come from its runner, the others from events."""

    def __init__(self, service: Service, registry: CollectorRegistry) -> None:
        self._service = service
        self._events: Events = service.events
        self._seen = self._events.newest()
        self._lock = threading.Lock()
        self._moved: dict[str, tuple[str, int]] = {}  # stage and its bytes, by task id
        self._ended = Counter(
            "diskyard_tasks_ended", "Tasks that have ended.", ["type", "outcome"], registry=registry
        )
        self._bytes = Counter(
            "diskyard_bytes_moved",
            "Bytes that tasks have moved, according to their progress.",
            ["type"],
            registry=registry,
        )
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """How many tasks are waiting and running."""
        family = GaugeMetricFamily("diskyard_tasks", "Tasks that are not over.", labels=["type", "state"])
        unfinished: Counts[tuple[str, str]] = Counts(
            (_type_of(task.verb), task.state) for task in self._service.tasks.unfinished()
        )
        others = {name for name, _ in unfinished} - set(_FIXES)
        for of_type in (*_FIXES, *sorted(others)):
            for state in _UNFINISHED:
                family.add_metric([of_type, state], unfinished[of_type, state])
        yield family

    def keep_up(self) -> None:
        """Count events if many have come since the last count."""
        if self._events.newest() - self._seen > _BEHIND_MOST:
            self.catch_up()

    def catch_up(self) -> None:
        """Count the events since the last call."""
        with self._lock:
            found, self._seen, _ = self._events.after(self._seen)
            for event in found:
                if event.kind == "task":
                    self._count(event.data)

    def _count(self, task: dict[str, Any]) -> None:
        of_type, task_id, stage = _type_of(task["verb"]), task["taskId"], task["stage"]
        before_stage, before_bytes = self._moved.get(task_id, ("", 0))
        done_bytes = task["doneBytes"]
        begun_again = stage != before_stage or done_bytes < before_bytes
        self._bytes.labels(of_type).inc(done_bytes if begun_again else done_bytes - before_bytes)
        if task["state"] in _UNFINISHED:
            self._moved[task_id] = (stage, done_bytes)
        else:
            self._moved.pop(task_id, None)
            self._ended.labels(of_type, task["state"]).inc()


def _type_of(verb: str) -> str:
    return verb if verb in _TYPES else UNKNOWN
