"""Every byte of every kind of object: one that is changed is found, whatever it is changed to."""

from __future__ import annotations

import msgspec
import pytest

from diskyard.log.codec import Checkpoint, Damaged, Progress, RepositoryRecord, decode, encode
from diskyard.model.transaction import Changes, Entry, Part
from diskyard.testing.effort import Effort
from tests.conftest import Tally
from tests.unit.records import HOST, MARKER, NOW, attachment, building, copy_hold, disk, uid, volume, weak

_IMAGES = (
    disk(uid("d"), uid("v"), user_data={"é": [1, None]}),
    weak(uid("w"), None, held_for=(copy_hold(uid("c")),)),
)
_VOLUMES = (volume(uid("v"), uid("w")), building(uid("b"), uid("d")))
OBJECTS: tuple[msgspec.Struct, ...] = (
    Entry(
        marker=MARKER, number=7, nonce="n7", previous="n6", time=NOW, verb="test", host=HOST, actor="",
        request_digest=None, changes=Changes(put_images=_IMAGES, put_volumes=_VOLUMES),
        also=(Part(verb="other", actor="é", request_digest="d", changes=Changes(remove_images=(uid("i"),))),),
    ),
    Checkpoint(
        marker=MARKER, version=7, nonce="n7", nonces=("n6", "n7"), images=_IMAGES, volumes=_VOLUMES,
        attachments=(attachment(uid("a"), uid("d"), uid("v")),),
    ),
    Progress(image_id=uid("d"), host=HOST, fix="mend", stage="1/2", percent=5, durable_bytes=4096),
    RepositoryRecord(marker=MARKER, format="localfs-1.0"),
)  # fmt: skip


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_every_byte(value: msgspec.Struct, effort: Effort, tally: Tally) -> None:
    """Damaged, never a newer version: the checksum is over the version too, and is looked at first."""
    tally("corruption")
    data = encode(value)
    masks = effort.sample(range(1, 256), 24, type(value).__name__)
    for at in range(len(data)):
        for mask in masks:
            with pytest.raises(Damaged):
                decode(data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :], type(value))
    tally("corruption", cases=len(data) * len(masks))
