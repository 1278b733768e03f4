"""The rules for every state, whoever wrote it: its records must fit together.

A writer checks before it publishes (``planner/normalise.py``), and a reader before it
trusts what it read (``log/``): a record with a correct checksum may still have been written
by a defect, or by a program other than Diskyard. A state that is refused here would lead a reader
round in circles, to something that does not exist, or to the bytes of another image.
"""

from __future__ import annotations

from collections.abc import Iterable

from diskyard.model.records import Attachment, Image, Switching, Volume
from diskyard.model.state import State
from diskyard.model.transaction import Changes


def flaw_of(state: State) -> str | None:
    """What is wrong with a whole state, for people, with the invariant's number; None if nothing."""
    return find_flaw(state, state.images, state.volumes, state.attachments)


def flaw_after(before: State, after: State, changes: Changes) -> str | None:
    """What changes made wrong in a state that was sound before; None if nothing."""
    images = {image.id: None for image in changes.put_images} | dict.fromkeys(changes.remove_images)
    volumes = {volume.id: None for volume in changes.put_volumes} | dict.fromkeys(changes.remove_volumes)
    for image in changes.put_images:
        if image.volume_id is not None:
            volumes[image.volume_id] = None
    for attachment in changes.put_attachments:
        chain_ids = _chain_ids(after, attachment.image_id)
        if attachment.id not in before.attachments and attachment.volume_ids != chain_ids:
            return f"attachment {attachment.id} has another graph than image {attachment.image_id}"
    return find_flaw(after, images, volumes, (attachment.id for attachment in changes.put_attachments))


def find_flaw(
    state: State, image_ids: Iterable[str], volume_ids: Iterable[str], attachment_ids: Iterable[str]
) -> str | None:
    """What is wrong with records that were put, or with what remains of removed ones; None if nothing."""
    volume_ids, attachments = list(volume_ids), dict.fromkeys(attachment_ids)
    for image_id in image_ids:
        image = state.images.get(image_id)
        if image is not None and (flaw := _image_flaw(state, image)) is not None:
            return flaw
        if image is None and state.dependents(image_id):
            return f"I4: image {image_id}, which is not there, is the parent of a volume"
        attachments.update((found.id, None) for found in state.attachments_of(image_id))
    for volume_id in volume_ids:
        volume = state.volumes.get(volume_id)
        if volume is not None and (flaw := _volume_flaw(state, volume)) is not None:
            return flaw
        if volume is None and (state.images_on(volume_id) or state.attachments_naming(volume_id)):
            return f"I3: volume {volume_id}, which is not there, is needed"
    for attachment_id in attachments:
        attachment = state.attachments.get(attachment_id)
        if attachment is not None and (flaw := _attachment_flaw(state, attachment)) is not None:
            return flaw
    return _loop(state, volume_ids)


def _image_flaw(state: State, image: Image) -> str | None:
    if image.consumed_by is not None and image.is_strong:
        return f"I2: image {image.id} is strong and consumed"
    if image.volume_id is None:
        return f"I1: image {image.id} has no volume" if image.pending is None else None
    volume = state.volumes.get(image.volume_id)
    if volume is None:
        return f"I1: the volume {image.volume_id} of image {image.id} has no record"
    if image.pending is None and volume.state != "ready":
        return f"I1: the volume of image {image.id} is {volume.state}"
    return None


def _volume_flaw(state: State, volume: Volume) -> str | None:
    on_it = [state.images[image_id] for image_id in state.images_on(volume.id)]
    if volume.state == "doomed" and (on_it or state.attachments_naming(volume.id)):
        return f"I3: volume {volume.id} is doomed but needed"
    if volume.state != "ready" and any(image.pending is None for image in on_it):
        return f"I1: volume {volume.id} is {volume.state} and an image that is not pending has it"
    if sum(image.is_strong for image in on_it) > 1:
        return f"I2: two images that callers see have volume {volume.id}"
    if volume.extending is not None and (volume.state != "ready" or _is_frozen(on_it)):
        return f"I2: volume {volume.id} is being extended, and is {volume.state} or a Snapshot's"
    if _is_a_disks(on_it) and (reader := _reader_of(state, on_it)) is not None:
        return _changing(reader, volume.id)
    return _parent_flaw(state, volume)


