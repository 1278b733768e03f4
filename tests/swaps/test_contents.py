"""What a volume's header says is read from the file that is then used, not from what had its name before."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from diskyard import errors
from diskyard.host import Files
from diskyard.repository.repository import volume_name
from diskyard.repository.volume_files import opening
from diskyard.testing.faults import with_files
from diskyard.testing.scenarios import shapes
from diskyard.testing.world import SIZE_BYTES, World, host_named

R = TypeVar("R")
SECRET = b"secret"


class SwappingFiles(Files):
    """Another file has a path for the moment in which it is opened for a piece of work."""

    path: Path | None = None
    other: Path

    def passing(self, name: str, words: tuple[object, ...], do: Callable[[], R]) -> R:
        if name == "open_to_read" and words[:1] == (str(self.path),) and self.path is not None:
            path, self.path = self.path, None
            path.rename(f"{path}.kept")
            self.other.rename(path)
            value = super().passing(name, words, do)
            Path(f"{path}.kept").rename(path)
            return value
        return super().passing(name, words, do)


@pytest.fixture
def world(quick_folder: Path) -> World:
    made = World(quick_folder / "world")
    made.create()
    service = made.service(host_named("builder"))
    shapes.chain(made, service)
    service.close()
    return made


def test_a_header_that_leads_to_another_file(world: World) -> None:
    """It has the volume's name while that is opened; whoever looks before or after finds the volume."""
    secret, evil = world.folder / "secret", world.folder / "evil"
    secret.write_bytes(SECRET.ljust(SIZE_BYTES, b"\0"))
    options = f"data_file={secret},data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, evil, "2M"], check=True)
    host = host_named("host")
    files = SwappingFiles(host.identity)
    service = world.service(with_files(host, files))
    repository = service.connections.get("a")
    state = repository.state()
    volume = state.volumes[state.images[world.names["d"]].volume_id or ""]
    path = repository.storage.locate_volume(volume_name(volume)).path
    assert path is not None
    files.path, files.other = Path(path), evil
    with pytest.raises(errors.ImageBroken, match="incompatible features"), opening(repository, [volume]):
        pass
    assert os.path.exists(path)
    with opening(repository, [volume]) as (layer,):  # what has its name now is the volume
        assert layer.fd is not None
    service.close()
