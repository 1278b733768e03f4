"""A folder of a repository that becomes a link, whenever: nothing in what it leads to is made or removed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from diskyard import errors
from diskyard.fixes.runner import run_fix
from diskyard.host import Host
from diskyard.host.identity import new_nonce, this_process
from diskyard.host.temporary import temporary_name
from diskyard.service import Service, call
from diskyard.storage.localfs import layout
from diskyard.testing.effort import Effort
from diskyard.testing.fault_runs import ROUNDS
from diskyard.testing.swaps import Swap, Swapper, swapped_host
from diskyard.testing.world import World, host_named
from tests.conftest import Tally

QUICK_MOMENTS = 2
NOT_REMOVED = "11111111-2222-4333-8444-555555555555"


def leftover() -> str:
    """The name of a temporary file whose process is gone."""
    return temporary_name(replace(this_process(Host.real().identity), boot_id=new_nonce()), 0)


#: In the folder outside there are names as Diskyard makes them in the folder that leads there.
NAMES = {
    layout.LOG: ["0000000000000000.a", "00000000000000ff.b"],
    layout.CHECKPOINTS: ["0000000000000000.a", "00000000000000ff.b"],
    layout.VOLUMES: [f"0000000000000001-{'ab' * 16}-{NOT_REMOVED}.raw"],
    layout.PROGRESS: [NOT_REMOVED],
    layout.TEMPORARY: [],
    layout.RESERVE: ["00001000.000", "00100000.001"],
}
FOLDERS = sorted(NAMES)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Empty repositories, and what a creation of a third has left that was cut short."""
    world = World(tmp_path_factory.mktemp("swaps") / "world")
    world.create()
    return world


def half_create(root: Path) -> None:
    for folder in layout.FOLDERS:
        (root / folder).mkdir(parents=True)
        (root / folder / leftover()).write_bytes(b"")
    (root / layout.LOCKS).write_bytes(b"")


def create(world: World, service: Service) -> None:
    asked = {"repoFormat": world.format, "connectionParameters": world.parameters("c")}
    call(service, "createStorageRepository", asked)


def remove(world: World, service: Service) -> None:
    call(service, "removeStorageRepository", {"repositoryId": "a"})


def work(world: World, service: Service) -> None:
    """Disks and Snapshots come and go; a second host's leftovers are cleaned."""
    for _ in range(2):
        with contextlib.suppress(errors.DiskyardError):
            disk = call(service, "createVirtualDisk", {"targetRepoId": "a", "size": 1 << 20})
            made = call(service, "createSnapshot", {"targetRepoId": "a", "baseVirtualDiskId": disk})
            for image in (made, disk):
                call(
                    service,
                    "removeImage",
                    {"repositoryId": "a", "imageId": image, "options": {"AutoFix": False}},
                )
        with contextlib.suppress(errors.DiskyardError):
            for fix in world.fixes(service, "a"):
                with contextlib.suppress(errors.DiskyardError):
                    run_fix(service.engine, service.connections.get("a"), fix.data.action)


ACTS: dict[str, Callable[[World, Service], None]] = {"create": create, "remove": remove, "work": work}


def look(folder: Path) -> dict[str, tuple[bytes, int, int, int]]:
    """What files are in a folder and what they hold; and whose they are, as the folder."""
    return {
        path.name: (
            path.read_bytes() if path.is_file() else b"",
            path.stat().st_uid,
            path.stat().st_gid,
            path.stat().st_mode,
        )
        for path in [folder, *folder.iterdir()]
    }


def run(prepared: World, folder: Path, act: str, which: str, swap: Swap | None) -> tuple[list[str], str]:
    """Do it with a swap; the calls that were made, and what was answered."""
    world = prepared.copied(folder)
    root = world.folder / ("c" if act == "create" else "a")
    if act == "create":
        half_create(root)
    victim = world.folder / "victim"
    victim.mkdir()
    for name in [*NAMES[which], leftover()]:
        (victim / name).write_bytes(b"precious")
    before = look(victim)
    wanted = (root / which).__eq__
    swapper = Swapper([root], wanted, lambda path: victim, world.folder / "stash")
    service = world.service(swapped_host(swapper, "swapped"))
    answer = ""
    swapper.begin(swap)
    try:
        ACTS[act](world, service)
    except errors.DiskyardError as error:
        answer = error.message
        if swap is None or isinstance(error, errors.InternalError):
            raise
    finally:
        swapper.end()
        service.close()
    assert look(victim) == before, f"{act}, {which}, {swap}"
    return swapper.calls, answer


@pytest.mark.parametrize("which", FOLDERS)
@pytest.mark.parametrize("act", ACTS)
def test_nothing_outside_is_made_or_removed(
    prepared: World, quick_folder: Path, act: str, which: str, effort: Effort, tally: Tally
) -> None:
    calls, _ = run(prepared, quick_folder / "whole", act, which, None)
    moments = effort.sample(range(1, len(calls)), QUICK_MOMENTS, act, which, rounds=ROUNDS)
    for at in (0, *moments):
        run(prepared, quick_folder / f"run-{at}", act, which, Swap(at, "symbolic link", None))
        tally("swaps", runs=1)
    tally("swaps", calls=len(calls))


@pytest.mark.parametrize("which", layout.FOLDERS)
@pytest.mark.parametrize("act", ["create", "remove"])
def test_what_is_in_the_way_is_named(prepared: World, quick_folder: Path, act: str, which: str) -> None:
    _, answer = run(prepared, quick_folder / "run", act, which, Swap(0, "symbolic link", None))
    assert which in answer


def test_a_repository_goes_on_when_its_folder_is_put_back(prepared: World, quick_folder: Path) -> None:
    world = prepared.copied(quick_folder / "world")
    service = world.service(host_named("host"))
    volumes, aside = world.folder / "a" / "volumes", world.folder / "aside"
    volumes.rename(aside)
    volumes.symlink_to(aside)
    asked = {"targetRepoId": "a", "size": 1 << 20}
    with pytest.raises(errors.StorageError, match="volumes") as caught:
        call(service, "createVirtualDisk", asked)
    assert "put the directory back" in caught.value.advice
    volumes.unlink()
    aside.rename(volumes)
    call(service, "createVirtualDisk", asked)
    service.close()


@pytest.mark.parametrize("which", [layout.LOG, layout.CHECKPOINTS])
def test_a_link_to_the_log_is_not_followed(prepared: World, quick_folder: Path, which: str) -> None:
    """Also not by a host that has been connected for long, though it leads to what was there."""
    world = prepared.copied(quick_folder / "world")
    service = world.service(host_named("host"))
    image_id = call(service, "createVirtualDisk", {"targetRepoId": "a", "size": 1 << 20})
    folder = world.folder / "a" / which
    folder.rename(world.folder / "elsewhere")
    folder.symlink_to(world.folder / "elsewhere")
    for name, more in {"getImageStatus": {}, "setUserData": {"userData": 1}, "removeImage": {}}.items():
        with pytest.raises(errors.RepositoryUnavailable):
            call(service, name, {"repositoryId": "a", "imageId": image_id, **more})
    service.close()
