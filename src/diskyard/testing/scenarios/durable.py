"""More operations, so that every existing kind of sync is made in at least one of them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from unittest import mock

from diskyard import errors
from diskyard.fixes.runner import run_fix
from diskyard.log.checkpoints import CHECKPOINTS_KEPT
from diskyard.model.fix import CleanSize
from diskyard.service import Service, call
from diskyard.testing.scenarios import shapes
from diskyard.testing.scenarios.base import (
    LATER,
    NEW,
    NEW_ID,
    Scenario,
    bytes_of,
    fix_first,
    new,
    same,
    verb,
    with_new,
    without,
    zeros,
)
from diskyard.testing.scenarios.fixing import cut_extend
from diskyard.testing.scenarios.operations import about_to_fold, change_user_data
from diskyard.testing.scenarios.sharing import prepare_raw_copied, with_snapshot_in_b
from diskyard.testing.world import KIB, SIZE_BYTES, World, host_named

NEW_PLACE = "c"
"""A place that holds nothing."""
OUTSIDE = "outside"
"""A folder on the disk that fails, outside of the repositories."""
_SMALL_ID = "22222222-2222-4333-8444-555555555555"
_TWO_DAYS_S = 2 * 24 * 3600


@dataclass(frozen=True)
class DiskScenario(Scenario):
    """A scenario that only makes sense on a simulated disk.

    :param reflink: files can share their blocks there.
    :param judge: what else must be true after a cut, given whether it was answered. It may also
        prepare what the usual judgement needs.
    :param complete: how a host that comes after a cut completes it; by default it runs the fixes.
    """

    reflink: bool = False
    judge: Callable[[World, bool], None] | None = None
    complete: Callable[[World, Service], None] | None = None


# -- the log ------------------------------------------------------------------------------


def fix_after_an_unknown_outcome(world: World, service: Service) -> None:
    """The sync of a removal's entry fails. A host that reads the entry then cleans what was removed."""
    files = service.host.files
    asked = {"repositoryId": "a", "imageId": world.names["d"], "options": LATER}
    failing = mock.patch.object(files, "sync_folder", side_effect=OSError(errno.EIO, "no answer"))
    with failing, contextlib.suppress(errors.StorageError):
        call(service, "removeImage", asked)
        raise AssertionError("the removal was answered")
    for fix in world.fixes(service, "a"):
        run_fix(service.engine, service.connections.get("a"), fix.data.action)


def prepare_lost_copy(world: World, service: Service) -> None:
    """The newest entry has one replica, and so has the repository's record."""
    world.chain(service, "a")
    version = service.connections.get("a").state().version
    (world.folder / "a" / "log" / f"{version:016x}.a").unlink()
    (world.folder / "a" / "repository.a").unlink()


def connect_again(world: World, service: Service) -> None:
    """Connect the repository anew, as another process would, and write an entry."""
    (world.folder / "a").resolve().joinpath("repository.b").unlink()
    service.connections.disconnect("a")
    parameters = {"repoFormat": world.format, "connectionParameters": world.parameters("a")}
    call(service, "connectStorageRepository", {"repoId": "a", **parameters})


def prepare_old_entries(world: World, service: Service) -> None:
    """A log of which the next checkpoint trims much."""
    about_to_fold(world, service)
    old_s = time.time() - _TWO_DAYS_S
    for path in sorted((world.folder / "a" / "log").iterdir())[:20]:
        os.utime(path, (old_s, old_s))


def prepare_few_old_entries(world: World, service: Service) -> None:
    """A log with few entries that are many days old."""
    world.disk(service, "a", "d")
    change_user_data(world, service)
    old_s = time.time() - _TWO_DAYS_S
    for path in (world.folder / "a" / "log").iterdir():
        os.utime(path, (old_s, old_s))


def fold_again_and_again(world: World, service: Service) -> None:
    """Each entry is followed by a checkpoint, until the first checkpoints and the old entries are gone."""
    with mock.patch("diskyard.log.checkpoints._ENTRIES_BETWEEN", 1):
        for _ in range(CHECKPOINTS_KEPT + 1):
            change_user_data(world, service)


def remove_on_a_full_storage(world: World, service: Service) -> None:
    """The entry fits only into the reserve, which is filled again after the clean."""
    files = service.host.files
    write = files.write_temporary
    room = iter([False])

    def full_once(folder: str, data: bytes) -> str:
        if not next(room, True):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(folder, data)

    asked = {"repositoryId": "a", "imageId": world.names["d"], "options": LATER}
    with mock.patch.object(files, "write_temporary", full_once):
        call(service, "removeImage", asked)
    fix_first("a", "clean")(world, service)


# -- repositories ---------------------------------------------------------------------------


def create_repository(world: World, service: Service) -> None:
    """Make a repository in a directory that does not exist yet."""
    asked = {"repoFormat": world.format, "connectionParameters": world.parameters(NEW_PLACE)}
    call(service, "createStorageRepository", asked)


