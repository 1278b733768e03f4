"""Records with a right checksum that no Diskyard writes: refused as damage, by name, with no harm done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from diskyard import errors
from diskyard.host import Host
from diskyard.log.codec import MAJOR, MINOR, Checkpoint, _checksum, decode
from diskyard.log.log import Log
from diskyard.model.state import State
from diskyard.model.transaction import Entry
from diskyard.storage.localfs import connect
from diskyard.testing.corruption import Outside
from diskyard.testing.effort import Effort
from diskyard.testing.survey import survey, watchdog
from diskyard.testing.world import World
from tests.conftest import Tally
from tests.corruption.cases import Bench, copies_of, expect_readable, expect_whole

ID = "99999999-2222-4333-8444-555555555555"
OTHER = "99999999-2222-4333-8444-666666666666"
PATH = "../../../../outside/secret"
NONCE = "0123456789abcdef0123456789abcdef"
Words = dict[str, Any]


class Known:
    """Records of the prepared world, as the log writes them, to be changed."""

    def __init__(self, world: World, state: State) -> None:
        self._world, self._state = world, state

    def image(self, name: str, **changes: Any) -> Words:
        """An image's record, changed."""
        return {**msgspec.to_builtins(self._state.images[self._world.names[name]]), **changes}

    def volume(self, name: str, **changes: Any) -> Words:
        """The record of an image's volume, changed."""
        volume_id = self._state.images[self._world.names[name]].volume_id
        return {**msgspec.to_builtins(self._state.volumes[str(volume_id)]), **changes}

    def id(self, name: str) -> str:
        """An image's id."""
        return self._world.names[name]

    def attachment(self, name: str, *volume_ids: str, **changes: Any) -> Words:
        """An attachment for writing to an image."""
        host = {"hostId": "h", "machineId": "m", "bootId": "b"}
        fields = {"id": ID, "imageId": self._world.names[name], "host": host, "owner": "surveyor"}
        more = {"mode": "read_only", "volumeIds": list(volume_ids), "attachedAt": ""}
        return {**fields, **more, **changes}


def _images(*records: Words) -> Words:
    return {"putImages": list(records)}


def _volumes(*records: Words) -> Words:
    return {"putVolumes": list(records)}


def _all_on(known: Known, volume_id: str) -> Words:
    ids = (f"{number:08x}-2222-4333-8444-555555555555" for number in range(20_000))
    return _images(*(known.image("d", id=image_id, volumeId=volume_id) for image_id in ids))


