"""Stories that once went wrong, in few words."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard.testing import pathless, rounded
from diskyard.testing.story_host import StoryHost, identity
from diskyard.testing.world import KIB, SIZE_BYTES, World, host_named

BOOT = host_named("").identity.boot_id


@pytest.fixture(params=["localfs-1.0", pathless.FORMAT, rounded.FORMAT])
def world(request: pytest.FixtureRequest, quick_folder: Path) -> World:
    """Disk d over snapshots s2 and s1, in repository a."""
    world = World(quick_folder / "world", format=request.param)
    world.create()
    service = world.service(host_named("builder"))
    world.chain(service, "a")
    service.close()
    return world


@pytest.fixture
def hosts(world: World) -> Iterator[tuple[StoryHost, StoryHost]]:
    """Two hosts that are processes."""
    started = (
        StoryHost(world, identity("host1", BOOT), "told"),
        StoryHost(world, identity("host2", BOOT), "told"),
    )
    for host in started:
        host.start()
    yield started
    for host in started:
        host.kill()


@pytest.mark.parametrize(
    ("verb", "more", "step"),
    [
        ("extendVirtualDisk", {"size": SIZE_BYTES + 64 * KIB}, "start qemu-storage-daemon"),
        ("exportImage", {"format": "qcow2"}, "start qemu-storage-daemon"),
        ("exportImage", {"format": "raw"}, "truncate"),
    ],
)
def test_a_merge_below_may_be_quicker(
    world: World, hosts: tuple[StoryHost, StoryHost], verb: str, more: dict[str, object], step: str
) -> None:
    """Who is about to open a chain finds a volume of it merged away: that is no failure of the storage."""
    slow, quick = hosts
    parameters = {"repositoryId": "a", "imageId": world.names["d"], **more}
    if verb == "exportImage":
        parameters["path"] = str(world.folder / "exported")
    service = world.service(host_named("looking"))
    removed = world.names["s1"]
    assert quick.run("removeImage", {"repositoryId": "a", "imageId": removed}).answer is not None
    del world.images["a", removed]
    assert slow.run_until(step, verb, parameters).held_before is not None
    fixes = [fix for place, fix in world.runnable(service) if place == "a" and fix.type == "merge"]
    assert len(fixes) == 1
    checked = quick.run("checkStorageRepository", {"repositoryId": "a", "options": {"types": ["merge"]}})
    assert checked.answer is not None
    ran = quick.run("fixStorageRepository", {"repositoryId": "a", "fix": checked.answer[0][0]})
    assert ran.ended == [("merge", "done", None)]
    heard = slow.go_on()
    codes = [heard.error["code"] if heard.error else None, *(code for _, _, code in heard.ended or [])]
    assert set(codes) <= {"LeaseHeld", None}  # or it goes on with what it had opened, or opens what there is
    if verb == "exportImage":
        parameters["path"] = str(world.folder / "exported again")
    again = slow.run(verb, parameters)
    assert again.error is None
    assert all(state == "done" for _, state, _ in again.ended or [])
    if verb == "extendVirtualDisk":
        world.images["a", world.names["d"]] += bytes(64 * KIB)
    service.close()
    services = [world.service(host_named(name)) for name in ("first", "second")]
    world.user_data.pop(("a", removed))
    world.fix_all(services, random.Random(0))
    world.judge(services[0])
    for one in services:
        one.close()