def _parent_flaw(state: State, volume: Volume) -> str | None:
    if volume.parent_image_id is None:
        return None
    if volume.state == "ready" and volume.format == "raw":
        return f"I7: volume {volume.id} is raw and has a parent"
    parent = state.images.get(volume.parent_image_id)
    if parent is None:
        return f"I4: volume {volume.id} reads image {volume.parent_image_id}, which is not there"
    if volume.state == "ready" and parent.volume_id is not None:
        below = [state.images[image_id] for image_id in state.images_on(parent.volume_id)]
        return _changing(volume.id, parent.volume_id) if _is_a_disks(below) else None
    return None


def _changing(reader_id: str, volume_id: str) -> str:
    return f"I2: volume {reader_id} reads volume {volume_id}, which a VirtualDisk has: its bytes may change"


def _is_a_disks(on_it: list[Image]) -> bool:
    return any(image.kind == "virtual_disk" for image in on_it)


def _reader_of(state: State, on_it: list[Image]) -> str | None:
    """A ready volume that reads one of some images. One that is building may: before a switch is sealed."""
    readers = (volume_id for image in on_it for volume_id in state.dependents(image.id))
    return next((volume_id for volume_id in readers if state.volumes[volume_id].state == "ready"), None)


def _is_frozen(on_it: list[Image]) -> bool:
    return any(image.is_strong and image.kind == "snapshot" for image in on_it)


def _attachment_flaw(state: State, attachment: Attachment) -> str | None:
    if attachment.image_id not in state.images:
        return f"attachment {attachment.id} is of image {attachment.image_id}, which is not there"
    volumes = [state.volumes.get(volume_id) for volume_id in attachment.volume_ids]
    if None in volumes or len(set(attachment.volume_ids)) < len(volumes):
        return f"I3: attachment {attachment.id} names a volume twice, or one that is not there"
    return None if attachment.switching is None else _switching_flaw(state, attachment, attachment.switching)


def _switching_flaw(state: State, attachment: Attachment, switching: Switching) -> str | None:
    """Both chains must be there, whichever of them the guest is found on."""
    disk, frozen = state.images[attachment.image_id], state.images.get(switching.image_id)
    overlay = state.volumes.get(switching.to_volume_id)
    if not {switching.from_volume_id, switching.to_volume_id} <= set(attachment.volume_ids):
        return f"I3: attachment {attachment.id} does not name what its guest is being moved between"
    if overlay is None or disk.volume_id != overlay.id or overlay.parent_image_id != switching.image_id:
        return f"I4: the disk of attachment {attachment.id} is not on the overlay that its guest moves to"
    if frozen is None or frozen.is_strong or frozen.volume_id != switching.from_volume_id:
        return f"I2: image {switching.image_id} does not have, weak, what a guest may still write to"
    return None


def _chain_ids(state: State, image_id: str) -> tuple[str, ...]:
    """The volumes of an image, top first: all that have records, each once."""
    found: dict[str, None] = {}
    image = state.images.get(image_id)
    while image is not None and image.volume_id in state.volumes and image.volume_id not in found:
        assert image.volume_id is not None
        found[image.volume_id] = None
        image = state.images.get(state.volumes[image.volume_id].parent_image_id or "")
    return tuple(found)


def _loop(state: State, volume_ids: Iterable[str]) -> str | None:
    """A volume that reads itself; None if there is none. Each volume is visited once, in any depth."""
    sound: set[str] = set()
    for volume_id in volume_ids:
        path: dict[str, None] = {}
        current: str | None = volume_id
        while current is not None and current not in sound and current in state.volumes:
            if current in path:
                return f"I2: volume {current} reads itself"
            path[current] = None
            parent = state.images.get(state.volumes[current].parent_image_id or "")
            current = None if parent is None else parent.volume_id
        sound.update(path)
    return None
