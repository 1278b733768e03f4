"""Every verb that changes a repository, on chains of the shapes that matter to it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
from collections.abc import Callable
from typing import Any
from unittest import mock

from diskyard import errors
from diskyard.model.records import Volume
from diskyard.mover.qemu.grow import grow
from diskyard.operations import sizes
from diskyard.repository.repository import Repository
from diskyard.service import Service, call
from diskyard.testing.scenarios import shapes
from diskyard.testing.scenarios.base import (
    LATER,
    NEW_ID,
    Act,
    Scenario,
    bytes_of,
    new,
    same,
    verb,
    with_bytes,
    with_new,
    without,
    zeros,
)
from diskyard.testing.world import KIB, SIZE_BYTES, Images, World

_ENTRIES_BEFORE_FOLDING = 63
_changes = itertools.count()

DISK_IN_A = {"repositoryId": "a", "imageId": "@d"}


# -- what some of them work on -----------------------------------------------------------


def pending_copy(world: World, service: Service) -> None:
    """A copy of d committed in b, its data not moved yet."""
    shapes.chain(world, service)
    new("copyImage", targetRepoId="b", imageId="@d")(world, service)
    world.note("b", "new", NEW_ID, world.images["a", world.names["d"]])


def import_bytes(world: World) -> bytes:
    """The bytes of the file to import."""
    return bytes([7]) * (256 * KIB) + bytes(SIZE_BYTES - 256 * KIB)


def import_file(format: str) -> Act:
    """Write a file outside the repositories, durably, and commit its import."""

    def act(world: World, service: Service) -> Any:
        raw, path = world.folder / "import.raw", world.folder / f"import.{format}"
        raw.write_bytes(import_bytes(world))
        if format != "raw":
            subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", format, raw, path], check=True)
        subprocess.run(["sync", path, world.folder], check=True)
        asked = {"targetRepoId": "a", "path": str(path), "format": format}
        return new("importImage", **asked)(world, service)

    return act


def export(world: World, service: Service) -> None:
    """Export d to a file, and wait for that."""
    path = world.folder / "export.qcow2"
    asked = {"repositoryId": "a", "imageId": world.names["d"], "path": str(path), "format": "qcow2"}
    call(service, "exportImage", asked)
    assert service.tasks.wait(timeout_s=60)


def exported_whole(world: World, service: Service, *, answered: bool) -> None:
    """The file has its name only when it is whole."""
    path = world.folder / "export.qcow2"
    assert path.exists() or not answered
    if path.exists():
        raw = world.folder / "exported.raw"
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw], check=True)
        assert raw.read_bytes() == world.images["a", world.names["d"]]


def about_to_fold(world: World, service: Service) -> None:
    """A log for which a checkpoint and trimming are due."""
    world.disk(service, "a", "d")
    repo = service.connections.get("a")
    while repo.state().version % 64 != _ENTRIES_BEFORE_FOLDING or repo.state().version < 4 * 64:
        change_user_data(world, service)


def change_user_data(world: World, service: Service) -> None:
    """An entry that changes no bytes."""
    world.user_data.pop(("a", world.names["d"]), None)
    asked = {"repositoryId": "a", "imageId": world.names["d"], "userData": {"change": next(_changes)}}
    call(service, "setUserData", asked)


def _info(world: World, service: Service) -> Any:
    return call(service, "getImageInfo", {"repositoryId": "a", "imageId": world.names["d"]})


def user_data_is(*, before: Any, after: Any) -> Callable[..., None]:
    """The userData of d is one of two values, and the later one if that was answered."""

    def look(world: World, service: Service, *, answered: bool) -> None:
        found = _info(world, service)["userData"]
        assert found == after or (found == before and not answered), json.dumps(found)

    return look


def strategy_is_changed(world: World, service: Service, *, answered: bool) -> None:
    """The same for its strategy."""
    assert _info(world, service)["strategy"] == "performance" or not answered


def forget_user_data(world: World, service: Service) -> None:
    """A chain whose userData the scenario itself checks."""
    shapes.chain(world, service)
    del world.user_data["a", world.names["d"]]


def prepared(world: World, service: Service) -> None:
    """A disk that this machine has attached, under an owner of its own."""
    shapes.chain(world, service)
    call(service, "prepareImage", {"repositoryId": "a", "imageId": world.names["d"]})


def prepare_and_tear_down(world: World, service: Service) -> None:
    """Attach and detach a disk."""
    asked = {"repositoryId": "a", "imageId": world.names["d"]}
    call(service, "prepareImage", asked)
    call(service, "teardownImage", asked)


def _extended(place: str = "a", name: str = "d") -> Callable[[World], Images]:
    return with_bytes(name, lambda world: bytes_of(name, place)(world) + bytes(SIZE_BYTES), place)


def _create_from(base: str) -> Act:
    return new("createVirtualDisk", targetRepoId="a", size=SIZE_BYTES, baseSnapshotId=base)


def _c(world: World) -> dict[str, Any]:
    return {"repoFormat": world.format, "connectionParameters": world.parameters("c")}


def create_repository(world: World, service: Service) -> None:
    """Create a third repository."""
    call(service, "createStorageRepository", _c(world))


def remove_repository(world: World, service: Service) -> None:
    """Remove the repository, which exists and holds no image."""
    call(service, "connectStorageRepository", {"repoId": "c", **_c(world)})
    call(service, "removeStorageRepository", {"repositoryId": "c"})


_SNAPSHOT = new("createSnapshot", targetRepoId="a", baseVirtualDiskId="@d")
_REMOVE_D = verb("removeImage", **DISK_IN_A, options=LATER)
_EXTEND_D = verb("extendVirtualDisk", **DISK_IN_A, size=2 * SIZE_BYTES, options=LATER)
_COPY_D = new("copyImage", targetRepoId="b", imageId="@d")
_COPY_ON_BASE = new("copyImage", targetRepoId="b", imageId="@d", baseImageId="@base")


def extend_within_snapshot(world: World, service: Service) -> None:
    """The disk is extended between the overlay and the seal of a switch, which then begins anew."""
    make_empty, extends = Repository.make_empty, iter([True])

    def made(repo: Repository, volume: Volume) -> None:
        make_empty(repo, volume)
        if next(extends, False):
            _EXTEND_D(world, service)

    with mock.patch.object(Repository, "make_empty", made):
        _SNAPSHOT(world, service)


def snapshot_of_extended(world: World) -> Images:
    """The Snapshot and the disk have the disk's new size."""
    images = _extended()(world)
    return {**images, **with_new("a", lambda _: images["a", world.names["d"]])(world), **images}


