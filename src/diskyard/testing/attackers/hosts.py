"""A host in this process with repositories anywhere, and counts of what it does."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diskyard import errors
from diskyard.fixes.runner import run_fix
from diskyard.model.fix import Fix
from diskyard.model.requests import CheckStorageRepository
from diskyard.repository.repository import Repository
from diskyard.service import Service, call, run
from diskyard.testing.attackers.sectors import read_as_guest, write_as_guest
from diskyard.testing.world import host_named

FORMAT = "localfs-1.0"
#: Errors that a verb or fix may raise because others work on the same images.
WAITS = ("LeaseHeld", "ImageInUse", "ImageBroken", "ImageNotFound")
#: Errors that are faults of Diskyard unless the storage is being damaged.
SERIOUS = ("InternalError", "CorruptRecord", "StorageError")
_ROUNDS = 80
_TEARDOWN_MOST_S, _TASKS_END_S, _POLL_S = 60.0, 180.0, 0.05

Places = Mapping[str, Path]


def create_places(places: Places, state_folder: Path) -> None:
    """Make empty repositories."""
    service = Service(host_named("creator"), str(state_folder))
    for path in places.values():
        asked = {"repoFormat": FORMAT, "connectionParameters": {"path": str(path)}}
        call(service, "createStorageRepository", asked)
    service.close()


class YardHost:
    """One host, embedded in this process.

    :param name: of the host and of its state directory.
    :param folder: where its state directory is.
    :param places: the repositories that it connects, by repoId.
    """

    def __init__(self, name: str, folder: Path, places: Places) -> None:
        self.name = name
        self.service = Service(
            host_named(name), str(folder / f"state-{name}"), transfer_folders=(str(folder),)
        )
        self.places = dict(places)
        for place in places:
            self.connect(place)

    def __call__(self, verb: str, **parameters: Any) -> Any:
        """Call a verb and return its result."""
        return call(self.service, verb, parameters)

    def connect(self, place: str) -> None:
        """Connect one of the repositories that this host knows."""
        words = {"repoFormat": FORMAT, "connectionParameters": {"path": str(self.places[place])}}
        self("connectStorageRepository", repoId=place, **words)

    def repo(self, place: str) -> Repository:
        """A repository as fixes use it."""
        return self.service.connections.get(place)

    def wait(self) -> None:
        """Wait until all tasks of this host have ended."""
        assert self.service.tasks.wait(timeout_s=_TASKS_END_S), "tasks do not come to an end"

    def close(self) -> None:
        """End in order."""
        self.service.close()

    # -- as a guest ---------------------------------------------------------------------

    @contextlib.contextmanager
    def attached(self, place: str, image_id: str, owner: str, *, read_only: bool) -> Iterator[dict[str, Any]]:
        """Attach an image for the time of the context; its graph."""
        asked = {"repositoryId": place, "imageId": image_id}
        options = {"owner": owner, "readOnly": read_only}
        graph: dict[str, Any] = self("prepareImage", **asked, options=options)["blockdev"]
        try:
            yield graph
        finally:
            self._tear_down(asked, owner)

    def _tear_down(self, asked: Mapping[str, str], owner: str) -> None:
        """Detach an image. Others may hold its lease for a moment."""
        deadline_s = time.monotonic() + _TEARDOWN_MOST_S
        while True:
            try:
                self("teardownImage", **asked, options={"owner": owner})
                return
            except errors.LeaseHeld:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(_POLL_S)

    def read(self, place: str, image_id: str) -> bytes:
        """An image's bytes, read by QEMU through the graph from prepareImage."""
        with self.attached(place, image_id, f"judge-{self.name}", read_only=True) as graph:
            return read_as_guest(graph)

    def write(self, place: str, image_id: str, commands: Sequence[str]) -> None:
        """Write as a guest, with commands of qemu-io."""
        with self.attached(place, image_id, f"guest-{self.name}", read_only=False) as graph:
            write_as_guest(graph, commands)

    # -- fixing ---------------------------------------------------------------------------

    def fixes(self, place: str) -> list[Fix]:
        """The fixes that check lists."""
        found: list[Fix] = run(self.service, CheckStorageRepository(repository_id=place))
        return found

    def run_fix(self, place: str, fix: Fix, *, force: bool = False) -> bool:
        """Run a fix here and now. Return whether it changed anything."""
        return run_fix(self.service.engine, self.repo(place), fix.data.action, force=force)

    def fix_some(self, places: Sequence[str], rng: random.Random, told: Counts, most: int = 3) -> None:
        """Run some of the listed fixes. Others may do them first."""
        for place in places:
            with told.refusals("check"):
                listed = [fix for fix in self.fixes(place) if fix.runnable]
                rng.shuffle(listed)
                for fix in listed[:most]:
                    with told.refusals(fix.type):
                        told.fixes += self.run_fix(place, fix)

    def fix_all(self, places: Sequence[str], rng: random.Random) -> int:
        """Run all listed fixes, in random order, until none is listed. Return how many changed anything.

        :raises AssertionError: this does not come to an end.
        """
        count = 0
        for _ in range(_ROUNDS):
            listed = [(place, fix) for place in places for fix in self.fixes(place) if fix.runnable]
            if not listed:
                return count
            rng.shuffle(listed)
            for place, fix in listed:
                with contextlib.suppress(errors.LeaseHeld, errors.ImageBroken, errors.ImageInUse):
                    count += self.run_fix(place, fix)
        left = [(place, fix.description) for place in places for fix in self.fixes(place) if fix.runnable]
        raise AssertionError(f"fixes do not come to an end: {left}")


