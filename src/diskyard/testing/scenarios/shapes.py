"""Chains of several shapes, for operations to work on: disk "d", and snapshots below it."""

from __future__ import annotations

from random import Random

from diskyard.service import Service, call
from diskyard.testing.scenarios.base import LATER, removed
from diskyard.testing.world import KIB, World

_DEEP = 6
_BASE_ID = "22222222-2222-4333-8444-555555555555"
_DIFFERENCE_ID = "33333333-2222-4333-8444-555555555555"


def lone(world: World, service: Service) -> None:
    """A disk without a snapshot."""
    world.disk(service, "a", "d")
    world.write(service, "a", "d", 1, 0, 512 * KIB)


def chain(world: World, service: Service) -> None:
    """Disk "d" over snapshots "s2" and "s1"."""
    world.chain(service, "a")


def deep(world: World, service: Service) -> None:
    """Disk "d" over six snapshots, the newest of them unwritten."""
    world.disk(service, "a", "d")
    for number in range(1, _DEEP):
        world.write(service, "a", "d", number, number * 128 * KIB, 192 * KIB)
        world.snapshot(service, "a", "d", f"s{number}")
    world.snapshot(service, "a", "d", f"s{_DEEP}")


def branching(world: World, service: Service) -> None:
    """A chain whose snapshots have other disks over them as well."""
    chain(world, service)
    for base, disk in (("s1", "e"), ("s2", "f")):
        world.from_snapshot(service, "a", base, disk)
        world.write(service, "a", disk, 5, 64 * KIB, 128 * KIB)


def weak(world: World, service: Service) -> None:
    """A chain with a removed snapshot in the middle that two disks read, so that it stays."""
    chain(world, service)
    world.from_snapshot(service, "a", "s2", "f")
    world.write(service, "a", "f", 5, 64 * KIB, 128 * KIB)
    removed("s2")(world, service)


def copied(world: World, service: Service) -> None:
    """A chain in a, and "base", a whole copy of its disk in b. The disk was written to since."""
    chain(world, service)
    asked = {"targetRepoId": "b", "imageId": world.names["d"], "userData": {"made as": "base"}}
    call(service, "copyImage", {**asked, "options": {**LATER, "newImageId": _BASE_ID}})
    world.note("b", "base", _BASE_ID, world.images["a", world.names["d"]])
    world.fix_all([service], Random(0))
    world.write(service, "a", "d", 9, 1024 * KIB, 64 * KIB)


def tracked(world: World, service: Service) -> None:
    """The same, with the changes of the disk tracked since the copy."""
    lone(world, service)
    asked = {"targetRepoId": "b", "imageId": world.names["d"], "userData": {"made as": "base"}}
    options = {**LATER, "newImageId": _BASE_ID, "trackChanges": True}
    call(service, "copyImage", {**asked, "options": options})
    world.note("b", "base", _BASE_ID, world.images["a", world.names["d"]])
    world.fix_all([service], Random(0))
    world.write(service, "a", "d", 9, 1024 * KIB, 64 * KIB)


def across(world: World, service: Service) -> None:
    """Disk "x" in b, copied from a as its difference to "base", with a weak image in between."""
    copied(world, service)
    asked = {"targetRepoId": "b", "imageId": world.names["d"], "baseImageId": world.names["base"]}
    call(
        service,
        "copyImage",
        {**asked, "userData": {"made as": "x"}, "options": {"newImageId": _DIFFERENCE_ID}},
    )
    world.note("b", "x", _DIFFERENCE_ID, world.images["a", world.names["d"]])
    assert service.tasks.wait(timeout_s=60)
    world.fix_all([service], Random(0))
