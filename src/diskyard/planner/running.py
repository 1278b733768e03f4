"""What the log says while a running guest is moved from one volume to another.

The log is first: it has the disk on the overlay before the guest has followed, as the overlay is empty and
both chains have the same bytes. Until one of :func:`complete` and :func:`undo`, the attachment says between
which two volumes the guest is, and nothing else is done to the disk. Whoever finds that asks the guest.
"""

from __future__ import annotations

from msgspec.structs import replace

from diskyard import errors
from diskyard.model.records import DONE_BY_OTHERS, Attachment, Image, Origin, Switching, Volume
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.planner.common import Superseded, doomed


def require_followable(state: State, disk: Image, attachment_id: str) -> Attachment:
    """The attachment of a disk, if its guest can be moved to another volume now.

    :raises diskyard.errors.ImageInUse: the disk has another attachment by now, or its guest cannot be asked.
    :raises diskyard.errors.LeaseHeld: the guest is being moved already.
    """
    for found in state.attachments_of(disk.id):
        if found.id != attachment_id or found.live is None:
            raise errors.ImageInUse(
                f"Image {disk.id} was attached otherwise meanwhile.",
                advice="Try again.",
                imageId=disk.id,
                hostID=found.host.host_id,
                owner=found.owner,
            )
        require_not_switching(found)
        return found
    raise errors.ImageInUse(f"Image {disk.id} was torn down meanwhile.", advice="Try again.", imageId=disk.id)


def require_not_switching(attachment: Attachment) -> None:
    """Refuse an attachment whose guest is being moved, or was when that was interrupted.

    :raises diskyard.errors.LeaseHeld: says who can finish it.
    """
    if attachment.switching is not None:
        raise errors.LeaseHeld(
            f"The guest {attachment.owner} of image {attachment.image_id} is being moved to another volume.",
            advice=f"Try again in a moment, on host {attachment.host.host_id}: if that was interrupted, the "
            "next verb on the image there asks the guest, and finishes it.",
            imageId=attachment.image_id,
            hostID=attachment.host.host_id,
            owner=attachment.owner,
        )


def expect_guest(draft: Draft, attachment: Attachment, frozen: Image, work_id: str) -> None:
    """Say that the guest of an attachment is to follow its disk to the volume that the disk is on now."""
    overlay_id = draft.state.images[attachment.image_id].volume_id
    assert frozen.volume_id is not None
    assert overlay_id is not None
    switching = Switching(
        work_id=work_id, image_id=frozen.id, from_volume_id=frozen.volume_id, to_volume_id=overlay_id
    )
    draft.put_attachment(
        replace(attachment, volume_ids=(overlay_id, *attachment.volume_ids), switching=switching)
    )


def complete(draft: Draft, attachment_id: str, work_id: str) -> Image:
    """The guest writes to the overlay, or has ended: the frozen image has its bytes, and keeps them.

    They get a data generation of their own. A copy of the repository that was made since the guest was
    attached has that generation with other bytes.

    :returns: the frozen image: strong if it is a Snapshot that was asked for.
    :raises Superseded: that was ended before.
    """
    attachment, switching = _require_switching(draft.state, attachment_id, work_id)
    frozen = draft.state.images[switching.image_id]
    captured = Origin(marker=draft.state.marker, image_id=attachment.image_id, data_generation=draft.entry)
    frozen = replace(
        frozen,
        visibility="weak" if frozen.request_digest is None else "strong",
        captured=captured,
        data_generation=draft.entry,
        origin=None,
        revision=draft.entry,
    )
    draft.put_attachment(replace(attachment, switching=None))
    draft.put_image(frozen)
    return frozen


def undo(draft: Draft, attachment_id: str, work_id: str) -> None:
    """The guest has not followed, and cannot any more: the disk is again on the volume that it writes to.

    The guest must not have the overlay open.

    :raises Superseded: that was ended before.
    """
    attachment, switching = _require_switching(draft.state, attachment_id, work_id)
    disk = draft.state.images[attachment.image_id]
    rest = tuple(key for key in attachment.volume_ids if key != switching.to_volume_id)
    draft.put_attachment(replace(attachment, volume_ids=rest, switching=None))
    draft.put_image(
        replace(disk, volume_id=switching.from_volume_id, data_generation=draft.entry, origin=None)
    )
    draft.put_volume(doomed(draft.state.volumes[switching.to_volume_id]))
    draft.remove_image(switching.image_id)


def _require_switching(state: State, attachment_id: str, work_id: str) -> tuple[Attachment, Switching]:
    attachment = state.attachments.get(attachment_id)
    if attachment is None or attachment.switching is None or attachment.switching.work_id != work_id:
        raise Superseded(f"the switch of attachment {attachment_id} has ended")
    return attachment, attachment.switching


def mark_changed(draft: Draft, volume_id: str, words: str) -> None:
    """Record that another program changed what the log says of a volume: nobody may trust its bytes.

    :param words: what it did, as in "wrote to it".
    """
    volume = draft.state.volumes.get(volume_id)
    if volume is not None and volume.state == "ready" and volume.damage is None:
        draft.put_volume(replace(volume, damage=DONE_BY_OTHERS + words))


def was_changed(volume: Volume | None) -> bool:
    """Whether that is recorded of a volume."""
    return volume is not None and (volume.damage or "").startswith(DONE_BY_OTHERS)


def clear_changed(draft: Draft, volume_id: str) -> None:
    """Take that back, as a person has put it right."""
    volume = draft.state.volumes.get(volume_id)
    if volume is not None and was_changed(volume):
        draft.put_volume(replace(volume, damage=None))


def accept_changed(draft: Draft, volume_id: str) -> bool:
    """Let the images on a volume have the bytes that another program has left; False if there is nothing to.

    They are other bytes from now on than those of any copy with the same id.
    """
    if not was_changed(draft.state.volumes.get(volume_id)):
        return False
    clear_changed(draft, volume_id)
    for key in draft.state.images_on(volume_id):
        image = draft.state.images[key]
        captured = Origin(marker=draft.state.marker, image_id=image.id, data_generation=draft.entry)
        draft.put_image(
            replace(
                image,
                data_generation=draft.entry,
                revision=draft.entry,
                origin=None,
                captured=None if image.captured is None else captured,
            )
        )
    return True
