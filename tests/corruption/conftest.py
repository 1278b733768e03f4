"""A world that is built once, and copied for each case."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard.service import call
from diskyard.testing.corruption import Outside
from diskyard.testing.world import World, host_named
from tests.corruption.cases import Bench

_DAY_S = 24 * 3600.0
_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def bench() -> Iterator[Bench]:
    """The world, with its log trimmed, chains in both repositories, and a Snapshot in both."""
    parent = str(_MEMORY) if os.access(_MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="diskyard-", dir=parent))
    try:
        prepared = World(folder / "prepared")
        prepared.create()
        service = prepared.service(host_named("builder"))
        prepared.chain(service, "a")
        prepared.disk(service, "a", "other")
        prepared.write(service, "a", "other", 7, 0, 256 << 10)
        asked = {"targetRepoId": "b", "imageId": prepared.names["s2"], "options": {"AutoFix": False}}
        call(service, "copyImage", asked)
        prepared.fix_all([service], random.Random(0))
        snapshot_id = prepared.names["s2"]
        prepared.images["b", snapshot_id] = prepared.images["a", snapshot_id]
        _make_history(prepared, service.connections.get("a").state().version)
        service.close()
        yield Bench(prepared, folder)
    finally:
        shutil.rmtree(folder)


def _make_history(world: World, version: int) -> None:
    """Entries until the oldest are trimmed, and some after the newest checkpoint."""
    service = world.service(host_named("builder"))
    asked = {"repositoryId": "a", "imageId": world.names["other"]}
    while len(list((world.folder / "a" / "checkpoints").glob("*.a"))) < 3 or version < 4 * 64 + 8:
        version += 1
        if version == 3 * 64 + 32:
            for path in (world.folder / "a" / "log").iterdir():
                os.utime(path, (0, 0))
        call(service, "setUserData", {**asked, "userData": version})
    call(service, "setUserData", {**asked, "userData": {"made as": "other"}})
    service.close()


@pytest.fixture
def outside(bench: Bench) -> Iterator[Outside]:
    """What lies beside the repositories; looked at again when the test is over."""
    folder = bench.folder / "outside"
    made = Outside.make(folder)
    try:
        yield made
        made.judge()
    finally:
        shutil.rmtree(folder)