#: What an entry's changes may say that is impossible.
CHANGES: dict[str, Callable[[Known], Words]] = {
    "a path for an image": lambda k: _images(k.image("d", id=PATH)),
    "an image's id in capitals": lambda k: _images(k.image("d", id=ID.replace("9", "A"))),
    "an id and a line's end": lambda k: _images(k.image("d", id=ID + "\n")),
    "a long id": lambda k: _images(k.image("d", id="9" * 1_000_000)),
    "a path for a volume": lambda k: {
        **_volumes(k.volume("d", id=PATH)), **_images(k.image("d", volumeId=PATH))
    },
    "a path for a parent": lambda k: _volumes(k.volume("d", parentImageId=PATH)),
    "a path as a volume's format": lambda k: _volumes(k.volume("d", format="/../" + PATH)),
    "a path in an attachment": lambda k: {"putAttachments": [k.attachment("d", PATH)]},
    "a path in a hold": lambda k: _images(
        k.image("s1", heldFor=[{"purpose": "track", "targetMarker": "m", "diskId": PATH, "copyId": PATH}])
    ),
    "a path in a building record": lambda k: _volumes(
        k.volume("d", id=ID, state="building", building={"workId": "w", "imageId": PATH})
    ),
    "a negative size": lambda k: _images(k.image("d", sizeBytes=-512)),
    "an enormous size": lambda k: _images(k.image("d", sizeBytes=1 << 63)),
    "a size beyond all integers": lambda k: _volumes(k.volume("d", sizeBytes=1 << 200)),
    "an odd size": lambda k: _volumes(k.volume("d", sizeBytes=513)),
    "a size in words": lambda k: _volumes(k.volume("d", sizeBytes="large")),
    "a negative number": lambda k: _volumes(k.volume("d", namedBy=f"-1.{NONCE}")),
    "a number of 67 bits": lambda k: _volumes(k.volume("d", namedBy=f"{10**20}.{NONCE}")),
    "a number alone": lambda k: _volumes(k.volume("d", namedBy=1)),
    "a path in the nonce of a name": lambda k: _volumes(k.volume("d", namedBy=f"1.{PATH}")),
    "a line in the nonce of a name": lambda k: _volumes(k.volume("d", namedBy=f"1.{NONCE}\n")),
    "a negative generation": lambda k: _images(k.image("d", dataGeneration=f"-1.{NONCE}")),
    "a volume that reads itself": lambda k: _volumes(k.volume("d", parentImageId=k.id("d"))),
    "a circle": lambda k: _volumes(k.volume("s1", format="qcow2", parentImageId=k.id("d"))),
    "a circle through an image": lambda k: _images(k.image("s1", volumeId=k.volume("d")["id"])),
    "a volume that is not there": lambda k: _images(k.image("d", volumeId=ID)),
    "20,000 images on a volume that is not there": lambda k: _all_on(k, ID),
    "20,000 images on one volume": lambda k: _all_on(k, k.volume("d")["id"]),
    "a parent that is not there": lambda k: _volumes(k.volume("d", parentImageId=ID)),
    "no volume": lambda k: _images(k.image("d", volumeId=None)),
    "a raw volume above another": lambda k: _volumes(k.volume("d", format="raw")),
    "a doomed volume in use": lambda k: _volumes(k.volume("d", state="doomed")),
    "a building volume in use": lambda k: _volumes(
        k.volume("s1", state="building", building={"workId": "w", "imageId": ID})
    ),
    "two disks on one volume": lambda k: _images(k.image("d", id=ID)),
    "a disk on a volume that another reads": lambda k: _images(
        k.image("other", visibility="weak", volumeId=k.volume("s1")["id"])
    ),
    "strong and consumed": lambda k: _images(k.image("s1", consumedBy=ID)),
    "an attachment of nothing": lambda k: {"putAttachments": [k.attachment("d", ID, imageId=OTHER)]},
    "an attachment without volumes": lambda k: {"putAttachments": [k.attachment("d")]},
    "an attachment of strange volumes": lambda k: {"putAttachments": [k.attachment("d", ID)]},
    "an attachment of another's volume": lambda k: {
        "putAttachments": [k.attachment("d", k.volume("other")["id"], mode="read_write")]
    },
    "an attachment of a Snapshot's volume": lambda k: {
        "putAttachments": [k.attachment("d", k.volume("s1")["id"], mode="read_write")]
    },
    "a removal of nothing": lambda k: {"removeImages": [ID]},
    "a removal of no volume": lambda k: {"removeVolumes": [PATH]},
    "a removal of a parent": lambda k: {"removeImages": [k.id("s1")]},
    "a removal of a volume in use": lambda k: {"removeVolumes": [k.volume("other")["id"]]},
    "an unknown kind": lambda k: _images(k.image("d", kind="tape")),
    "an unknown field": lambda k: _images(k.image("d", colour="blue")),
    "an unknown change": lambda k: {"burn": [ID]},
}  # fmt: skip


def framed(kind: bytes, payload: bytes, version: bytes = b"%d.%d" % (MAJOR, MINOR)) -> bytes:
    """An object with a right checksum, whatever it says."""
    return b"%s %s %d %s\n%s\n" % (kind, version, len(payload), _checksum(kind, version, payload), payload)


def json_bytes(value: Any) -> bytes:
    """JSON, integers of any size."""
    return json.dumps(value).encode()


def write_next(
    world: World, changes: Callable[[Known], Words] | None, **fields: Any
) -> tuple[list[Path], int]:
    """Put an entry after the newest of repository a; its files and number."""
    storage = connect.connect({"path": str(world.folder / "a")}, Host.real())
    state = Log(storage, Host.real()).refresh()
    newest, _ = decode(storage.get("entry", state.version)[0] or b"", Entry)
    entry = {
        **msgspec.to_builtins(newest),
        "number": state.version + 1,
        "previous": state.nonce,
        "nonce": "x",
    }
    entry["changes"] = {} if changes is None else changes(Known(world, state))
    paths = copies_of(world, "entry", state.version + 1)
    for path in paths:
        path.write_bytes(framed(b"diskyard-entry", json_bytes({**entry, **fields})))
    return paths, state.version + 1


def expect_read_only(world: World, number: int) -> None:
    """A new reader stands before the entry, and names it."""
    log = Log(connect.connect({"path": str(world.folder / "a")}, Host.real()), Host.real())
    with watchdog(20):
        state = log.refresh()
    assert state.version == number - 1
    assert f"entry {number}" in str(log.damage)
    with pytest.raises(errors.CorruptRecord, match=f"entry {number}"):
        log.require_writable()


@pytest.mark.parametrize("name", CHANGES)
def test_an_entry_that_cannot_be(bench: Bench, tally: Tally, name: str) -> None:
    """The log stands before it, whatever it says."""
    tally("corruption")
    paths, number = write_next(bench.prepared, CHANGES[name])
    try:
        expect_read_only(bench.prepared, number)
    finally:
        for path in paths:
            path.unlink()
    tally("corruption", cases=1)


