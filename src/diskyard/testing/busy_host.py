"""Threads of several processes use the same few images: what each requested, and the results.

Only the reports at the end are judged: everything must come to an end, every error must be one that
others may cause, and nothing that was answered may be lost.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from diskyard import errors
from diskyard.host.identity import new_uuid
from diskyard.log.codec import decode
from diskyard.model.transaction import Entry
from diskyard.service import Service, call
from diskyard.testing.forking import FORKING
from diskyard.testing.world import KIB, World, host_named

WAITS = {"ImageBroken", "ImageInUse", "LeaseHeld"}
#: Errors that others who use the same images may cause.
EXPECTED = WAITS | {"RevisionMismatch", "InvalidParameter", "ImageNotFound"}
STACKS_TIMEOUT_S = 2.0


@dataclass
class Told:
    """What one process requested, and the results.

    :ivar operations: how many verbs were called.
    :ivar codes: of the errors, with how often each was raised.
    :ivar unexpected: errors that nothing here may cause.
    :ivar made: ids of acknowledged images, by repository and by the hot disk whose bytes they have.
    :ivar removed: those of them that were removed again.
    :ivar increments: of the counter in the first hot disk's userData.
    :ivar user_data: acknowledged values of the second hot disk's userData, in each thread's order.
    """

    operations: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    made: list[tuple[str, str, str]] = field(default_factory=list)
    removed: list[tuple[str, str]] = field(default_factory=list)
    increments: int = 0
    user_data: list[Any] = field(default_factory=list)


@dataclass
class _Thread:
    """One of the threads.

    :param hot: the ids of the images in repository a that all threads use.
    """

    service: Service
    name: str
    hot: Sequence[str]
    random: random.Random
    told: Told = field(default_factory=Told)
    own: list[tuple[str, str]] = field(default_factory=list)
    code: str | None = None

    def run(self, operations: int) -> None:
        """Do one thing after another."""
        doing: list[Callable[[], None]] = [
            self.snapshot, self.snapshot, self.remove, self.remove, self.copy, self.count,
            self.count, self.count, self.set_user_data, self.set_user_data, self.extend, self.fix,
            self.look, self.read,
        ]  # fmt: skip
        try:
            for _ in range(operations):
                self.random.choice(doing)()
        except Exception as error:  # noqa: BLE001 - reported here, since a thread has no caller
            self.told.unexpected.append(repr(error))

    def ask(self, verb: str, **parameters: Any) -> Any:
        """Call a verb. Return its result, or None after an error that others may have caused."""
        self.told.operations += 1
        self.code = None
        try:
            return call(self.service, verb, parameters)
        except errors.DiskyardError as error:
            self.code = error.code
            self.told.codes[error.code] = self.told.codes.get(error.code, 0) + 1
            if error.code not in EXPECTED:
                self.told.unexpected.append(f"{verb}: {error.to_json()}, because of {error.__cause__!r}")
            return None

    def _hot(self) -> str:
        return self.random.choice(self.hot)

    def snapshot(self) -> None:
        """Take a Snapshot under an id of this thread's; half of the time, request it again."""
        disk, image_id = self._hot(), new_uuid()
        asked = {"targetRepoId": "a", "baseVirtualDiskId": disk, "options": {"newImageId": image_id}}
        for _ in range(self.random.randint(1, 2)):
            if self.ask("createSnapshot", **asked) is not None and ("a", image_id) not in self.own:
                self.own.append(("a", image_id))
                self.told.made.append(("a", image_id, disk))

    def copy(self) -> None:
        """Copy to the other repository. The bytes move in the background, or are left to a fix."""
        disk, image_id = self._hot(), new_uuid()
        options = {"newImageId": image_id, "AutoFix": self.random.random() < 0.5}
        if self.ask("copyImage", targetRepoId="b", imageId=disk, options=options) is not None:
            self.own.append(("b", image_id))
            self.told.made.append(("b", image_id, disk))

    def remove(self) -> None:
        """Remove one of this thread's images. It is gone once that is answered."""
        if not self.own:
            return
        place, image_id = self.random.choice(self.own)
        options = {"AutoFix": self.random.random() < 0.5}
        self.told.operations += 1
        call(self.service, "removeImage", {"repositoryId": place, "imageId": image_id, "options": options})
        self.own.remove((place, image_id))
        self.told.removed.append((place, image_id))

    def count(self) -> None:
        """Add one to the counter that all threads use. Each addition is answered once."""
        of_hot = {"repositoryId": "a", "imageId": self.hot[0]}
        info = self.ask("getImageInfo", **of_hot)
        changed = {**info["userData"], "count": info["userData"].get("count", 0) + 1}
        options = {"ifRevision": info["revision"]}
        self.ask("setUserData", **of_hot, userData=changed, options=options)
        self.told.increments += self.code is None

    def set_user_data(self) -> None:
        """Set userData that nobody else sets."""
        said = {"by": self.name, "number": len(self.told.user_data)}
        self.told.operations += 1
        call(self.service, "setUserData", {"repositoryId": "a", "imageId": self.hot[1], "userData": said})
        self.told.user_data.append(said)

    def extend(self) -> None:
        """Extend a disk by some sectors; refused if another thread was first."""
        of_hot = {"repositoryId": "a", "imageId": self._hot()}
        info = self.ask("getImageInfo", **of_hot)
        self.ask("extendVirtualDisk", **of_hot, size=info["sizeBytes"] + 4 * KIB)

    def fix(self) -> None:
        """Run any listed fix, which another thread may be running."""
        place = self.random.choice("ab")
        listed = [f for f in self.ask("checkStorageRepository", repositoryId=place) or [] if f["runnable"]]
        if not listed:
            return
        fix = self.random.choice(listed)
        task = self.ask("fixStorageRepository", repositoryId=place, fix=fix)
        if self.random.random() < 0.2:
            self.ask("stopTask", taskId=task["taskId"])
        self.service.tasks.wait([task["taskId"]])

    def look(self) -> None:
        """Call the verbs that only read."""
        place = self.random.choice("ab")
        assert self.ask("listImages", repositoryId=place) is not None
        assert self.ask("listStorageRepositories") is not None

    def read(self) -> None:
        """Attach one of this thread's images and detach it again."""
        if not self.own:
            return
        place, image_id = self.random.choice(self.own)
        options = {"owner": self.name, "readOnly": True}
        asked = {"repositoryId": place, "imageId": image_id}
        if self.ask("prepareImage", **asked, options=options) is not None:
            call(self.service, "teardownImage", {**asked, "options": {"owner": self.name}})


