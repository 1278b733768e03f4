"""Which kind of volume to make for which content: the only place where raw or qcow2 is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diskyard.model.capabilities import Capabilities
from diskyard.model.records import Volume, VolumeFormat

#: What a volume is to hold when it is sealed: only zeros; bytes that a copy writes, including the zeros
#: among them; or only what differs from the image that it reads.
Content = Literal["zeros", "copy", "difference"]


@dataclass(frozen=True, slots=True)
class VolumeKind:
    """How to make a volume.

    :param is_clone: the volume begins with another volume's bytes, by sharing them; else it begins empty.
    :param preallocated: the volume's blocks are reserved when it is made.
    """

    format: VolumeFormat
    is_clone: bool = False
    preallocated: bool = False


#: The only kind that can read another image. Without a parent, it shows zeros where nothing was written.
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

    A raw volume shows every byte that the storage has for it. If new volumes are not zero (see
    ``capabilities.zeroed``), these can be bytes of somebody's deleted volume. Then a volume is raw only if
    all of it is written before it is sealed:

    ========== ======================================= ==========================================
    content    new volumes are zero                    they are not
    ========== ======================================= ==========================================
    zeros      raw                                     qcow2: nothing writes the zeros
    copy       raw                                     raw: the copy writes the zeros too
    difference qcow2                                   qcow2: raw cannot read a parent
    a clone    raw                                     raw, but qcow2 if it is longer than what it
                                                       shares: nothing writes the rest
    ========== ======================================= ==========================================

    Storage may round a length up. The bytes that this adds are beyond the size in the record, and nobody is
    shown them.

    :param size_bytes: the size of the new volume. If no raw volume here can be so long, it is qcow2.
    :param same_as: a volume whose bytes the new one begins with. It is cloned if this storage can share
        bytes, and if all of them are in that one raw volume.
    :param reserve: reserve the new volume's blocks, if it is raw and this storage can reserve them.
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
    """Whether a volume is raw, and reads no parent: then it alone has all bytes of an image on it."""
    return volume.format == "raw" and volume.parent_image_id is None