def judge_created(world: World, answered: bool) -> None:
    """The repository exists, or creating it again completes it. Then it works."""
    service = world.service(host_named("successor"), connected=False)
    _require_repository(world, service, NEW_PLACE, may_be_absent=not answered)
    asked = {"targetRepoId": NEW_PLACE, "size": SIZE_BYTES, "options": NEW}
    call(service, "createVirtualDisk", asked)
    service.close()


def judge_removed(world: World, answered: bool) -> None:
    """It is gone; or it is closed and can be removed again; or only its closed log is left."""
    service = world.service(host_named("successor"), connected=False)
    asked = {"repoFormat": world.format, "connectionParameters": world.parameters("b")}
    try:
        call(service, "connectStorageRepository", {"repoId": "b", **asked})
    except errors.NotARepository:
        assert not (answered and any((world.folder / "b").iterdir())), "names came back"
        shutil.rmtree(world.folder / "b")
    else:
        assert not answered
        call(service, "removeStorageRepository", {"repositoryId": "b"})
    _require_repository(world, service, "b", may_be_absent=True)
    service.close()


def remove_again(world: World, service: Service) -> None:
    """Remove what is left of it, unless it is not a repository any more."""
    asked = {"repoFormat": world.format, "connectionParameters": world.parameters("b")}
    with contextlib.suppress(errors.NotARepository):
        call(service, "connectStorageRepository", {"repoId": "b", **asked})
        call(service, "removeStorageRepository", {"repositoryId": "b"})


def _require_repository(world: World, service: Service, place: str, *, may_be_absent: bool) -> None:
    asked = {"repoFormat": world.format, "connectionParameters": world.parameters(place)}
    try:
        call(service, "connectStorageRepository", {"repoId": place, **asked})
    except errors.NotARepository:
        assert may_be_absent, f"the repository {place} is there"
        call(service, "createStorageRepository", asked)
        call(service, "connectStorageRepository", {"repoId": place, **asked})


# -- bytes ----------------------------------------------------------------------------------


def prepare_scattered(world: World, service: Service) -> None:
    """A copy of d committed in b. The data of d is in many places, in several layers."""
    world.disk(service, "a", "d")
    for index in range(8):
        world.write(service, "a", "d", index + 1, index * 256 * KIB, 64 * KIB)
    world.snapshot(service, "a", "d", "s1")
    for index in range(4):
        world.write(service, "a", "d", index + 16, (2 * index * 256 + 32) * KIB, 96 * KIB)
    new("copyImage", targetRepoId="b", imageId="@d")(world, service)


def mend_with_checkpoints(world: World, service: Service) -> None:
    """Progress is written after each move, so that another host goes on from there."""
    with (
        mock.patch("diskyard.mover.copying.telling._BATCH_MOVES", 1),
        mock.patch.multiple("diskyard.mover.copying.moving", _CHECKPOINT_S=0.0, _IN_FLIGHT_MOST=1),
    ):
        fix_first("b", "mend")(world, service)