def extend_beside_snapshot(world: World, service: Service) -> None:
    """While an extend of a disk is open, nothing of the disk is frozen."""

    def grow_late(*words: Any, **more: Any) -> None:
        with contextlib.suppress(errors.LeaseHeld):
            _SNAPSHOT(world, service)
            raise AssertionError("a disk was frozen whose size is in doubt")
        grow(*words, **more)

    with mock.patch.multiple(sizes, grow=grow_late, _EXTEND_WAIT_S=0.0):
        _EXTEND_D(world, service)


def grow_and_tear_down(world: World, service: Service) -> None:
    """A guest's QEMU makes its disk longer, and the guest ends. The new part is zeros."""
    asked = {"repositoryId": "a", "imageId": world.names["d"]}
    attached = call(service, "prepareImage", asked)
    os.truncate(attached["path"], 2 * SIZE_BYTES)
    call(service, "teardownImage", asked)


OPERATIONS = [
    Scenario(
        "create disk", shapes.lone, new("createVirtualDisk", targetRepoId="a", size=SIZE_BYTES),
        with_new("a", zeros),
    ),
    Scenario("create disk from snapshot", shapes.chain, _create_from("@s1"), with_new("a", bytes_of("s1"))),
    Scenario("create disk from deep one", shapes.deep, _create_from("@s6"), with_new("a", bytes_of("s6"))),
    Scenario(
        "create disk from elsewhere", shapes.chain,
        new("createVirtualDisk", targetRepoId="b", size=SIZE_BYTES, baseSnapshotId="@s1"),
        with_new("b", bytes_of("s1")),
    ),
    Scenario("create snapshot of lone disk", shapes.lone, _SNAPSHOT, with_new("a", bytes_of("d"))),
    Scenario("create snapshot", shapes.chain, _SNAPSHOT, with_new("a", bytes_of("d"))),
    Scenario("create snapshot of deep disk", shapes.deep, _SNAPSHOT, with_new("a", bytes_of("d"))),
    Scenario("create snapshot over weak", shapes.weak, _SNAPSHOT, with_new("a", bytes_of("d"))),
    Scenario(
        "create snapshot of a difference", shapes.across,
        new("createSnapshot", targetRepoId="b", baseVirtualDiskId="@x"), with_new("b", bytes_of("x", "b")),
    ),
    Scenario("copy lone disk", shapes.lone, _COPY_D, with_new("b", bytes_of("d"))),
    Scenario("copy disk", shapes.chain, _COPY_D, with_new("b", bytes_of("d"))),
    Scenario("copy disk over weak", shapes.weak, _COPY_D, with_new("b", bytes_of("d"))),
    Scenario(
        "copy disk within", shapes.branching, new("copyImage", targetRepoId="a", imageId="@d"),
        with_new("a", bytes_of("d")),
    ),
    Scenario("copy disk onto a disk as base", shapes.copied, _COPY_ON_BASE, with_new("b", bytes_of("d"))),
    Scenario(
        "copy tracked disk", shapes.tracked,
        new(
            "copyImage", targetRepoId="b", imageId="@d", baseImageId="@base", options={"trackChanges": True}
        ),
        with_new("b", bytes_of("d")),
    ),
    Scenario(
        "copy snapshot", shapes.chain, verb("copyImage", targetRepoId="b", imageId="@s2", options=LATER),
        lambda world: {**world.images, ("b", world.names["s2"]): bytes_of("s2")(world)},
    ),
    Scenario(
        "untrack", shapes.tracked, verb("untrackChanges", **DISK_IN_A), same,
    ),
    Scenario(
        "revert", shapes.chain, verb("revertVirtualDisk", **DISK_IN_A, snapshotId="@s1", options=LATER),
        with_bytes("d", bytes_of("s1")),
    ),
    Scenario(
        "revert in branches", shapes.branching,
        verb("revertVirtualDisk", repositoryId="a", imageId="@f", snapshotId="@s1", options=LATER),
        with_bytes("f", bytes_of("s1")),
    ),
    Scenario("extend lone disk", shapes.lone, _EXTEND_D, _extended()),
    Scenario("extend", shapes.chain, _EXTEND_D, _extended()),
    Scenario("extend within create snapshot", shapes.chain, extend_within_snapshot, snapshot_of_extended),
    Scenario("extend beside a refused snapshot", shapes.lone, extend_beside_snapshot, _extended()),
    Scenario("tear down a disk that grew", shapes.lone, grow_and_tear_down, _extended()),
    Scenario("remove lone disk", shapes.lone, _REMOVE_D, without("d")),
    Scenario("remove disk", shapes.branching, _REMOVE_D, without("d")),
    Scenario(
        "remove snapshot", shapes.chain, verb("removeImage", repositoryId="a", imageId="@s2", options=LATER),
        without("s2"),
    ),
    Scenario(
        "remove shared snapshot", shapes.branching,
        verb("removeImage", repositoryId="a", imageId="@s1", options=LATER), without("s1"),
    ),
    Scenario("remove disk over weak", shapes.weak, _REMOVE_D, without("d")),
    Scenario("remove tracked disk", shapes.tracked, _REMOVE_D, without("d")),
    Scenario(
        "remove pending copy", pending_copy,
        verb("removeImage", repositoryId="b", imageId=NEW_ID, options=LATER), without("new", "b"),
    ),
    Scenario(
        "set user data", forget_user_data, verb("setUserData", **DISK_IN_A, userData={"by": "act"}), same,
        user_data_is(before={"made as": "d"}, after={"by": "act"}),
    ),
    Scenario("fold and trim", about_to_fold, change_user_data, same),
    Scenario(
        "set strategy", shapes.chain, verb("setStrategy", **DISK_IN_A, strategy="performance"), same,
        strategy_is_changed,
    ),
    Scenario("prepare", shapes.chain, verb("prepareImage", **DISK_IN_A), same),
    Scenario("prepare and tear down", shapes.deep, prepare_and_tear_down, same),
    Scenario("import raw", shapes.lone, import_file("raw"), with_new("a", import_bytes)),
    Scenario("import qcow2", shapes.lone, import_file("qcow2"), with_new("a", import_bytes)),
    Scenario("export", shapes.chain, export, same, exported_whole),
]  # fmt: skip

#: Operations on a repository itself. They are judged by doing them again, not by images.
ON_REPOSITORIES = [
    Scenario("create repository", shapes.lone, create_repository, same),
    Scenario("remove repository", shapes.lone, remove_repository, same),
]
