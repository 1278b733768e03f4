"""A daemon that is killed while many callers work: what was answered is there, and nothing else is left."""

from __future__ import annotations

import random
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from diskyard.host.identity import new_uuid
from diskyard.testing.daemon_process import DaemonProcess
from diskyard.testing.effort import Effort
from diskyard.testing.world import PLACES, SIZE_BYTES, World, host_named
from tests.conftest import Tally

_CALLERS = 12
_KILLS, _KILLS_THOROUGH = 2, 40
_LIVES_S = (0.3, 2.5)
_IDLE_MOST_S = 120.0


@dataclass
class Known:
    """What the callers of one daemon know of its images.

    :ivar there: ids by what they must hold: they were answered.
    :ivar open: ids of requests that were never answered: they may be there or not.
    """

    there: dict[tuple[str, str], bytes] = field(default_factory=dict)
    open: dict[tuple[str, str], bytes] = field(default_factory=dict)
    answered: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Caller(threading.Thread):
    """Makes disks, snapshots and copies, and removes some, until nobody answers."""

    def __init__(self, daemon: DaemonProcess, world: World, known: Known, rng: random.Random) -> None:
        super().__init__()
        self._daemon, self._world, self._known, self._random = daemon, world, known, rng
        self._mine: dict[tuple[str, str], bytes] = {}
        self.wrong: Exception | None = None

    def run(self) -> None:
        try:
            with self._daemon.client() as client:
                while True:
                    self._random.choice(
                        [self._create, self._create, self._snapshot, self._copy, self._remove]
                    )(client)
        except httpx.TransportError:
            return
        except Exception as error:  # noqa: BLE001 - raised again by who started this
            self.wrong = error

    def _make(self, client: httpx.Client, verb: str, place: str, data: bytes, **words: object) -> None:
        key = (place, new_uuid())
        with self._known.lock:
            self._known.open[key] = data
        asked = {"targetRepoId": place, **words, "options": {"newImageId": key[1]}}
        if self._post(client, verb, asked):
            with self._known.lock:
                self._known.there[key] = self._known.open.pop(key)
            self._mine[key] = data

    def _post(self, client: httpx.Client, verb: str, asked: dict[str, object]) -> bool:
        answer = client.post(f"/v1/{verb}", json=asked)
        if answer.status_code == 200:
            self._known.answered += 1
            return True
        code = answer.json()["code"]
        assert code in ("LeaseHeld", "ImageBroken", "TooManyRequests"), answer.text
        return False

    def _create(self, client: httpx.Client) -> None:
        base = self._random.choice(["s1", "s2"])
        data = self._world.images["a", self._world.names[base]]
        words = {"size": SIZE_BYTES, "baseSnapshotId": self._world.names[base]}
        self._make(client, "createVirtualDisk", "a", data, **words)

    def _snapshot(self, client: httpx.Client) -> None:
        disk = self._world.names["d"]
        self._make(client, "createSnapshot", "a", self._world.images["a", disk], baseVirtualDiskId=disk)

    def _copy(self, client: httpx.Client) -> None:
        disk = self._world.names["d"]
        self._make(client, "copyImage", "b", self._world.images["a", disk], imageId=disk)

    def _remove(self, client: httpx.Client) -> None:
        if not self._mine:
            return
        key = self._random.choice(list(self._mine))
        data = self._mine.pop(key)
        with self._known.lock:
            self._known.open[key] = self._known.there.pop(key)
        if self._post(client, "removeImage", {"repositoryId": key[0], "imageId": key[1]}):
            with self._known.lock:
                del self._known.open[key]
        else:
            with self._known.lock:
                self._known.there[key] = self._known.open.pop(key)
            self._mine[key] = data


def settle(world: World, known: Known, order: random.Random) -> None:
    """Other hosts fix what is left, and all must be right."""
    hosts = [world.service(host_named(name)) for name in ("survivor", "other-survivor")]
    world.fix_all(hosts, order)
    world.images.update(known.there)
    for (place, image_id), data in known.open.items():
        image = hosts[0].connections.get(place).state().images.get(image_id)
        if image is not None and image.is_strong:
            world.images[place, image_id] = data
    world.judge(hosts[1])
    for host in hosts:
        host.close()


def kills(effort: Effort) -> int:
    return _KILLS_THOROUGH if effort.thorough else _KILLS


# httpcore leaves the socket of a connection that is refused to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("resume", [False, True])
def test_killed_in_the_middle(resume: bool, short_folder: Path, effort: Effort, tally: Tally) -> None:
    tally("daemon")
    order = effort.random("killed daemon", resume)
    for number in range(kills(effort)):
        folder = short_folder / str(number)
        world = World(folder)
        world.create()
        builder = world.service(host_named("builder"))
        world.chain(builder, "a")
        builder.close()
        known = Known()
        daemon = DaemonProcess(folder / "d", {"tasks": {"resume": resume}})
        with daemon:
            for place in PLACES:
                asked = {"repoFormat": world.format, "connectionParameters": world.parameters(place)}
                daemon.call("connectStorageRepository", repoId=place, **asked)
            callers = [
                Caller(daemon, world, known, random.Random(order.getrandbits(64))) for _ in range(_CALLERS)
            ]
            for caller in callers:
                caller.start()
            time.sleep(order.uniform(*_LIVES_S))
            daemon.stop(signal.SIGKILL)
            for caller in callers:
                caller.join()
                if caller.wrong is not None:
                    raise caller.wrong
            if resume:  # the next daemon goes on by itself, and ends in order
                daemon.start()
                wait_until_idle(daemon)
                assert daemon.stop() == 0
        settle(world, known, order)
        tally("daemon", kills=1, answered=known.answered, never_answered=len(known.open))


def wait_until_idle(daemon: DaemonProcess) -> None:
    deadline_s = time.monotonic() + _IDLE_MOST_S
    while any(task["state"] in ("queued", "running") for task in daemon.call("listTasks")):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
