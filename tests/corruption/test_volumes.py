"""Volumes replaced, cut, and with headers and tables that were damaged or written by somebody else.

A change inside a cluster of data cannot be told from what a guest wrote, nor an entry of a
table that was set to nothing from a cluster never written: no case here says so.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.service import call
from diskyard.testing.corruption import GONE, REPLACEMENTS, Damage, Outside, flipped
from diskyard.testing.effort import Effort
from diskyard.testing.survey import Survey, run_fixes, survey
from diskyard.testing.world import MIB, World, host_named
from tests.conftest import Tally
from tests.corruption.cases import Bench, expect_whole

CLUSTER = 64 << 10
CHAIN = ["s1", "s2", "d"]  # the root first


def volume_of(world: World, name: str) -> Path:
    """The file with the bytes of an image of repository a."""
    service = world.service(host_named("looker"))
    try:
        repository = service.connections.get("a")
        state = repository.state()
        layer = repository.chain(state, state.images[world.names[name]])[0]
        assert layer.path is not None
        return Path(layer.path)
    finally:
        service.close()


def reading(world: World, name: str) -> Callable[[str, str], bool]:
    """Whether an image reads the volume of another."""
    names = CHAIN[CHAIN.index(name) :] if name in CHAIN else [name]
    ids = {world.names[reader] for reader in names}
    return lambda place, image_id: place == "a" and image_id in ids


def expect_confined(world: World, found: Survey, name: str) -> None:
    """Only images that read the volume are refused, never wrong; they can be mended if they are elsewhere."""
    expect_whole(world, found, but=reading(world, name))
    concerned = [world.names[reader] for reader in CHAIN] if name in CHAIN else [world.names[name]]
    for step, error in found.errors.items():
        assert any(image_id in step + error.message for image_id in concerned) or " in a" in step, (
            step,
            error,
        )
        assert isinstance(error, errors.ImageBroken), (step, error)


def expect_named(world: World, found: Survey, path: Path, name: str) -> None:
    """The images that cannot be read are listed, and the volume is said."""
    assert path.stem[-36:] in found.words
    assert any(world.names[name] in words for words in found.listed), found.listed


#: A second name is no damage: see the next test.
REPLACED = [damage for damage in (*REPLACEMENTS, GONE) if damage.name != "second name of a secret"]


def test_a_backup_of_second_names(bench: Bench) -> None:
    """Hard links to its volumes break no image (I8), and what is deleted here stays there."""
    with bench.world() as world:
        kept = {}
        for name in (*CHAIN, "other"):
            path = volume_of(world, name)
            backup = world.folder / f"backup-{name}"
            backup.hardlink_to(path)
            kept[backup] = path.read_bytes()
        service = world.service(host_named("looker"))
        world.judge(service)
        service.close()
        assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.parametrize("damage", REPLACED, ids=str)
def test_replaced(bench: Bench, outside: Outside, effort: Effort, tally: Tally, damage: Damage) -> None:
    """What stands in a volume's place is not opened, shown, written or deleted."""
    tally("corruption")
    chosen = effort.sample(["s1", "s2", "d", "other"], 1, "replaced", damage)
    for name in chosen:
        with bench.world() as world:
            path = volume_of(world, name)
            damage.apply(path, outside)
            found = survey(world)
            expect_confined(world, found, name)
            expect_named(world, found, path, name)
            if name == "s2":
                # It is whole in the other repository: restored, and what reads it with it.
                later = survey(world, "later", only_ask=True)
                expect_whole(world, later)
        outside.judge()
    tally("corruption", cases=len(chosen), runs=len(chosen))


@pytest.mark.parametrize(
    "damage", [damage for damage in REPLACED if damage.name.startswith("folder")], ids=str
)
def test_restored_beside_a_folder(bench: Bench, outside: Outside, tally: Tally, damage: Damage) -> None:
    """A folder in a volume's place is no volume: the volume is restored, and forgotten, without it."""
    tally("corruption", cases=1, runs=1)
    with bench.world() as world:
        path = volume_of(world, "s2")
        damage.apply(path, outside)
        kept = list(path.iterdir())
        found = survey(world)
        assert not [step for step in found.errors if step.startswith("fix")]
        service = world.service(host_named("looker"))
        world.judge(service)
        assert not [
            fix for fix in world.fixes(service, "a") if "only people can decide" not in (fix.waits_for or "")
        ]
        service.close()
        assert list(path.iterdir()) == kept


