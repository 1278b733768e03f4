from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard import Diskyard
from tests.cli.daemons import Daemons
from tests.cli.program import Program
from tests.conftest import mostly_in_memory
from tests.transports import TransportName, chosen


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """What a test keeps in files, in memory for most: see :func:`tests.conftest.mostly_in_memory`."""
    yield from mostly_in_memory(request, tmp_path)


@pytest.fixture
def transport(request: pytest.FixtureRequest) -> TransportName:
    """How the commands of the test reach the service."""
    return chosen(request)


@pytest.fixture
def unconnected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: TransportName
) -> Iterator[Program]:
    """The program, with two empty folders where repositories could be.

    Its state folder has a short name: sockets in it must not be longer than the kernel takes.
    """
    with tempfile.TemporaryDirectory(prefix="diskyard-") as state_folder:
        monkeypatch.setenv("DISKYARD_STATE_DIR", state_folder)
        daemons = Daemons(transport, Path(state_folder))
        made = Program(tmp_path, daemons)
        yield made
        made.end()
        daemons.end()


@pytest.fixture
def program(unconnected: Program) -> Program:
    """The program, with two repositories connected: ``fast`` and ``backup``."""
    with Diskyard() as yard:
        for name in ("fast", "backup"):
            path = {"path": str(unconnected.folder / name)}
            yard.create_storage_repository("localfs-1.0", path)
            yard.connect_storage_repository(name, "localfs-1.0", path)
    return unconnected


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A raw image of 24 MiB that does not compress."""
    path = tmp_path / "noise.raw"
    path.write_bytes(os.urandom(24 << 20))
    return path