def prepare_shorter_parent(world: World, service: Service) -> None:
    """A removed image that ends before the disk above it does, and before the image below it."""
    world.disk(service, "a", "base")
    world.write(service, "a", "base", 1, 0, SIZE_BYTES)
    _copy_small_onto_base(world, service, SIZE_BYTES // 2)
    world.snapshot(service, "a", "d", "s")
    call(
        service,
        "extendVirtualDisk",
        {"repositoryId": "a", "imageId": _SMALL_ID, "size": SIZE_BYTES, "options": LATER},
    )
    world.images["a", _SMALL_ID] += bytes(SIZE_BYTES // 2)
    world.write(service, "a", "d", 3, 64 * KIB, 512 * KIB)
    del world.images["a", world.names["s"]]
    call(service, "removeImage", {"repositoryId": "a", "imageId": world.names["s"], "options": LATER})


def prepare_shorter_parent_below(world: World, service: Service) -> None:
    """The same, with more data in it than above it: the data above is merged down, and makes it longer."""
    world.disk(service, "a", "base")
    world.write(service, "a", "base", 1, 0, SIZE_BYTES)
    _copy_small_onto_base(world, service, SIZE_BYTES // 2)
    world.write(service, "a", "d", 2, 0, 512 * KIB)
    world.snapshot(service, "a", "d", "s")
    call(
        service,
        "extendVirtualDisk",
        {"repositoryId": "a", "imageId": _SMALL_ID, "size": SIZE_BYTES, "options": LATER},
    )
    world.images["a", _SMALL_ID] += bytes(SIZE_BYTES // 2)
    world.write(service, "a", "d", 3, 1536 * KIB, 64 * KIB)
    del world.images["a", world.names["s"]]
    call(service, "removeImage", {"repositoryId": "a", "imageId": world.names["s"], "options": LATER})


def prepare_overlay_to_extend(world: World, service: Service) -> None:
    """A disk that is smaller than the image below it, which must not show when the disk grows.

    The disk ends in the middle of a cluster, of which it holds a part.
    """
    world.disk(service, "a", "base")
    world.write(service, "a", "base", 1, 0, SIZE_BYTES)
    _copy_small_onto_base(world, service, SIZE_BYTES // 2 + 4 * KIB)
    world.write(service, "a", "d", 4, SIZE_BYTES // 2, 4 * KIB)


def _copy_small_onto_base(world: World, service: Service, size_bytes: int) -> None:
    options = {**LATER, "newImageId": NEW_ID}
    call(service, "createVirtualDisk", {"targetRepoId": "b", "size": size_bytes, "options": options})
    world.names["small"] = NEW_ID
    world.images["b", NEW_ID] = bytes(size_bytes)
    world.write(service, "b", "small", 2, 0, 64 * KIB)
    asked = {"targetRepoId": "a", "imageId": NEW_ID, "baseImageId": world.names["base"]}
    call(service, "copyImage", {**asked, "options": {**LATER, "newImageId": _SMALL_ID}})
    world.names["d"] = _SMALL_ID
    world.images["a", _SMALL_ID] = world.images["b", NEW_ID]
    world.fix_all([service], Random(0))


def judge_at_once(world: World, answered: bool) -> None:
    """A reader of the disk, before anything is fixed, reads the same bytes, or these extended by zeros."""
    service = world.service(host_named("reader"))
    found, wanted = world.read(service, "a", _SMALL_ID), world.images["a", _SMALL_ID]
    assert found == wanted.ljust(len(found), b"\0"), "bytes before any fix"
    assert len(found) in (len(wanted), 2 * SIZE_BYTES)
    service.close()


EXTEND = verb("extendVirtualDisk", repositoryId="a", imageId="@d", size=2 * SIZE_BYTES, options=LATER)


def extended(world: World) -> dict[tuple[str, str], bytes]:
    """The disk is longer, by zeros."""
    data = bytes_of("d")(world)
    return {**world.images, ("a", world.names["d"]): data + bytes(2 * SIZE_BYTES - len(data))}


# -- files outside the repositories ---------------------------------------------------------


def export(world: World, service: Service) -> None:
    """Export a disk to a file, and wait for that."""
    path = str(world.folder / OUTSIDE / "exported.raw")
    asked = {"repositoryId": "a", "imageId": world.names["d"], "path": path, "format": "raw"}
    call(service, "exportImage", asked)
    assert service.tasks.wait(timeout_s=60)


def judge_exported(world: World, answered: bool) -> None:
    """The file exists and is whole; or, if there was no answer, it may not exist."""
    path = world.folder / OUTSIDE / "exported.raw"
    assert path.exists() or not answered
    assert not path.exists() or path.read_bytes() == bytes_of("d")(world)


DURABLE_SCENARIOS: list[Scenario] = [
    DiskScenario("clean after an unknown outcome", shapes.chain, fix_after_an_unknown_outcome, without("d")),
    DiskScenario(
        "create disk after a lost copy", prepare_lost_copy,
        new("createVirtualDisk", targetRepoId="a", size=SIZE_BYTES), with_new("a", zeros),
    ),
    DiskScenario("connect after a lost copy", shapes.chain, connect_again, same),
    DiskScenario("fold again and again", prepare_few_old_entries, fold_again_and_again, same),
    DiskScenario("trim", prepare_old_entries, change_user_data, same),
    DiskScenario("remove on a full storage", shapes.chain, remove_on_a_full_storage, without("d")),
    DiskScenario("create repository", shapes.chain, create_repository, same, judge=judge_created),
    DiskScenario(
        "remove repository", shapes.chain, verb("removeStorageRepository", repositoryId="b"), same,
        judge=judge_removed, complete=remove_again,
    ),
    DiskScenario(
        "create disk by a clone", shapes.chain,
        new("createVirtualDisk", targetRepoId="a", size=2 * SIZE_BYTES, baseSnapshotId="@s1"),
        with_new("a", lambda world: bytes_of("s1")(world) + bytes(SIZE_BYTES)), reflink=True,
    ),
    DiskScenario(
        "copy disk by a clone", shapes.lone,
        new("copyImage", targetRepoId="b", imageId="@d"), with_new("b", bytes_of("d")),
        reflink=True,
    ),
    DiskScenario(
        "mend by a clone", prepare_raw_copied, fix_first("b", "mend"), with_snapshot_in_b, reflink=True
    ),
    DiskScenario(
        "extend over a longer base", prepare_overlay_to_extend, EXTEND, extended, judge=judge_at_once
    ),
    DiskScenario(
        "take back an extend over a longer base", cut_extend(prepare_overlay_to_extend),
        fix_first("a", CleanSize), same, judge=judge_at_once,
    ),
    DiskScenario(
        "merge down over a longer base", prepare_shorter_parent_below, fix_first("a", "merge"), same,
        judge=judge_at_once,
    ),
    DiskScenario(
        "merge up over a longer base", prepare_shorter_parent, fix_first("a", "merge"), same,
        judge=judge_at_once,
    ),
    DiskScenario(
        "mend with checkpoints", prepare_scattered, mend_with_checkpoints, with_new("b", bytes_of("d"))
    ),
    DiskScenario("export to the disk", shapes.chain, export, same, judge=judge_exported),
]  # fmt: skip
