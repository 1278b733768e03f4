"""How often a verb or fix calls storage. On remote storage, each such call is a round trip.

All calls for a repository's directory pass the host's door to the files, and are counted there by kind.
Reading the log up to its newest entry (a refresh) is counted at the log. Nothing is timed, so that
the same work gives the same counts on every machine.
"""

from __future__ import annotations

import collections
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from diskyard.fixes.runner import run_fix
from diskyard.host import Clock, Commands, Files, Host, HostIdentity
from diskyard.log.log import Log
from diskyard.model.state import State
from diskyard.service import Service
from diskyard.storage.localfs import layout
from diskyard.testing.fault_injection import path_of
from diskyard.testing.faults import STEPS
from diskyard.testing.held_locks import locks_held, watched_locks
from diskyard.testing.scenarios import SCENARIOS, shapes
from diskyard.testing.scenarios.base import Act, Scenario, same, verb
from diskyard.testing.scenarios.more import connect, create_and_remove
from diskyard.testing.scenarios.operations import DISK_IN_A, ON_REPOSITORIES, prepared
from diskyard.testing.world import PLACES, World

R = TypeVar("R")
_READS = frozenset(("read", "read_at", "read_beginning", "read_open"))
_LISTINGS = frozenset(("list", "names"))
#: Calls that move volumes' bytes: their number depends on the file system, and on the bytes' length.
_OF_BYTES = frozenset(
    (
        "begin_write_out", "end_write_out", "next_data", "physical_extents", "read_cached", "read_each",
        "read_into", "reads_past_cache", "will_need",
    )
)  # fmt: skip
_SYNCS = frozenset(("sync", "sync_folder"))
_OF_LOG = frozenset((layout.LOG, layout.CHECKPOINTS))
_TASKS_END_S = 120.0
_HOST = "counting"
_PLACES = frozenset((*PLACES, "c"))
_RUN_FIX = "diskyard.testing.scenarios.base.run_fix"


@dataclass(frozen=True, slots=True)
class RoundTrips:
    """The calls of one verb or fix to all repositories.

    :param entries: entries that were put into logs.
    :param refreshes: how often the newest state of a log was read.
    :param log_reads: reads of the log's files; each entry and checkpoint has two.
    :param log_listings: listings of the log's directories.
    :param volume_listings: listings of the directory of volumes.
    :param looks: all other calls that change nothing.
    :param writes: all calls that change something, except syncs.
    """

    entries: int = 0
    refreshes: int = 0
    log_reads: int = 0
    log_listings: int = 0
    volume_listings: int = 0
    looks: int = 0
    writes: int = 0
    syncs: int = 0

    def __add__(self, other: RoundTrips) -> RoundTrips:
        """The sums of all fields."""
        return RoundTrips(*map(sum, zip(astuple(self), astuple(other), strict=True)))


#: The kinds of calls that are counted, in the order of :class:`RoundTrips`.
KINDS = tuple(field.name for field in fields(RoundTrips))


class PatientClock(Clock):
    """Time passes only for threads that sleep, so that periodic work is as frequent on a slow machine."""

    def __init__(self) -> None:
        self._now_s = 1_000_000.0

    def monotonic_s(self) -> float:
        """The seconds that were slept."""
        return self._now_s

    def sleep(self, duration_s: float) -> None:
        """Wait, while time passes elsewhere too."""
        self._now_s += duration_s
        super().sleep(duration_s)


