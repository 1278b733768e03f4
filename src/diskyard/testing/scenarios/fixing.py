"""Every fix, and the damage or unfinished work for each of them."""

from __future__ import annotations

import contextlib
import random
import uuid
from pathlib import Path
from typing import Any
from unittest import mock

from diskyard import errors
from diskyard.model.fix import (
    CleanAttachment,
    CleanGarbage,
    CleanHold,
    CleanLeftover,
    CleanProgress,
    CleanReplica,
    CleanSize,
    CleanVolume,
)
from diskyard.model.records import entry_id
from diskyard.model.volume_name import VolumeName
from diskyard.planner import sizes
from diskyard.service import Service, call
from diskyard.testing.scenarios import shapes
from diskyard.testing.scenarios.base import (
    LATER,
    NEW_ID,
    Act,
    Scenario,
    both,
    bytes_of,
    fix_first,
    new,
    removed,
    same,
    verb,
    with_new,
)
from diskyard.testing.scenarios.operations import DISK_IN_A, import_bytes, import_file, pending_copy
from diskyard.testing.steps import Steps, stepping_host
from diskyard.testing.world import KIB, SIZE_BYTES, World

_DEEPEST = 33  # one more volume than a chain may have


def fix_all(world: World, service: Service) -> None:
    """Run all listed fixes, until none is listed."""
    world.fix_all([service], random.Random(0))


#: For what an interrupted scenario has left: its fixes are interrupted too.
FIX_ALL = Scenario("fix all", shapes.lone, fix_all, same)


# -- what there is to fix ---------------------------------------------------------------


def small_parent(world: World, service: Service) -> None:
    """A removed overlay with less data than the one above it, so that it is merged upwards."""
    world.disk(service, "a", "d")
    world.write(service, "a", "d", 1, 0, 512 * KIB)
    world.snapshot(service, "a", "d", "s1")
    world.write(service, "a", "d", 2, 256 * KIB, 64 * KIB)
    world.snapshot(service, "a", "d", "s2")
    world.write(service, "a", "d", 3, 512 * KIB, 1024 * KIB)
    removed("s2")(world, service)


def too_deep(world: World, service: Service) -> None:
    """A chain that is longer than it should be."""
    world.disk(service, "a", "d")
    for number in range(_DEEPEST):
        if number % 8 == 0:
            world.write(service, "a", "d", number + 1, number * 32 * KIB, 64 * KIB)
        world.snapshot(service, "a", "d", f"s{number}")


def garbage(world: World, service: Service) -> None:
    """A volume that the log named once and does not name now, as a suspended writer leaves it."""
    shapes.lone(world, service)
    state = service.connections.get("a").state()
    name = VolumeName(entry_id(state.version, state.nonce), str(uuid.UUID(int=7)), "raw")
    (world.folder / "a" / "volumes" / str(name)).write_bytes(b"garbage")


def abandoned(world: World, service: Service) -> None:
    """A volume whose making was interrupted, and a temporary file beside it, from an earlier boot."""
    shapes.chain(world, service)
    gone = world.service(stepping_host(Steps(), "gone-host", earlier_boot=True))
    files = gone.host.files
    create = files.create

    def fail(path: str, **more: Any) -> int:
        if "/volumes/" in path:
            files.write_temporary(str(Path(path).parent.parent / "temporary"), b"left")
            raise OSError(5, "injected")
        return create(path, **more)

    with mock.patch.object(files, "create", fail), contextlib.suppress(errors.StorageError):
        new("createSnapshot", targetRepoId="a", baseVirtualDiskId="@d")(world, gone)
        raise AssertionError("the snapshot was to fail")
    gone.close()


def attached_before_the_boot(world: World, service: Service) -> None:
    """An attachment from an earlier boot."""
    shapes.chain(world, service)
    gone = world.service(stepping_host(Steps(), "gone-host", earlier_boot=True))
    verb("prepareImage", **DISK_IN_A)(world, gone)
    gone.close()


def held_in_vain(world: World, service: Service) -> None:
    """A freeze point held for a copy that was removed before it was made."""
    pending_copy(world, service)
    removed("new", "b")(world, service)


def half_a_log(world: World, service: Service) -> None:
    """An entry and a checkpoint that lack one replica, and an entry with a damaged replica."""
    shapes.chain(world, service)
    log = world.folder / "a" / "log"
    names = sorted(path for path in log.iterdir())
    names[3].unlink()
    names[6].write_bytes(b"damaged")
    next((world.folder / "a" / "checkpoints").iterdir()).unlink()


def progress_of_nothing(world: World, service: Service) -> None:
    """Progress of an image that does not exist."""
    shapes.lone(world, service)
    service.connections.get("a").storage.put_progress(NEW_ID, b"{}")


def lost(world: World, service: Service) -> None:
    """A Snapshot that is whole in b, and whose volume in a is gone."""
    shapes.chain(world, service)
    snapshot_id = world.names["s2"]
    call(service, "copyImage", {"targetRepoId": "b", "imageId": snapshot_id, "options": LATER})
    world.fix_all([service], random.Random(0))
    world.images["b", snapshot_id] = world.images["a", snapshot_id]
    state = service.connections.get("a").state()
    volume = state.volumes[str(state.images[snapshot_id].volume_id)]
    next((world.folder / "a" / "volumes").glob(f"*{volume.id}*")).unlink()


