"""Figures of repositories for metrics: read in the background, since storage may hang.

Nothing is read unless a caller requests figures, and that caller gets those of the last reading.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import get_args

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from diskyard import errors
from diskyard.host import Clock
from diskyard.host.supervise import Running
from diskyard.model.capabilities import Capabilities
from diskyard.model.chains import Chains
from diskyard.model.records import ImageKind
from diskyard.model.results import RepositoryInfo
from diskyard.model.state import State
from diskyard.model.status import Status
from diskyard.queries import repository_info
from diskyard.service import Service

_log = logging.getLogger("diskyard.http")
_EVERY_S = 15.0
_BUSY_SHARE = 20  # from one reading to the next it takes at least so many times as long as a reading took
_EVERY_MOST_S = 300.0
_KINDS: tuple[str, ...] = get_args(ImageKind)
_STATUSES: tuple[str, ...] = get_args(Status)
_SIZES = {
    "capacity": "Bytes that the storage can hold.",
    "used": "Bytes of the repository's volumes and temporary files.",
    "free": "Bytes that are free on the storage.",
    "provisioned": "The sizes of all images together, in bytes.",
    "reclaimable": "Bytes that clean fixes would free now.",
}
Counts = Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class _Reading:
    """The last reading of a repository.

    :param log_at: marker, version and nonce of the state that was counted.
    """

    info: RepositoryInfo
    counts: Counts
    log_at: tuple[str, int, str]
    read_s: float


@dataclass(slots=True)
class _Place:
    """A repository, and the reading of it that is under way.

    :ivar up: whether the last reading that ended was successful; None before the first.
    """

    reading: _Reading | None = None
    up: bool | None = None
    begun_s: float = 0.0
    next_s: float = 0.0
    running: Running | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class RepositoryFigures(Collector):
    """The figures of every connected repository.

    At most one reading of each repository is under way, and at most one begins in 15 seconds. If a reading
    takes long, they are less frequent, but at least one begins every five minutes.
    """

    def __init__(self, service: Service, clock: Clock) -> None:
        self._service = service
        self._clock = clock
        self._places: dict[str, _Place] = {}
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """The figures of the last readings. This also begins the readings that are due."""
        known = self._service.connections.remembered()
        with self._lock:
            for gone in self._places.keys() - known.keys():
                del self._places[gone]
            places = {repo_id: self._places.setdefault(repo_id, _Place()) for repo_id in known}
        for repo_id, place in places.items():
            self._begin(repo_id, place)
        yield from self._sizes(places)
        yield self._up(places)
        yield self._age(places)
        yield self._images(places)

    # -- reading ------------------------------------------------------------------------------

    def _begin(self, repo_id: str, place: _Place) -> None:
        now_s = self._clock.monotonic_s()
        with place.lock:
            if place.running is not None or now_s < place.next_s:
                return
            place.begun_s = now_s
            place.running = self._service.supervisor.begin(
                partial(self._read, repo_id, place), partial(self._end, place)
            )

    def _read(self, repo_id: str, place: _Place) -> None:
        try:
            place.reading = self._look(repo_id, place.reading)
        except (errors.DiskyardError, OSError):
            place.up = False  # listStorageRepositories reports the reason
        except Exception:  # noqa: BLE001 - the last resort of a background thread, and reported
            place.up = False
            _log.exception("the figures of %s cannot be read", repo_id)
        else:
            place.up = True

    def _look(self, repo_id: str, before: _Reading | None) -> _Reading:
        repo = self._service.connections.get(repo_id)
        info = repository_info(repo, repo_id, {})
        state = repo.state()
        log_at = (state.marker, state.version, state.nonce)
        if before is not None and before.log_at == log_at:
            counts = before.counts
        else:
            counts = _count(state, repo.storage.capabilities)
        return _Reading(info, counts, log_at, self._clock.monotonic_s())

    def _end(self, place: _Place) -> None:
        with place.lock:
            took_s = self._clock.monotonic_s() - place.begun_s
            place.next_s = place.begun_s + min(max(_EVERY_S, took_s * _BUSY_SHARE), _EVERY_MOST_S)
            place.running = None

    # -- reporting ----------------------------------------------------------------------------

    def _sizes(self, places: Mapping[str, _Place]) -> Iterator[Metric]:
        for name, words in _SIZES.items():
            family = GaugeMetricFamily(f"diskyard_repository_{name}_bytes", words, labels=["repository"])
            for repo_id, place in places.items():
                if place.reading is not None:
                    size_bytes = getattr(place.reading.info, f"{name}_bytes")
                    family.add_metric([repo_id], size_bytes)
            yield family

    def _up(self, places: Mapping[str, _Place]) -> Metric:
        family = GaugeMetricFamily(
            "diskyard_repository_up", "Whether the repository's storage answers.", labels=["repository"]
        )
        for repo_id, place in places.items():
            up = place.up
            if _is_silent(place.running):
                up = False
            if up is not None:
                family.add_metric([repo_id], float(up))
        return family

    def _age(self, places: Mapping[str, _Place]) -> Metric:
        family = GaugeMetricFamily(
            "diskyard_repository_figures_age_seconds",
            "How long ago the repository's figures were read.",
            labels=["repository"],
        )
        now_s = self._clock.monotonic_s()
        for repo_id, place in places.items():
            if place.reading is not None:
                family.add_metric([repo_id], now_s - place.reading.read_s)
        return family

    def _images(self, places: Mapping[str, _Place]) -> Metric:
        labels = ["repository", "kind", "status"]
        family = GaugeMetricFamily(
            "diskyard_images", "Images, by what the repository's log says of them.", labels=labels
        )
        for repo_id, place in places.items():
            if place.reading is not None:
                for kind, status in product(_KINDS, _STATUSES):
                    count = place.reading.counts.get((kind, status), 0)
                    family.add_metric([repo_id, kind, status], count)
        return family


def _count(state: State, capabilities: Capabilities) -> Counts:
    """Images by kind and status; volumes are not examined, because there may be very many."""
    state = state.whole()
    chains = Chains(state)
    return Counter(
        (image.kind, chains.status(image, capabilities)) for image in state.images.values() if image.is_strong
    )


def _is_silent(running: Running | None) -> bool:
    """Whether a reading waits for storage that should have answered by now."""
    if running is None:
        return False
    try:
        running.require_answering()
    except errors.RepositoryUnavailable:
        return True
    return False
