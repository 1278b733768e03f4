"""prepareImage and teardownImage: who uses what, in the log."""

from __future__ import annotations

from msgspec.structs import replace

from diskyard import errors
from diskyard.model.identity import HostIdentity
from diskyard.model.records import Attachment, Image
from diskyard.model.transaction import Draft
from diskyard.planner import running
from diskyard.planner.common import require_openable, require_settled, require_usable, strong_image


def attach(
    draft: Draft,
    image_id: str,
    *,
    attachment_id: str,
    host: HostIdentity,
    owner: str,
    read_only: bool | None,
    now: str,
    unsettled: bool = False,
) -> Attachment:
    """Return the attachment of this image for this host and owner: the existing one, or a new one.

    A VirtualDisk has either one writer or any number of readers. Attaching for writing lets the bytes
    change from this entry on.

    :param unsettled: attach even during an extend. For a repository that cannot be written to, where
        nobody can finish or undo the extend.
    :raises diskyard.errors.ImageInUse: another attachment is in the way.
    :raises diskyard.errors.LeaseHeld: the image is being extended.
    :raises diskyard.errors.Unsupported: the image's chain is too deep to be opened.
    """
    image = strong_image(draft.state, image_id)
    require_usable(draft, image)
    if not unsettled:
        require_settled(draft.state, image)
    require_openable(draft.state, image)
    if image.kind == "snapshot" and read_only is False:
        raise errors.NotAVirtualDisk(
            f"Image {image_id} is a Snapshot and cannot be written to.", imageId=image_id
        )
    writes = image.kind == "virtual_disk" and not read_only
    for found in draft.state.attachments_of(image_id):
        if found.host == host and found.owner == owner:
            if (found.mode == "read_write") == writes:
                return _as_now(draft, image, found)
            raise errors.ImageInUse(
                f"Image {image_id} is attached for {owner} as {found.mode}.",
                advice="Tear it down before attaching it in another mode.",
                imageId=image_id,
                hostID=found.host.host_id,
                owner=owner,
            )
        if writes or found.mode == "read_write":
            raise errors.ImageInUse(
                f"Image {image_id} is attached on host {found.host.host_id} for {found.owner}.",
                imageId=image_id,
                hostID=found.host.host_id,
                owner=found.owner,
            )
    attachment = Attachment(
        id=attachment_id,
        image_id=image_id,
        host=host,
        owner=owner,
        mode="read_write" if writes else "read_only",
        volume_ids=tuple(volume.id for _, volume in draft.state.chain(image)),
        attached_at=now,
    )
    draft.put_attachment(attachment)
    if writes:
        draft.put_image(replace(image, data_generation=draft.entry, origin=None))
    return attachment


def _as_now(draft: Draft, image: Image, found: Attachment) -> Attachment:
    """An attachment that names also the volumes which a guest that starts now would open.

    Those below its own may have been exchanged for better ones since. A guest that runs has the others open.

    :raises diskyard.errors.LeaseHeld: its guest is being moved.
    """
    running.require_not_switching(found)
    chain = [volume.id for _, volume in draft.state.chain(image)]
    if found.mode == "read_only" or set(chain) <= set(found.volume_ids):
        return found
    rest = (key for key in found.volume_ids if key not in chain)
    return _put(draft, replace(found, volume_ids=(*chain, *rest)))


def make_live(draft: Draft, attachment_id: str) -> Attachment:
    """Note that the guest of an attachment can be talked to while it runs.

    :raises diskyard.errors.ImageInUse: the attachment was torn down meanwhile.
    :raises diskyard.errors.LeaseHeld: its guest is being moved.
    """
    found = draft.state.attachments.get(attachment_id)
    if found is None:
        raise errors.ImageInUse("The attachment was torn down meanwhile.", advice="Prepare the image again.")
    running.require_not_switching(found)
    return found if found.live is not None else _put(draft, replace(found, live="qmp"))


def _put(draft: Draft, attachment: Attachment) -> Attachment:
    draft.put_attachment(attachment)
    return attachment


def detach(
    draft: Draft,
    image_id: str,
    *,
    host: HostIdentity,
    owner: str,
    of_host_id: str | None,
    force: bool,
) -> bool:
    """Remove the attachment of an owner; False if there is none, which is not an error.

    :raises diskyard.errors.ImageInUse: the attachment belongs to another host, and ``force`` is not given.
    """
    strong_image(draft.state, image_id)
    host_id = of_host_id or host.host_id
    for found in draft.state.attachments_of(image_id):
        if found.owner != owner or found.host.host_id != host_id:
            continue
        mine = found.host.machine_id == host.machine_id and host_id == host.host_id
        gone = found.host.machine_id == host.machine_id and found.host.boot_id != host.boot_id
        if not (mine or gone or force):
            raise errors.ImageInUse(
                f"The attachment belongs to host {host_id}, which may still be using the image.",
                advice="Call that host, or pass force if you know that its guest has ended.",
                imageId=image_id,
                hostID=host_id,
                owner=owner,
            )
        _end(draft, found)
        return True
    return False


def _end(draft: Draft, attachment: Attachment) -> None:
    """Remove an attachment. A writer's bytes get a new data generation here.

    The generation that began with the attachment is not enough: a copy of the repository that was made
    meanwhile has that generation too, with other bytes.
    """
    running.require_not_switching(attachment)  # only the bytes tell whether the guest has followed
    image = draft.state.images[attachment.image_id]
    draft.remove_attachment(attachment.id)
    if attachment.mode == "read_write":
        draft.put_image(replace(image, data_generation=draft.entry, origin=None))


def remove_attachment(draft: Draft, attachment_id: str) -> bool:
    """Remove an attachment whose host is gone; False if it is not there."""
    attachment = draft.state.attachments.get(attachment_id)
    if attachment is None:
        return False
    _end(draft, attachment)
    return True
