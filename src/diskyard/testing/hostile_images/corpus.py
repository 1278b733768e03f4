"""All named cases, and seeded changes of a few random bytes."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from diskyard.mover.interface import ImportFormat
from diskyard.testing.hostile_images.cases import Case
from diskyard.testing.hostile_images.qcow2_cases import qcow2_cases
from diskyard.testing.hostile_images.raw_cases import raw_cases
from diskyard.testing.hostile_images.vdi_cases import vdi_cases
from diskyard.testing.hostile_images.vhdx_cases import vhdx_cases
from diskyard.testing.hostile_images.vmdk_cases import vmdk_cases

_OF_FORMAT = {
    "raw": raw_cases,
    "qcow2": qcow2_cases,
    "vmdk": vmdk_cases,
    "vdi": vdi_cases,
    "vhdx": vhdx_cases,
}
#: The byte ranges with each format's metadata: changes elsewhere would only change data.
_METADATA = {
    "qcow2": ((0, 120), (65536, 5 * 65536)),
    "vmdk": ((0, 2048), (10752, 65536)),
    "vdi": ((0, 1024),),
    "vhdx": ((0, 8), (65536, 69632), (131072, 135168), (196608, 196800), (2 << 20, 4 << 20)),
}


def all_cases(format: str) -> Iterator[Case]:
    """Every named case of a format."""
    return _OF_FORMAT[format]()


def with_random_changes(data: bytes, format: ImportFormat, randomness: random.Random) -> bytes:
    """A file in which 1 to 8 bytes of its metadata are changed."""
    changed = bytearray(data)
    # Most tables are nearly empty: change bytes that are not zero, and their neighbours.
    places = {
        start + found.start() + distance
        for start, end in _METADATA[format]
        for found in re.finditer(rb"[^\0]", data[start:end])
        for distance in range(8)
    }
    inside = sorted(at for at in places if at < len(data))
    for at in randomness.choices(inside, k=randomness.randint(1, 8)):
        changed[at] = randomness.choice((0, 1, 0x7F, 0x80, 0xFF, randomness.randrange(256)))
    return bytes(changed)