def edited(change: Callable[[bytearray, Outside], None]) -> Callable[[Path, Outside], None]:
    """A damage inside a file."""

    def apply(path: Path, outside: Outside) -> None:
        data = bytearray(path.read_bytes())
        change(data, outside)
        path.write_bytes(bytes(data))

    return apply


def put(form: str, offset: int, *values: int) -> Callable[[bytearray, Outside], None]:
    """Big-endian fields at an offset."""
    return lambda data, outside: struct.pack_into(form, data, offset, *values)


def _extension(data: bytearray, kind: int, content: bytes) -> None:
    """A header extension before all others; the backing file's name goes."""
    struct.pack_into(">QI", data, 8, 0, 0)
    begin = struct.unpack_from(">I", data, 100)[0]
    padded = content.ljust(-(-len(content) // 8) * 8, b"\0")
    extension = struct.pack(">II", kind, len(content)) + padded + bytes(8)
    data[begin : begin + len(extension)] = extension


def _data_file(data: bytearray, outside: Outside) -> None:
    _extension(data, 0x44415441, str(outside.secret).encode())
    struct.pack_into(">Q", data, 72, 1 << 2)


def _data_file_without_its_bit(data: bytearray, outside: Outside) -> None:
    _extension(data, 0x44415441, str(outside.secret).encode())


def _raw_data_file(data: bytearray, outside: Outside) -> None:
    _data_file(data, outside)
    struct.pack_into(">Q", data, 88, 1 << 1)


def _backing_file(data: bytearray, outside: Outside) -> None:
    name = str(outside.secret).encode()
    struct.pack_into(">QI", data, 8, 1024, len(name))
    data[1024 : 1024 + len(name)] = name


def _far_backing_file(data: bytearray, outside: Outside) -> None:
    name = str(outside.secret).encode()
    struct.pack_into(">QI", data, 8, 8192, len(name))
    data[8192 : 8192 + len(name)] = name


def _many_extensions(data: bytearray, outside: Outside) -> None:
    begin = struct.unpack_from(">I", data, 100)[0]
    struct.pack_into(">QI", data, 8, 0, 0)
    for offset in range(begin, 8192, 8):
        struct.pack_into(">II", data, offset, 0x12345678, 0)


#: What a header must never have: each is refused without opening the file in QEMU.
HOSTILE = {
    "data file": _data_file,
    "raw data file": _raw_data_file,
    "data file without its bit": _data_file_without_its_bit,
    "backing file": _backing_file,
    "backing file beyond the header": _far_backing_file,
    "extensions without an end": _many_extensions,
    "LUKS": put(">I", 32, 2),
    "AES": put(">I", 32, 1),
    "dirty": put(">Q", 72, 1),
    "corrupt": put(">Q", 72, 2),
    "compression": put(">Q", 72, 8),
    "extended entries": put(">Q", 72, 16),
    "unknown feature": put(">Q", 72, 1 << 40),
    "snapshots": put(">IQ", 60, 3, CLUSTER),
    "version 2": put(">I", 4, 2),
    "version 4": put(">I", 4, 4),
    "smaller": put(">Q", 24, MIB),
    "no size": put(">Q", 24, 0),
    "endless": put(">Q", 24, (1 << 64) - 512),
    "odd size": put(">Q", 24, 2 * MIB + 1),
    "small clusters": put(">I", 20, 9),
    "huge clusters": put(">I", 20, 0xFFFFFFFF),
    "L1 beyond the file": put(">Q", 40, 1 << 40),
    "L1 on the header": put(">Q", 40, 0),
    "L1 on the refcounts": put(">Q", 40, CLUSTER),
    "L1 misaligned": put(">Q", 40, 3 * CLUSTER + 8),
    "L1 endless": put(">I", 36, 0xFFFFFFFF),
    "L1 too small": put(">I", 36, 0),
    "refcounts beyond the file": put(">Q", 48, 1 << 40),
    "refcounts on the header": put(">Q", 48, 0),
    "no refcounts": put(">I", 56, 0),
    "endless refcounts": put(">I", 56, 0xFFFFFFFF),
    "wide refcounts": put(">I", 96, 6),
    "impossible refcounts": put(">I", 96, 0xFFFFFFFF),
    "short header": put(">I", 100, 8),
    "long header": put(">I", 100, 1 << 31),
}


def use_every_way(world: World, found: Survey, outside: Outside) -> None:
    """Ask of a disk all that makes QEMU open its chain."""
    service = world.service(host_named("user"))
    disk, later = world.names["d"], {"AutoFix": False}
    asked = {"repositoryId": "a", "imageId": disk}
    verbs = {
        "prepareImage": {**asked, "options": {"owner": "guest"}},
        "copyImage": {"targetRepoId": "b", "imageId": disk, "options": later},
        "createSnapshot": {"targetRepoId": "a", "baseVirtualDiskId": disk, "options": later},
        "extendVirtualDisk": {**asked, "size": 4 * MIB, "options": later},
        "setStrategy": {**asked, "strategy": "performance"},
        "removeImage": {"repositoryId": "a", "imageId": world.names["s2"], "options": later},
    }
    for verb, parameters in verbs.items():
        found.step(f"{verb} {disk} in a", partial(call, service, verb, parameters))
    run_fixes(found, service)
    service.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header(bench: Bench, outside: Outside, tally: Tally, name: str) -> None:
    """No program opens the volume; its images are refused by name, and the others are as they were."""
    tally("corruption")
    expect_refused(bench, outside, name)
    tally("corruption", cases=1, runs=1)


def expect_refused(bench: Bench, outside: Outside, name: str) -> None:
    """One hostile header."""
    with bench.world() as world:
        path = volume_of(world, "d")
        edited(HOSTILE[name])(path, outside)
        found = Survey(world)
        use_every_way(world, found, outside)
        found.judge_silence()
        assert isinstance(found.errors[f"prepareImage {world.names['d']} in a"], errors.ImageBroken)
        assert isinstance(found.errors[f"copyImage {world.names['d']} in a"], errors.ImageBroken)
        del world.images["a", world.names["s2"]]  # removed there, and kept as a weak one for the disk
        found = survey(world)
        expect_confined(world, found, "d")
        expect_named(world, found, path, "d")
    outside.judge()


SIZE_FIELD = range(24, 32)


def test_every_byte_of_a_header(bench: Bench, outside: Outside, effort: Effort, tally: Tally) -> None:
    """Refused, or harmless: the images have their bytes."""
    tally("corruption")
    offsets = [*range(112), *range(112, 4096, 64)]
    chosen = effort.sample([(at, mask) for at in offsets for mask in (0x01, 0x80)], 12, "header bytes")
    for at, mask in chosen:
        with bench.world() as world:
            flipped(at, mask).apply(volume_of(world, "d"), outside)
            found = survey(world)
            if at in SIZE_FIELD:
                expect_growth(world, found)
            expect_confined(world, found, "d")
        outside.judge()
    tally("corruption", cases=len(chosen), runs=len(chosen))


def expect_growth(world: World, found: Survey) -> None:
    """A larger size looks as if the guest's QEMU had made it so, and is taken over: what is new is zeros."""
    for key, data in world.images.items():
        grown = found.bytes.get(key, b"")
        if len(grown) > len(data):
            assert grown == data.ljust(len(grown), b"\0")
            world.images[key] = grown


#: Entries of the tables of an overlay with data: where they are, and what is put there.
TABLES = {
    "L1 entry beyond the file": put(">Q", 3 * CLUSTER, (1 << 63) | (1 << 40)),
    "L1 entry on the header": put(">Q", 3 * CLUSTER, (1 << 63) | CLUSTER),
    "L1 entry misaligned": put(">Q", 3 * CLUSTER, (1 << 63) | (4 * CLUSTER + 512)),
    "refcount table to nowhere": put(">Q", CLUSTER, 1 << 40),
    "refcount table misaligned": put(">Q", CLUSTER, 2 * CLUSTER + 512),
    "no refcount block": put(">Q", CLUSTER, 0),
    "no refcounts": put(">8Q", 2 * CLUSTER, *(0 for _ in range(8))),
    "L2 entry beyond the file": put(">Q", 4 * CLUSTER + 88, (1 << 63) | (1 << 40)),
    "L2 entry on the L1 table": put(">Q", 4 * CLUSTER + 88, (1 << 63) | (3 * CLUSTER)),
    "L2 entry on the refcounts": put(">Q", 4 * CLUSTER + 88, (1 << 63) | (2 * CLUSTER)),
    "L2 entry misaligned": put(">Q", 4 * CLUSTER + 88, (1 << 63) | (5 * CLUSTER + 512)),
}


@pytest.mark.parametrize("name", TABLES)
def test_damaged_tables(bench: Bench, outside: Outside, tally: Tally, name: str) -> None:
    """A deep check finds it, and the image is broken from then on."""
    tally("corruption")
    with bench.world() as world:
        path = volume_of(world, "d")
        edited(TABLES[name])(path, outside)
        found = survey(world)
        expect_confined(world, found, "d")
        expect_named(world, found, path, "d")
        assert ("a", world.names["d"]) not in found.bytes
    tally("corruption", cases=1, runs=1)
