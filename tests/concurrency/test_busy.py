"""32 threads, and 8 processes, at the same few images: nothing locks up, nothing is lost."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from diskyard.testing.busy_host import Told, be_busy, changes_by
from diskyard.testing.effort import Effort
from diskyard.testing.world import KIB, World, host_named
from tests.conftest import Tally

TIMEOUT_S = 400.0


@pytest.mark.parametrize(("processes", "threads"), [(1, 32), (8, 4)])
def test_nothing_is_lost(
    processes: int, threads: int, quick_folder: Path, effort: Effort, tally: Tally
) -> None:
    """Every answer is kept, every error is one that others may cause, and fixes leave nothing over."""
    tally("concurrency")
    world = World(quick_folder / "world")
    hot = _prepare(world)
    operations = (1000 if effort.thorough else 256) // (processes * threads)
    told = be_busy(
        world,
        hot,
        processes=processes,
        threads=threads,
        operations=operations,
        seed=effort.seed,
        timeout_s=TIMEOUT_S,
    )
    assert told.unexpected == []
    _judge(world, hot, told)
    compared = sum(len(data) for data in world.images.values())
    tally("concurrency", operations=told.operations, errors=sum(told.codes.values()), bytes_compared=compared)


def _prepare(world: World) -> list[str]:
    world.create()
    service = world.service(host_named("builder"))
    for number, name in enumerate(("d1", "d2", "d3"), start=1):
        world.disk(service, "a", name)
        world.write(service, "a", name, number, number * 64 * KIB, 256 * KIB)
    service.close()
    return [world.names[name] for name in ("d1", "d2", "d3")]


def _judge(world: World, hot: list[str], told: Told) -> None:
    services = [world.service(host_named(name)) for name in ("first", "second")]
    state = services[0].connections.get("a").state()
    counted = state.images[hot[0]].user_data.get("count", 0)
    assert counted == told.increments, "each addition that was answered is counted once"
    said = [state.images[hot[1]].user_data]
    assert not told.user_data or said[0] in told.user_data
    for place in ("a", "b"):
        removals = sum(1 for removed in told.removed if removed[0] == place)
        assert changes_by(services[0], place, "removeImage") == removals
    changes = told.increments + len(told.user_data)
    assert changes_by(services[0], "a", "setUserData") == changes, "each change is one part of an entry"

    world.fix_all(services, random.Random(0))
    for disk in hot:
        world.images["a", disk] = _of_size(world, "a", disk, world.images["a", disk])
    for place, image_id, disk in told.made:
        if (place, image_id) not in told.removed:
            world.images[place, image_id] = _of_size(world, place, image_id, world.images["a", disk])
    world.user_data.clear()
    for service in services:
        world.judge(service)
        service.close()


def _of_size(world: World, place: str, image_id: str, data: bytes) -> bytes:
    """What an image must hold: the disk's bytes, and zeros where it was made larger."""
    service = world.service(host_named("looking"))
    image = service.connections.get(place).state().images.get(image_id)
    service.close()
    assert image is not None, f"{image_id} was answered, and is not in {place}"
    return data[: image.size_bytes].ljust(image.size_bytes, b"\0")