class NoReflinks(Files):
    """Files of a file system that cannot share blocks, so that the same is done on all file systems."""

    def clone(self, source_fd: int, target_fd: int) -> None:
        """See :meth:`Files.clone`. It fails as on such a file system."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


class CountingFiles(NoReflinks):
    """Files whose calls are counted, and take longer if that is wanted.

    :param folder: calls for files below it are counted, except those that move volumes' bytes.
    :param latency_s: how much longer each of them takes.
    :ivar under_locks: which calls for repositories were made under a lock, and where that was made.
    """

    def __init__(self, host: HostIdentity, folder: str, latency_s: float = 0.0) -> None:
        super().__init__(host)
        self._folder = f"{folder}/"
        self._latency_s = latency_s
        self._lock = threading.Lock()
        self._calls: list[tuple[str, str]] = []
        self.under_locks: set[str] = set()

    def passing(self, name: str, words: tuple[object, ...], do: Callable[[], R]) -> R:
        """See :meth:`Files.passing`."""
        path = path_of(words)
        if path.startswith(self._folder) and name not in _OF_BYTES:
            below = path.removeprefix(self._folder)
            if below.split("/")[0] in _PLACES:
                self.under_locks.update(f"{name} under {where}" for where in locks_held())
            with self._lock:
                self._calls.append((name, below))
            if self._latency_s:
                time.sleep(self._latency_s)
        return super().passing(name, words, do)

    def begin(self) -> None:
        """Begin to count."""
        with self._lock:
            self._calls.clear()

    def counted(self) -> RoundTrips:
        """The calls for the repositories in the directory. It contains other things too."""
        with self._lock:
            paths = [(name, path.split("/")) for name, path in self._calls]
        calls = (_of_call(name, *path[1:2]) for name, path in paths if path[0] in _PLACES)
        return sum(calls, RoundTrips())


def _of_call(name: str, inside: str = "") -> RoundTrips:
    if name in _SYNCS:
        return RoundTrips(syncs=1)
    if name in STEPS:
        return RoundTrips(writes=1)
    if name in _READS and inside in _OF_LOG:
        return RoundTrips(log_reads=1)
    if name in _LISTINGS and inside in _OF_LOG:
        return RoundTrips(log_listings=1)
    if name in _LISTINGS and inside == layout.VOLUMES:
        return RoundTrips(volume_listings=1)
    return RoundTrips(looks=1)


def _identity(name: str) -> HostIdentity:
    real = Host.real().identity
    return HostIdentity(name, real.machine_id, real.boot_id)


def _host(name: str) -> Host:
    identity = _identity(name)
    return Host(identity, NoReflinks(identity), Commands(), Clock())


class Counter:
    """Counts one host's calls to repositories.

    :param folder: the directory of the repositories.
    :param latency_s: how much longer each call takes.
    """

    def __init__(self, folder: str, *, latency_s: float = 0.0) -> None:
        identity = _identity(_HOST)
        self._files = CountingFiles(identity, folder, latency_s)
        self.host = Host(identity, self._files, Commands(), Clock() if latency_s else PatientClock())
        self._refreshes: collections.Counter[Log] = collections.Counter()
        self._entries: collections.Counter[Log] = collections.Counter()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """A context that counts the calls of all threads. There must be no other host in this process."""
        refresh, publish = Log.refresh, Log.publish

        def refreshing(log: Log) -> State:
            self._refreshes[log] += 1
            return refresh(log)

        def publishing(log: Log, *words: Any, **more: Any) -> State | None:
            after = publish(log, *words, **more)
            self._entries[log] += after is not None
            return after

        with mock.patch.multiple(Log, refresh=refreshing, publish=publishing):
            self.begin()
            yield

    def begin(self) -> None:
        """Forget all counts."""
        self._refreshes.clear()
        self._entries.clear()
        self._files.begin()

    def counted(self) -> RoundTrips:
        """The calls to all repositories."""
        entries, refreshes = sum(self._entries.values()), sum(self._refreshes.values())
        return replace(self._files.counted(), entries=entries, refreshes=refreshes)

    def under_locks(self) -> set[str]:
        """Which calls were made by a thread that held a lock of this process, and where the lock was made."""
        return self._files.under_locks

    def most_above(self) -> int:
        """By how much refreshes exceed entries, in the repository where that is most."""
        return max((count - self._entries[log] for log, count in self._refreshes.items()), default=0)


def count(scenario: Scenario, world: World) -> Counter:
    """The calls of a scenario that is run once in a prepared world; of a fix, without the check."""
    counter = Counter(str(world.folder))

    def begin_and_run(*words: Any, **more: Any) -> bool:
        counter.begin()
        return run_fix(*words, **more)

    with watched_locks():
        service = world.service(counter.host)
        with counter.counting(), mock.patch(_RUN_FIX, begin_and_run):
            scenario.act(world, service)
            assert service.tasks.wait(timeout_s=_TASKS_END_S), "what was started does not end"
        service.close()
    return counter


class Worlds:
    """Worlds that are prepared for cases. Each kind is made once, and copied for each case.

    :param folder: the directory in which they are made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._prepared: dict[Act, World] = {}
        self._copies = 0

    def ready_for(self, scenario: Scenario) -> World:
        """A world for one case."""
        if scenario.prepare not in self._prepared:
            world = World(self._folder / f"prepared-{len(self._prepared)}")
            world.create()
            builder = world.service(_host("builder"))
            scenario.prepare(world, builder)
            builder.close()
            self._prepared[scenario.prepare] = world
        self._copies += 1
        return self._prepared[scenario.prepare].copied(self._folder / f"copy-{self._copies}")