class Counts:
    """Counts of what was done, and of the results, which can be added up over processes.

    :ivar done: how often each thing was done; ``refused``: the errors of what was not done.
    :ivar reads: images whose bytes were right.
    :ivar wrong: bytes that were wrong; ``broken``: what stayed broken; ``serious``: errors that no
        fault explains.
    """

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.reads = self.fixes = self.kills = 0
        self.wrong: list[str] = []
        self.broken: list[str] = []
        self.serious: list[str] = []

    def did(self, what: str) -> None:
        """Count something that was done."""
        self.done[what] = self.done.get(what, 0) + 1

    @contextlib.contextmanager
    def refusals(self, what: str) -> Iterator[None]:
        """A context that counts the error with which something ends."""
        try:
            yield
        except errors.DiskyardError as error:
            self.refused[error.code] = self.refused.get(error.code, 0) + 1
            if error.code in SERIOUS:
                self.serious.append(f"{what}: {error.code} {error.message} because of {error.__cause__!r}")

    def add(self, other: Counts) -> None:
        """Add the counts of another process."""
        for ours, theirs in ((self.done, other.done), (self.refused, other.refused)):
            for name, count in theirs.items():
                ours[name] = ours.get(name, 0) + count
        self.reads += other.reads
        self.fixes += other.fixes
        self.kills += other.kills
        self.wrong += other.wrong
        self.broken += other.broken
        self.serious += other.serious

    def tallied(self) -> dict[str, int]:
        """The counts for a class's line in the tally."""
        kinds = {f"refused {code}": count for code, count in sorted(self.refused.items())}
        return {
            "operations": sum(self.done.values()),
            "fixes": self.fixes,
            "kills": self.kills,
            "reads right": self.reads,
            **kinds,
            "wrong": len(self.wrong),
            "broken": len(self.broken),
            "InternalError and the like": len(self.serious),
        }

    @property
    def found(self) -> list[str]:
        """Everything that was wrong, in words."""
        return [*self.wrong, *self.broken, *self.serious]

    def require_none(self) -> None:
        """Require that nothing was wrong.

        :raises AssertionError: says what was wrong.
        """
        assert not self.found, "\n".join(self.found[:20])