def _part(changes: Words) -> Words:
    """What another author changed with an entry."""
    return {"verb": "", "actor": "", "requestDigest": None, "changes": changes}


#: What an entry may say of itself that is not so.
FIELDS: dict[str, Words] = {
    "another repository": {"marker": "0" * 32},
    "another number": {"number": 5},
    "another history": {"previous": "0" * 32},
    "a negative number": {"number": -1},
    "no host": {"host": None},
    "another author of nothing": {"also": [None]},
    "another author without a name": {"also": [{"verb": "", "requestDigest": None, "changes": {}}]},
    "another author's unknown change": {"also": [_part({"burn": [ID]})]},
    "another author's removal of nothing": {"also": [_part({"removeImages": [ID]})]},
    "another author's path": {"also": [_part({"removeVolumes": [PATH]})]},
    "other authors of one record": {"also": [_part({"removeImages": [ID]}), _part({"removeImages": [ID]})]},
}


@pytest.mark.parametrize("name", FIELDS)
def test_an_entry_of_another_place(bench: Bench, tally: Tally, name: str) -> None:
    """The same."""
    tally("corruption")
    expect_not_here(bench, name)
    tally("corruption", cases=1)


def expect_not_here(bench: Bench, name: str) -> None:
    """One entry that says something wrong of itself."""
    paths, number = write_next(bench.prepared, None, **FIELDS[name])
    try:
        expect_read_only(bench.prepared, number)
    finally:
        for path in paths:
            path.unlink()


@pytest.mark.parametrize("also", ["nobody", "another", "another of the same record"])
def test_an_entry_that_can_be_is_read(bench: Bench, also: str) -> None:
    """What refuses those above is not how they are written; one record has one author in an entry."""
    storage = connect.connect({"path": str(bench.prepared.folder / "a")}, Host.real())
    known = Known(bench.prepared, Log(storage, Host.real()).refresh())
    names = {"nobody": [], "another": ["s1"], "another of the same record": ["d"]}[also]
    parts = [_part(_images(known.image(name, userData=[2]))) for name in names]
    paths, number = write_next(bench.prepared, lambda k: _images(k.image("d", userData=[1])), also=parts)
    is_sound = "d" not in names
    try:
        log = Log(storage, Host.real())
        assert log.refresh().version == (number if is_sound else number - 1)
        assert (log.damage is None) == is_sound
    finally:
        for path in paths:
            path.unlink()


def test_what_callers_see_of_them(bench: Bench, outside: Outside, effort: Effort, tally: Tally) -> None:
    """Errors of the table, every image with its bytes, nothing outside touched."""
    tally("corruption")
    chosen = effort.sample(list(CHANGES), 5, "hostile records")
    for name in chosen:
        with bench.world() as world:
            _, number = write_next(world, CHANGES[name])
            found = survey(world)
            expect_readable(world)
            assert f"entry {number}" in found.words
            assert isinstance(found.errors["create in a"], errors.CorruptRecord)
        outside.judge()
    tally("corruption", runs=len(chosen))


def _checkpoint_with(world: World, number: int, change: Callable[[Words], None]) -> None:
    paths = copies_of(world, "checkpoint", number)
    checkpoint = json.loads(msgspec.json.encode(decode(paths[0].read_bytes(), Checkpoint)[0]))
    change(checkpoint)
    for path in paths:
        path.write_bytes(framed(b"diskyard-checkpoint", json_bytes(checkpoint)))


def _circles(checkpoint: Words) -> None:
    for image in checkpoint["images"]:
        for volume in checkpoint["volumes"]:
            if volume["id"] == image["volumeId"]:
                volume.update(format="qcow2", parentImageId=image["id"])


#: What a checkpoint may say that is impossible.
CHECKPOINTS: dict[str, Callable[[Words], None]] = {
    "another number": lambda c: c.update(version=c["version"] + 1),
    "another repository": lambda c: c.update(marker="0" * 32),
    "no volumes": lambda c: c.update(volumes=[]),
    "no images": lambda c: c.update(images=[]),
    "an image twice": lambda c: c["images"].append(c["images"][0]),
    "a path": lambda c: c["volumes"][0].update(id=PATH),
    "circles": _circles,
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_cannot_be(bench: Bench, outside: Outside, tally: Tally, name: str) -> None:
    """An older one and the entries tell the state; it is listed, and made again."""
    tally("corruption")
    number = bench.numbers("checkpoint")[-1]
    with bench.world() as world:
        _checkpoint_with(world, number, CHECKPOINTS[name])
        found = survey(world)
        assert not found.errors, found.errors
        expect_whole(world, found)
        assert any(f"checkpoint {number} again" in words for words in found.listed), found.listed
        assert not survey(world, "later", only_ask=True).listed
    outside.judge()
    tally("corruption", cases=1, runs=1)
