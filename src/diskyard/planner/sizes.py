"""The length of a disk's volume: extending it, and dealing with one that is longer than its record.

An extend begins as an intent: while the volume's record says ``extending``, the disk is not attached and
no image is frozen on it. So nobody's data is beyond the size in the record, and that part may be cut off
again. If a volume is longer *without* an intent, a program that writes to it, such as a guest's QEMU, made
it longer. Then the new length is taken over, or refused, and never cut.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from diskyard import errors
from diskyard.model.capabilities import Capabilities
from diskyard.model.records import IMAGE_SIZE_LIMIT_BYTES, Extending, Image, Volume
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.planner.common import (
    Superseded,
    require_settled,
    require_unattached,
    require_usable,
    virtual_disk,
)


def size_lease(image_id: str) -> str:
    """The name of the lease of an image's size: no guest may be attached while the size changes.

    Whoever holds the lease knows that nobody else is extending the image.
    """
    return f"{image_id}/size"


def growable_disk(draft: Draft, image_id: str, size_bytes: int) -> Image:
    """The disk to extend, if it may be extended.

    :raises diskyard.errors.InvalidParameter: the disk would shrink.
    """
    disk = virtual_disk(draft.state, image_id)
    require_usable(draft, disk)
    require_unattached(draft.state, disk)
    if size_bytes < disk.size_bytes:
        raise errors.InvalidParameter(
            f"The disk has {disk.size_bytes} bytes; it cannot be made smaller.", imageId=image_id
        )
    return disk


def require_possible_length(state: State, disk: Image, size_bytes: int, capabilities: Capabilities) -> None:
    """Refuse a size that the disk's volume cannot have.

    :raises diskyard.errors.Unsupported: the volume is raw, and no raw volume here can be so long.
    """
    volume = state.volumes[str(disk.volume_id)]
    why_not = capabilities.why_not_raw(size_bytes)
    if volume.format == "raw" and why_not is not None:
        raise errors.Unsupported(
            f"Disk {disk.id} cannot be extended: {why_not}.",
            advice="Create a Snapshot of the disk: the disk then continues in a volume of another format, "
            "which can be extended. Or copy it to a repository whose file system can hold longer files (such "
            "as XFS).",
            imageId=disk.id,
        )


def begin_extend(draft: Draft, image_id: str, size_bytes: int, work_id: str) -> Volume | None:
    """Put the intent, before the volume grows; the volume with it, or None if the disk has that size."""
    disk = growable_disk(draft, image_id, size_bytes)
    require_settled(draft.state, disk)
    if disk.size_bytes == size_bytes:
        return None
    assert disk.volume_id is not None
    volume = draft.state.volumes[disk.volume_id]
    grown = replace(volume, extending=Extending(work_id=work_id, size_bytes=size_bytes))
    draft.put_volume(grown)
    return grown


def seal_extend(draft: Draft, image_id: str, grown: Volume) -> None:
    """Commit the extend: the disk is as large as its volume has been made.

    :param grown: the volume, as :func:`begin_extend` put it.
    :raises Superseded: the disk is on another volume now, or the intent was taken back.
    """
    assert grown.extending is not None
    size_bytes = grown.extending.size_bytes
    disk = growable_disk(draft, image_id, size_bytes)
    if disk.volume_id != grown.id or draft.state.volumes[grown.id].extending != grown.extending:
        raise Superseded(f"the extend of disk {image_id} was given up")
    _put_size(draft, disk, draft.state.volumes[grown.id], size_bytes)


def take_back(draft: Draft, grown: Volume) -> bool:
    """End the intent of an interrupted extend, once the volume ends where its record says.

    :returns: False if the volume is not as it was found any more.
    """
    volume = draft.state.volumes.get(grown.id)
    if volume is None or volume.extending is None or volume != grown:
        return False
    draft.put_volume(replace(volume, extending=None))
    return True


@dataclass(frozen=True, slots=True)
class Growth:
    """A volume that is longer than its record, durably.

    :param record: the volume's record as it was found.
    :param size_bytes: the length of the volume, in whole sectors.
    """

    record: Volume
    size_bytes: int


def disk_of(state: State, volume: Volume) -> Image | None:
    """The disk that alone has a volume and so may change it; None if a frozen image has the volume too.

    A switch that is not sealed yet has frozen nothing: sealing it takes the size that the disk has then.
    """
    found = None
    for image_id in state.images_on(volume.id):
        image = state.images[image_id]
        if image.is_strong and image.kind == "virtual_disk":
            found = image
        elif image.is_strong or any(
            state.volumes[key].state == "ready" for key in state.dependents(image_id)
        ):
            return None
    if found is None or found.pending is not None or volume.state != "ready":
        return None
    return found


def adopt(draft: Draft, image_id: str, growth: Growth) -> bool:
    """Take over the size that another program gave a disk's volume; False if the volume has changed since.

    The disk's bytes have changed, so it has a new data generation, and no origin.
    """
    volume = draft.state.volumes.get(growth.record.id)
    if volume is None or volume != growth.record or draft.state.attachments_of(image_id):
        return False
    disk = disk_of(draft.state, volume)
    if disk is None or disk.id != image_id:
        return False
    # No blocks are reserved for what the other program added.
    _put_size(draft, disk, replace(volume, preallocated=False), growth.size_bytes)
    return True


def _put_size(draft: Draft, disk: Image, volume: Volume, size_bytes: int) -> None:
    draft.put_volume(replace(volume, size_bytes=max(size_bytes, volume.size_bytes), extending=None))
    draft.put_image(
        replace(
            disk,
            size_bytes=size_bytes,
            revision=draft.entry,
            data_generation=draft.entry,
            origin=None,
        )
    )


@dataclass(frozen=True, slots=True)
class SizeFix:
    """What to do about a volume that is not as long as its record says, or may not be.

    :param leases: the leases that any worker on the fix holds.
    """

    description: str
    image_id: str | None
    waits_for: str | None
    leases: list[str]


def _not_settled(state: State, disk: Image, longer_bytes: int | None) -> str | None:
    """Why the size of a disk cannot be settled now."""
    for found in state.attachments_of(disk.id):
        return f"the disk is attached on host {found.host.host_id} for {found.owner}"
    if longer_bytes is not None and longer_bytes > IMAGE_SIZE_LIMIT_BYTES:
        return (
            f"its volume has {longer_bytes} bytes, longer than a disk can be ({IMAGE_SIZE_LIMIT_BYTES}): "
            "make it as long as its record says, once what is beyond that is not needed"
        )
    return None


def size_fix(state: State, volume: Volume, longer_bytes: int | None) -> SizeFix | None:
    """The fix for a volume that is extending, or longer than its record; None if it needs none.

    :param longer_bytes: the volume's size, if it is longer than its record; else None.
    """
    images = [state.images[key] for key in sorted(state.images_on(volume.id))]
    if not images or any(image.consumed_by for image in images):
        return None  # a merge makes it longer and will finish; or the volume goes when its attachment ends
    shown = next((image.id for image in images if image.is_strong), None)
    disk = disk_of(state, volume)
    if disk is not None:
        words = f"take over the size that disk {disk.id} was given by its guest's QEMU"
        if volume.extending is not None:
            words = f"take back an extend of disk {disk.id} that was interrupted"
        return SizeFix(words, shown, _not_settled(state, disk, longer_bytes), [size_lease(disk.id)])
    if longer_bytes is None:
        return None  # an extend of a disk that was removed since
    words = f"cut volume {volume.id} off where its record says that it ends"
    waits_for = (
        f"another program made it longer, {longer_bytes} bytes instead of {volume.size_bytes}; with force "
        "what it holds there is deleted"
    )
    return SizeFix(words, shown, waits_for, [])
