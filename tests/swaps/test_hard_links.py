"""Volumes and files that have a second name, as a backup by ``cp -al`` gives them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.repository.repository import volume_name
from diskyard.service import Service, call
from diskyard.testing.scenarios import find_scenario, shapes
from diskyard.testing.scenarios.base import LATER, new, verb
from diskyard.testing.world import SIZE_BYTES, World, host_named

DISK = {"repositoryId": "a", "imageId": "@d"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("links") / "world")
    world.create()
    service = world.service(host_named("builder"))
    shapes.chain(world, service)
    service.close()
    return world


def back_up(world: World) -> dict[Path, bytes]:
    """Give all volumes of a repository a second name elsewhere."""
    backup = world.folder / "backup"
    backup.mkdir()
    for path in (world.folder / "a" / "volumes").iterdir():
        (backup / path.name).hardlink_to(path)
    return {path: path.read_bytes() for path in backup.iterdir()}


def merge(world: World, service: Service) -> None:
    verb("removeImage", repositoryId="a", imageId="@s2", options=LATER)(world, service)
    find_scenario("merge down into qcow2").act(world, service)


def export(world: World, service: Service) -> None:
    path = str(world.folder / "export")
    asked = {"repositoryId": "a", "imageId": world.names["d"], "path": path, "format": "raw"}
    task_id = call(service, "exportImage", asked)["taskId"]
    service.tasks.wait([task_id])
    error = service.records.get(task_id).error
    assert error is not None
    raise errors.CODES[str(error["code"])](str(error["message"]), advice=str(error["advice"]))


def copy(world: World, service: Service) -> None:
    new("copyImage", targetRepoId="b", imageId="@d")(world, service)
    find_scenario("mend a copy").act(world, service)


REFUSED: dict[str, Callable[[World, Service], object]] = {
    "merge": merge,
    "export": export,
    "copy": copy,
    "extend": verb("extendVirtualDisk", **DISK, size=2 * SIZE_BYTES),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_volume_with_a_second_name_is_not_opened(prepared: World, quick_folder: Path, name: str) -> None:
    """The advice says what to do; and nothing of it is written."""
    world = prepared.copied(quick_folder / "world")
    kept = back_up(world)
    service = world.service(host_named("host"))
    with pytest.raises(errors.UnsafeImage, match="2 names") as caught:
        REFUSED[name](world, service)
    assert "cp --reflink=auto FILE FILE.new && mv FILE.new FILE" in caught.value.advice
    service.close()
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_backup_breaks_no_image(prepared: World, quick_folder: Path) -> None:
    """All are usable, and read by guests; a deep check finds nothing."""
    world = prepared.copied(quick_folder / "world")
    back_up(world)
    service = world.service(host_named("host"))
    asked = {"repositoryId": "a", "options": {"deep": True}}
    assert not call(service, "checkStorageRepository", asked)
    for place, image_id in world.images:
        assert world.read(service, place, image_id) == world.images[place, image_id]
    service.close()


def test_what_the_advice_says_helps(prepared: World, quick_folder: Path) -> None:
    world = prepared.copied(quick_folder / "world")
    kept = back_up(world)
    for path in (world.folder / "a" / "volumes").iterdir():
        shutil.copy(path, f"{path}.new")
        Path(f"{path}.new").rename(path)
    service = world.service(host_named("host"))
    copy(world, service)
    service.close()
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_file_with_a_second_name_is_not_imported(prepared: World, quick_folder: Path) -> None:
    world = prepared.copied(quick_folder / "world")
    secret, path = world.folder / "secret", world.folder / "import"
    secret.write_bytes(bytes([7]) * SIZE_BYTES)
    path.hardlink_to(secret)
    service = world.service(host_named("host"))
    asked = {"targetRepoId": "a", "path": str(path), "format": "raw"}
    with pytest.raises(errors.UnsafeImage, match="2 names"):
        call(service, "importImage", asked)
    service.close()


def test_growing_a_volume_with_a_second_name(prepared: World, quick_folder: Path) -> None:
    """The storage's own calls refuse it as well."""
    world = prepared.copied(quick_folder / "world")
    service = world.service(host_named("host"))
    repository = service.connections.get("a")
    volume = next(volume for volume in repository.state().volumes.values() if volume.format == "raw")
    kept = back_up(world)
    with pytest.raises(errors.UnsafeImage):
        repository.storage.grow_volume(volume_name(volume), length_bytes=4 * SIZE_BYTES)
    service.close()
    assert {path: path.read_bytes() for path in kept} == kept