def pending_difference(world: World, service: Service) -> None:
    """A difference to a disk of b, committed, its data not moved yet."""
    shapes.copied(world, service)
    new("copyImage", targetRepoId="b", imageId="@d", baseImageId="@base")(world, service)


def half_moved(world: World, service: Service) -> None:
    """A copy that an earlier boot began to move, and for which it wrote progress."""
    pending_copy(world, service)
    gone = world.service(stepping_host(Steps(), "gone-host", earlier_boot=True))

    class Enough(BaseException):
        """As if the process had ended there."""

    repo = gone.connections.get("b")
    put = repo.storage.put_progress

    def put_and_stop(image_id: str, data: bytes) -> None:
        put(image_id, data)
        raise Enough

    with mock.patch.object(repo.storage, "put_progress", put_and_stop), contextlib.suppress(Enough):
        fix_first("b", "mend")(world, gone)
        raise AssertionError("the copy was to be interrupted")
    gone.close()


def cut_extend(shape: Act) -> Act:
    """An extend of d that an earlier boot began, and for which it made the volume longer."""

    def act(world: World, service: Service) -> None:
        shape(world, service)
        gone = world.service(stepping_host(Steps(), "gone-host", earlier_boot=True))

        class Enough(Exception):
            pass

        dying = mock.patch.object(sizes, "seal_extend", side_effect=Enough)
        with dying, contextlib.suppress(errors.InternalError):
            verb("extendVirtualDisk", **DISK_IN_A, size=2 * SIZE_BYTES, options=LATER)(world, gone)
            raise AssertionError("the extend was to be cut")
        gone.close()

    return act


def grown_by_its_guest(world: World, service: Service) -> None:
    """A disk whose volume a guest's QEMU made longer without Diskyard."""
    shapes.lone(world, service)
    disk_id = world.names["d"]
    state = service.connections.get("a").state()
    path = next((world.folder / "a" / "volumes").glob(f"*{state.images[disk_id].volume_id}*"))
    added = bytes([5]) * (SIZE_BYTES // 2)
    with path.open("ab") as file:
        file.write(added)
    world.images["a", disk_id] += added


_PERFORMANCE = verb("setStrategy", **DISK_IN_A, strategy="performance")
FIXES = [
    Scenario(
        "clean", both(shapes.chain, removed("d"), removed("s2")), fix_first("a", CleanVolume), same,
    ),
    Scenario("clean garbage", garbage, fix_first("a", CleanGarbage), same),
    Scenario("clean abandoned work", abandoned, fix_first("a", CleanVolume), same),
    Scenario("clean a temporary file", abandoned, fix_first("a", CleanLeftover), same),
    Scenario("clean an attachment", attached_before_the_boot, fix_first("a", CleanAttachment), same),
    Scenario("clean a hold", held_in_vain, fix_first("a", CleanHold), same),
    Scenario("clean a replica", half_a_log, fix_first("a", CleanReplica), same),
    Scenario("clean progress", progress_of_nothing, fix_first("a", CleanProgress), same),
    Scenario("merge down into qcow2", both(shapes.chain, removed("s2")), fix_first("a", "merge"), same),
    Scenario("merge down into raw", both(shapes.chain, removed("s1")), fix_first("a", "merge"), same),
    Scenario("merge up", small_parent, fix_first("a", "merge"), same),
    Scenario("merge what nobody wrote", both(shapes.deep, removed("s6")), fix_first("a", "merge"), same),
    Scenario(
        "merge in branches", both(shapes.branching, removed("d"), removed("s2")), fix_first("a", "merge"),
        same,
    ),
    Scenario("optimize for performance", both(shapes.chain, _PERFORMANCE), fix_first("a", "optimize"), same),
    Scenario("reserve", both(shapes.lone, _PERFORMANCE), fix_first("a", "optimize"), same),
    Scenario("shorten", too_deep, fix_first("a", "optimize"), same, is_slow=True),
    Scenario("mend a copy", pending_copy, fix_first("b", "mend"), same),
    Scenario("mend a difference", pending_difference, fix_first("b", "mend"), with_new("b", bytes_of("d"))),
    Scenario("mend what was begun", half_moved, fix_first("b", "mend"), same),
    Scenario(
        "mend an import", both(shapes.lone, import_file("raw")), fix_first("a", "mend"),
        with_new("a", import_bytes),
    ),
    Scenario(
        "mend an import of qcow2", both(shapes.lone, import_file("qcow2")), fix_first("a", "mend"),
        with_new("a", import_bytes),
    ),
    Scenario("restore", lost, fix_first("a", "mend"), same),
    Scenario("take back an extend", cut_extend(shapes.chain), fix_first("a", CleanSize), same),
    Scenario("take over a size", grown_by_its_guest, fix_first("a", CleanSize), same),
]  # fmt: skip
