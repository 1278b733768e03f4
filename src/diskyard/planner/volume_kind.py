"""Which kind of volume is made for what: the one place where raw or qcow2 is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diskyard.model.capabilities import Capabilities
from diskyard.model.records import Volume, VolumeFormat

#: What a volume is to hold when it is sealed: nothing but zeros; bytes that a copy writes, the zeros
#: among them too; or only what differs from the image that it reads.
Content = Literal["zeros", "copy", "difference"]


@dataclass(frozen=True, slots=True)
class VolumeKind:
    """How to make a volume.

    :param is_clone: it begins with another volume's bytes, by sharing them; else it begins empty.
    :param preallocated: its blocks are reserved when it is made.
    """

    format: VolumeFormat
    is_clone: bool = False
    preallocated: bool = False


#: The only kind that can read another image; and one that shows zeros wherever nothing was written.
OVERLAY = VolumeKind("qcow2")


def choose_kind(
    capabilities: Capabilities,
    size_bytes: int,
    content: Content,
    *,
    same_as: Volume | None = None,
    reserve: bool = False,
) -> VolumeKind:
    """The kind of volume for this content: raw wherever that is possible and right, else qcow2.

    A raw volume shows each byte that is in its place. Where new volumes are not zero
    (``capabilities.zeroed``) these are bytes of somebody's deleted volume, so one is raw only if all of it
    is written before it is sealed:

    ========== ======================================= ==========================================
    content    new volumes are zero                    they are not
    ========== ======================================= ==========================================
    zeros      raw                                     qcow2: nothing writes the zeros
    copy       raw                                     raw: the copy writes the zeros too
    difference qcow2                                   qcow2: raw cannot read a parent
    a clone    raw                                     raw, but qcow2 if it is longer than what it
                                                       shares: nothing writes the rest
    ========== ======================================= ==========================================

    What a place adds by rounding a length up is beyond the size in the record, and shown to nobody.

    :param size_bytes: of the new volume. If no file here can be so long, it is qcow2.
    :param same_as: a volume whose bytes it shows first of all: it is cloned if this place can share the
        bytes, and if they are all in that one raw volume.
    :param reserve: reserve its blocks, if it is raw and this place can.
    """
    if capabilities.why_not_raw(size_bytes) is not None:
        return OVERLAY
    if same_as is not None and capabilities.reflink and is_whole_raw(same_as):
        is_all_written = capabilities.zeroed or size_bytes <= same_as.size_bytes
        return VolumeKind("raw", is_clone=True) if is_all_written else OVERLAY
    if content == "difference" or (content == "zeros" and not capabilities.zeroed):
        return OVERLAY
    return VolumeKind("raw", preallocated=reserve and capabilities.preallocation)


def is_whole_raw(volume: Volume) -> bool:
    """Whether a volume is raw, and so all that an image on it shows."""
    return volume.format == "raw" and volume.parent_image_id is None
