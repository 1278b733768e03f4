"""The rig of the API's tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import transports
from tests.api.helpers import Rig
from tests.conftest import mostly_in_memory


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """What a test keeps in files, in memory for most: see :func:`tests.conftest.mostly_in_memory`."""
    yield from mostly_in_memory(request, tmp_path)


@pytest.fixture(autouse=True)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every host of the test is reached over the transport that is chosen for the test."""
    monkeypatch.setattr(transports, "current", transports.chosen(request))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A host with two empty repositories."""
    made = Rig(tmp_path, format=os.environ.get("DISKYARD_TEST_FORMAT", "localfs-1.0"))
    yield made
    made.close()


@pytest.fixture
def short_rig() -> Iterator[Rig]:
    """The rig with its state in a folder whose name leaves room for that of a socket."""
    with tempfile.TemporaryDirectory(prefix="dy-") as folder:
        made = Rig(Path(folder))
        yield made
        made.close()


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on XFS with reflinks, in a sparse file."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("mkfs.xfs is not installed (Debian: xfsprogs)")
    folder = tmp_path_factory.mktemp("xfs")
    disk, place = folder / "disk", folder / "mounted"
    place.mkdir()
    with disk.open("wb") as file:
        file.truncate(1 << 30)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(disk)], check=True)
    subprocess.run(["mount", "-o", "loop", str(disk), str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def reflink(tmp_path: Path, xfs: Path) -> Iterator[Rig]:
    """A host whose two repositories are on one file system with reflinks."""
    folder = xfs / tmp_path.name
    folder.mkdir()
    made = Rig(tmp_path, folder)
    assert made.repository("a").storage.capabilities.reflink
    yield made
    made.close()
    shutil.rmtree(folder)
