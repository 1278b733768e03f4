"""Every operation and fix, each on a world of its own: what crashes, faults and power cuts interrupt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from diskyard.fixes.runner import run_fix
from diskyard.service import Service, call
from diskyard.testing.world import KIB, SIZE_BYTES, World

LATER = {"AutoFix": False}
NEW_ID = "11111111-2222-4333-8444-555555555555"


@dataclass(frozen=True)
class Scenario:
    """One operation or fix.

    :param prepare: builds what it works on.
    :param act: does it, on the host that dies.
    :param after: what must be there once it is done: bytes by place and image id.
    """

    name: str
    prepare: Callable[[World, Service], None]
    act: Callable[[World, Service], Any]
    after: Callable[[World], dict[tuple[str, str], bytes]]


def prepare_chain(world: World, service: Service) -> None:
    """A chain in repository a."""
    world.chain(service, "a")


def fix_first(place: str, kind: str) -> Callable[[World, Service], None]:
    """Run the first listed fix of a type, in this thread."""

    def act(world: World, service: Service) -> None:
        fix = next(f for f in world.fixes(service, place) if f.type == kind and f.runnable)
        run_fix(service.engine, service.connections.get(place), fix.data.action)

    return act


def same(world: World) -> dict[tuple[str, str], bytes]:
    """Nothing that a caller sees changes."""
    return dict(world.images)


def with_new(place: str, data: Callable[[World], bytes]) -> Callable[[World], dict[tuple[str, str], bytes]]:
    """One more image."""
    return lambda world: {**world.images, (place, NEW_ID): data(world)}


def zeros(world: World) -> bytes:
    """An empty disk."""
    return bytes(SIZE_BYTES)


def bytes_of(name: str) -> Callable[[World], bytes]:
    """What an image of repository a holds."""
    return lambda world: world.images["a", world.names[name]]


def verb(name: str, **parameters: Any) -> Callable[[World, Service], Any]:
    """Call a verb; values that begin with @ are names of the world."""

    def act(world: World, service: Service) -> Any:
        resolved = {
            key: world.names[value[1:]] if isinstance(value, str) and value.startswith("@") else value
            for key, value in parameters.items()
        }
        return call(service, name, resolved)

    return act


def prepare_removed_middle(world: World, service: Service) -> None:
    """s2 is removed and not merged yet."""
    world.chain(service, "a")
    _remove(world, service, "s2")


def prepare_removed_root(world: World, service: Service) -> None:
    """s1, the raw root of the chain, is removed and not merged yet."""
    world.chain(service, "a")
    _remove(world, service, "s1")


def _remove(world: World, service: Service, name: str) -> None:
    image_id = world.names[name]
    call(service, "removeImage", {"repositoryId": "a", "imageId": image_id, "options": LATER})
    del world.images["a", image_id]


def prepare_small_parent(world: World, service: Service) -> None:
    """A removed overlay with less data than the one above it: merged upwards."""
    world.disk(service, "a", "d")
    world.write(service, "a", "d", 1, 0, 512 * KIB)
    world.snapshot(service, "a", "d", "s1")
    world.write(service, "a", "d", 2, 256 * KIB, 64 * KIB)
    world.snapshot(service, "a", "d", "s2")
    world.write(service, "a", "d", 3, 512 * KIB, 1024 * KIB)
    _remove(world, service, "s2")


def prepare_doomed(world: World, service: Service) -> None:
    """A disk removed, its volumes not deleted yet."""
    world.chain(service, "a")
    for name in ("d", "s2"):
        _remove(world, service, name)


def prepare_copied(world: World, service: Service) -> None:
    """A copy of d committed in b, its data not moved yet."""
    world.chain(service, "a")
    options = {**LATER, "newImageId": NEW_ID}
    call(service, "copyImage", {"targetRepoId": "b", "imageId": world.names["d"], "options": options})


def prepare_performance(world: World, service: Service) -> None:
    """A degraded image."""
    world.chain(service, "a")
    parameters = {"repositoryId": "a", "imageId": world.names["d"], "strategy": "performance"}
    call(service, "setStrategy", parameters)


def prepare_base(world: World, service: Service) -> None:
    """A full copy of d in b, and d changed since."""
    prepare_copied(world, service)
    data = world.images["a", world.names["d"]]
    world.fix_all([service], Random(0))
    world.names["base"] = NEW_ID
    world.images["b", NEW_ID] = data
    world.write(service, "a", "d", 9, 1024 * KIB, 64 * KIB)


def prepare_file(world: World, service: Service) -> Path:
    """A file to import, outside of the repositories."""
    path = world.folder / "import.raw"
    path.write_bytes(bytes_to_import(world))
    return path


def bytes_to_import(world: World) -> bytes:
    """What that file holds."""
    return bytes([7]) * (256 * KIB) + bytes(SIZE_BYTES - 256 * KIB)


def import_file(world: World, service: Service) -> Any:
    """Commit an import of the file."""
    parameters = {"targetRepoId": "a", "path": str(prepare_file(world, service)), "format": "raw"}
    return call(service, "importImage", {**parameters, "options": NEW})


def prepare_imported(world: World, service: Service) -> None:
    """An import committed, its data not moved yet."""
    import_file(world, service)


def prepare_lost(world: World, service: Service) -> None:
    """A Snapshot that is whole in b, and whose volume in a is gone."""
    world.chain(service, "a")
    snapshot_id = world.names["s2"]
    parameters = {"targetRepoId": "b", "imageId": snapshot_id, "options": LATER}
    call(service, "copyImage", parameters)
    world.fix_all([service], Random(0))
    world.images["b", snapshot_id] = world.images["a", snapshot_id]
    state = service.connections.get("a").state()
    volume = state.volumes[str(state.images[snapshot_id].volume_id)]
    next((world.folder / "a" / "volumes").glob(f"*{volume.id}*")).unlink()


def prepare_many_entries(world: World, service: Service) -> None:
    """A log that is about to be folded into a checkpoint, and trimmed."""
    del world.user_data["a", world.disk(service, "a", "d")]
    opened = service.connections.get("a")
    while opened.state().version % 64 != 63 or opened.state().version < 4 * 64:
        change_user_data(world, service)


def change_user_data(world: World, service: Service) -> None:
    """An entry that changes nothing of the bytes."""
    version = service.connections.get("a").state().version
    asked = {"repositoryId": "a", "imageId": world.names["d"], "userData": version}
    call(service, "setUserData", asked)


NEW = {**LATER, "newImageId": NEW_ID}
OTHER_ID = "22222222-2222-4333-8444-555555555555"
SCENARIOS = [
    Scenario(
        "create disk", prepare_chain,
        verb("createVirtualDisk", targetRepoId="a", size=SIZE_BYTES, options=NEW), with_new("a", zeros),
    ),
    Scenario(
        "create disk from snapshot", prepare_chain,
        verb("createVirtualDisk", targetRepoId="a", size=SIZE_BYTES, baseSnapshotId="@s1", options=NEW),
        with_new("a", bytes_of("s1")),
    ),
    Scenario(
        "create snapshot", prepare_chain,
        verb("createSnapshot", targetRepoId="a", baseVirtualDiskId="@d", options=NEW),
        with_new("a", bytes_of("d")),
    ),
    Scenario(
        "copy disk", prepare_chain,
        verb("copyImage", targetRepoId="b", imageId="@d", options=NEW), with_new("b", bytes_of("d")),
    ),
    Scenario(
        "copy disk onto a disk as base", prepare_base,
        verb(
            "copyImage", targetRepoId="b", imageId="@d", baseImageId="@base",
            options={**LATER, "newImageId": OTHER_ID},
        ),
        lambda world: {**world.images, ("b", OTHER_ID): bytes_of("d")(world)},
    ),
    Scenario(
        "copy snapshot", prepare_chain, verb("copyImage", targetRepoId="b", imageId="@s2", options=LATER),
        lambda world: {**world.images, ("b", world.names["s2"]): bytes_of("s2")(world)},
    ),
    Scenario(
        "revert", prepare_chain,
        verb("revertVirtualDisk", repositoryId="a", imageId="@d", snapshotId="@s1", options=LATER),
        lambda world: {**world.images, ("a", world.names["d"]): bytes_of("s1")(world)},
    ),
    Scenario(
        "extend", prepare_chain,
        verb("extendVirtualDisk", repositoryId="a", imageId="@d", size=2 * SIZE_BYTES, options=LATER),
        lambda world: {
            **world.images, ("a", world.names["d"]): bytes_of("d")(world) + bytes(SIZE_BYTES),
        },
    ),
    Scenario(
        "remove", prepare_chain, verb("removeImage", repositoryId="a", imageId="@s2", options=LATER),
        lambda world: {k: v for k, v in world.images.items() if k != ("a", world.names["s2"])},
    ),
    Scenario("clean", prepare_doomed, fix_first("a", "clean"), same),
    Scenario("merge down into qcow2", prepare_removed_middle, fix_first("a", "merge"), same),
    Scenario("merge down into raw", prepare_removed_root, fix_first("a", "merge"), same),
    Scenario("merge up", prepare_small_parent, fix_first("a", "merge"), same),
    Scenario("optimize", prepare_performance, fix_first("a", "optimize"), same),
    Scenario("import", prepare_chain, import_file, with_new("a", bytes_to_import)),
    Scenario("mend an import", prepare_imported, fix_first("a", "mend"), with_new("a", bytes_to_import)),
    Scenario("restore", prepare_lost, fix_first("a", "mend"), same),
    Scenario(
        "prepare", prepare_chain, verb("prepareImage", repositoryId="a", imageId="@d"), same,
    ),
    Scenario("fold and trim", prepare_many_entries, change_user_data, same),
    Scenario("mend", prepare_copied, fix_first("b", "mend"), with_new("b", bytes_of("d"))),
]  # fmt: skip


def find_scenario(name: str) -> Scenario:
    """The scenario of this name."""
    return next(scenario for scenario in SCENARIOS if scenario.name == name)
