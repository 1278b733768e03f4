"""Other hosts, as processes that end on request, or are killed."""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from diskyard.testing.attackers.hosts import Counts, Places, YardHost
from diskyard.testing.forking import FORKING

_DEATH_MOST_S, _END_MOST_S, _PAUSE_S = 60.0, 300.0, 0.05


@dataclass
class Worker:
    """A process that does one thing until it must end, or is killed."""

    act: Callable[..., Counts]
    words: tuple[Any, ...]

    def start(self) -> Worker:
        """Start it. What it does is called with its words and a function that says whether to go on."""
        self._pipe, theirs = FORKING.Pipe()
        self._process = FORKING.Process(target=_work, args=(self.act, self.words, theirs), daemon=True)
        self._process.start()
        theirs.close()
        return self

    def kill(self) -> None:
        """Kill it (SIGKILL). It is gone on return."""
        self._process.kill()
        self._process.join(_DEATH_MOST_S)
        self._pipe.close()

    def end(self, timeout_s: float = _END_MOST_S) -> Counts:
        """Let it end, and return its counts.

        :raises AssertionError: it ended with an exception, or does not end.
        """
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send("end")
        assert self._pipe.poll(timeout_s), f"{self.act.__name__} does not end"
        try:
            counts = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise AssertionError(f"{self.act.__name__} ended with status {self._process.exitcode}") from None
        self._process.join()
        assert isinstance(counts, Counts), counts
        return counts


def _work(act: Callable[..., Counts], words: tuple[Any, ...], pipe: Connection) -> None:
    def goes_on() -> bool:
        return not pipe.poll()

    try:
        pipe.send(act(*words, goes_on))
    except BaseException as error:
        pipe.send(f"{act.__name__}: {error!r}")
        raise


def fix_at_random(name: str, folder: Path, places: Places, seed: int, goes_on: Callable[[], bool]) -> Counts:
    """A host that fixes whatever is listed, while others work."""
    told, rng = Counts(), random.Random(seed)
    host = YardHost(name, folder, places)
    while goes_on():
        host.fix_some(list(places), rng, told)
        time.sleep(_PAUSE_S)
    host.close()
    return told


def meddle_at_random(
    name: str, folder: Path, places: Places, seed: int, goes_on: Callable[[], bool]
) -> Counts:
    """A host that takes Snapshots and copies of others' images, and removes them again."""
    told, rng, host = Counts(), random.Random(seed), YardHost(name, folder, places)
    while goes_on():
        place = rng.choice(list(places))
        with told.refusals("meddle"):
            disks = host("listImages", repositoryId=place, kind="virtual_disk")["images"]
            if disks:
                disk = rng.choice(disks)["imageId"]
                made = str(uuid.UUID(int=rng.getrandbits(128), version=4))
                options = {"newImageId": made}
                if rng.random() < 0.5:
                    host("createSnapshot", targetRepoId=place, baseVirtualDiskId=disk, options=options)
                else:
                    host("copyImage", targetRepoId=place, imageId=disk, options=options)
                time.sleep(rng.random() * _PAUSE_S)
                host("removeImage", repositoryId=place, imageId=made)
        time.sleep(_PAUSE_S)
    host.close()
    return told