def _add_up(told: Sequence[Told]) -> Told:
    total = Told()
    for one in told:
        total.operations += one.operations
        total.increments += one.increments
        for code, count in one.codes.items():
            total.codes[code] = total.codes.get(code, 0) + count
        for name in ("unexpected", "made", "removed", "user_data"):
            getattr(total, name).extend(getattr(one, name))
    return total


def _be_busy(
    world: World, name: str, hot: Sequence[str], threads: int, operations: int, seed: str, pipe: Connection
) -> None:
    """The work of one process."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    service = world.service(host_named(name))
    workers = [
        _Thread(service, f"{name} {number}", hot, random.Random(f"{seed} {name} {number}"))
        for number in range(threads)
    ]
    pipe.send("ready")
    pipe.recv()
    running = [threading.Thread(target=worker.run, args=(operations,)) for worker in workers]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    service.tasks.wait()
    told = _add_up([worker.told for worker in workers])
    for task in service.records.all():
        code = (task.error or {}).get("code")
        if task.state == "failed" and code not in EXPECTED:
            told.unexpected.append(f"task {task.verb}: {msgspec.to_builtins(task.error)}")
    service.close()
    pipe.send(told)


def be_busy(
    world: World,
    hot: Sequence[str],
    *,
    processes: int,
    threads: int,
    operations: int,
    seed: int,
    timeout_s: float,
) -> Told:
    """Run so many threads in so many processes at once, each with so many operations.

    :param timeout_s: after this it counts as a deadlock, and every process prints its stacks on stderr.
    :raises AssertionError: they did not come to an end.
    """
    started = []
    bare = World(world.folder, format=world.format)
    for number in range(processes):
        ours, theirs = FORKING.Pipe()
        words = (bare, f"busy{number}", tuple(hot), threads, operations, str(seed), theirs)
        process = FORKING.Process(target=_be_busy, args=words)
        process.start()
        theirs.close()
        started.append((process, ours))
    for _, pipe in started:
        assert pipe.recv() == "ready"
    for _, pipe in started:
        pipe.send("go")
    deadline_s = time.monotonic() + timeout_s
    told = []
    for _, pipe in started:
        if not pipe.poll(max(0.0, deadline_s - time.monotonic())):
            _show_stacks([process.pid for process, _ in started])
            raise AssertionError(f"a deadlock: no end within {timeout_s:g} seconds")
        told.append(pipe.recv())
    for process, pipe in started:
        process.join()
        pipe.close()
    return _add_up(told)


def _show_stacks(pids: Sequence[int | None]) -> None:
    for pid in pids:
        assert pid is not None
        sys.stderr.write(f"stacks of process {pid}:\n")
        sys.stderr.flush()
        os.kill(pid, signal.SIGUSR1)
        time.sleep(STACKS_TIMEOUT_S)
        os.kill(pid, signal.SIGKILL)


def changes_by(service: Service, place: str, verb: str) -> int:
    """How many changes of a verb are in a repository's log."""
    storage = service.connections.get(place).storage
    found = 0
    for number in storage.numbers("entry"):
        data = storage.get("entry", number)[0]
        assert data is not None
        found += sum(part.verb == verb for part in decode(data, Entry)[0].parts())
    return found