def _prepared_here(world: World, service: Service) -> None:
    """A disk that is attached on the host that counts."""
    here = world.service(_host(_HOST))
    prepared(world, here)
    here.close()


#: The cases: each verb, alone or with what follows from it, and each fix.
CASES = [
    *(scenario for scenario in SCENARIOS if not scenario.is_slow),
    *ON_REPOSITORIES[:1],
    Scenario("create and remove repository", shapes.chain, create_and_remove, same),
    Scenario("tear down", _prepared_here, verb("teardownImage", **DISK_IN_A), same),
    # The end of serving is not counted: it is a matter of time how soon the server's locks are gone.
    Scenario(
        "prepare and serve", shapes.chain, verb("prepareImage", **DISK_IN_A, options={"serve": "nbd"}), same,
    ),
    Scenario(
        "remove disk and its clean", shapes.lone, verb("removeImage", **DISK_IN_A), same,
    ),
    Scenario(
        "copy disk and its mend", shapes.chain, verb("copyImage", targetRepoId="b", imageId="@d"), same,
    ),
    Scenario(
        "copy snapshot and its mend", shapes.chain, verb("copyImage", targetRepoId="b", imageId="@s2"), same,
    ),
    Scenario("connect", shapes.chain, connect, same),
    Scenario("list repositories", shapes.chain, verb("listStorageRepositories"), same),
    Scenario("list images", shapes.chain, verb("listImages", repositoryId="a"), same),
    Scenario("image status", shapes.chain, verb("getImageStatus", **DISK_IN_A), same),
    Scenario("image info", shapes.chain, verb("getImageInfo", **DISK_IN_A), same),
    Scenario("check", shapes.chain, verb("checkStorageRepository", repositoryId="a"), same),
    Scenario(
        "check deep", shapes.chain,
        verb("checkStorageRepository", repositoryId="a", options={"deep": True}), same,
    ),
]  # fmt: skip

# -- the table of docs/performance.md ----------------------------------------------------------

HEADING = "| case | " + " | ".join(kind.replace("_", " ") for kind in KINDS) + " |"
"""How the table of all cases begins. A cell has what was counted, or that and before it what was once."""
_BEFORE = " → "


def table_of(text: str) -> dict[str, tuple[list[int], RoundTrips]]:
    """The counts in a document's table for each case: those from before, and the present ones."""
    lines = iter(text.partition(HEADING)[2].splitlines()[2:])
    found = {}
    for line in lines:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        numbers = [[int(number) for number in cell.split(_BEFORE)] for cell in cells]
        found[name] = [of[0] for of in numbers], RoundTrips(*(of[-1] for of in numbers))
    return found


def row_of(name: str, before: list[int], now: RoundTrips) -> str:
    """One line of the table."""
    cells = (
        str(new) if old == new else f"{old}{_BEFORE}{new}"
        for old, new in zip(before, astuple(now), strict=True)
    )
    return f"| {name} | " + " | ".join(cells) + " |"
