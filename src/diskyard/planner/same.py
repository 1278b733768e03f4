"""Whether two images with one id are the same image: an id alone says nothing about bytes.

An id can be used for other bytes: by a caller in another repository, or after the image that had it was
removed. ``captured`` is set once and is the same in every copy, so it distinguishes such images.
"""

from __future__ import annotations

from diskyard.model.records import EntryId, Image, ImageSource, Origin, split_entry_id
from diskyard.model.state import State
from diskyard.model.transaction import Draft


def names_history(entry: EntryId) -> bool:
    """Whether an entry's id distinguishes it from others with its number. In format 1.0 no id did."""
    return bool(split_entry_id(entry)[1])


def captured_now(draft: Draft, disk: Image) -> Origin:
    """The origin that identifies the current bytes of a VirtualDisk that no guest is writing to.

    A data generation of format 1.0 does not identify the history, so this entry takes its place then.
    """
    known = disk.data_generation if names_history(disk.data_generation) else draft.entry
    return Origin(marker=draft.state.marker, image_id=disk.id, data_generation=known)


def captured_here(state: State, image_id: str, entry: EntryId) -> Origin:
    """The origin of an image that is made from a file: its own bytes, from the entry that makes it."""
    return Origin(marker=state.marker, image_id=image_id, data_generation=entry)


def source_of(marker: str, image: Image) -> ImageSource:
    """What a copy reads: an image that cannot change, and what distinguishes it from others with its id."""
    return ImageSource(marker=marker, image_id=image.id, captured=image.captured, size_bytes=image.size_bytes)


def why_another(image: Image, other: Image) -> str | None:
    """Why a Snapshot of another repository, with the same id, is not the same image; None if it is.

    For images of format 1.0 only the time of the capture is known.
    """
    if other.kind != image.kind:
        return "it is not a Snapshot" if image.kind == "snapshot" else "it is not a VirtualDisk"
    if other.size_bytes != image.size_bytes:
        return f"it has {other.size_bytes} bytes, not {image.size_bytes}"
    legacy = image.captured is None and other.captured is None
    if other.captured != image.captured or (legacy and other.captured_at != image.captured_at):
        return "it captured other bytes"
    return None


def why_no_source(image: Image, other: Image) -> str | None:
    """Why a mend of ``image`` must not read another image; None if it may.

    :param other: an image with the id of the mend's source.
    """
    source = None if image.pending is None else image.pending.source
    if not isinstance(source, ImageSource):
        return why_another(image, other)
    if other.kind != "snapshot":
        return "it is not a Snapshot"
    if source.size_bytes not in (None, other.size_bytes):
        return f"it has {other.size_bytes} bytes, not {source.size_bytes}"
    if other.captured != source.captured:
        return "it captured other bytes"
    if source.captured is None and image.kind == "snapshot" and other.captured_at != image.captured_at:
        return "it captured the bytes of another moment"
    return None
