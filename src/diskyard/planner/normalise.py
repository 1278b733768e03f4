"""What every transaction must leave behind, whatever its verb.

Run on each draft before it is published. It looks only at what the draft touched and
at what follows from that.
"""

from __future__ import annotations

from msgspec.structs import replace

from diskyard import errors
from diskyard.model.records import Image, Volume
from diskyard.model.state import State
from diskyard.model.transaction import Draft


def normalise(draft: Draft) -> None:
    """Remove weak images that nothing needs and doom volumes that nothing points at.

    A volume that becomes doomed reads nothing any more: its parent is released at once,
    so removing the last disk of a chain of weak images releases all of it in one entry.
    """
    images = list(draft.images_touched)
    volumes = list(draft.volumes_touched)
    while images or volumes:
        while images:
            image = draft.state.images.get(images.pop())
            if image is not None and _nothing_needs(draft.state, image):
                if image.volume_id is not None:
                    volumes.append(image.volume_id)
                draft.remove_image(image.id)
        while volumes:
            volume = draft.state.volumes.get(volumes.pop())
            if volume is not None and _nothing_points_at(draft.state, volume):
                if volume.parent_image_id is not None:
                    images.append(volume.parent_image_id)
                draft.put_volume(replace(volume, state="doomed", parent_image_id=None, building=None))


def _nothing_needs(state: State, image: Image) -> bool:
    """Whether a weak image may go: no dependent, no hold, no attachment naming its volume."""
    if image.is_strong or image.held_for or state.dependents(image.id):
        return False
    return image.volume_id is None or not state.attachments_naming(image.volume_id)


def _nothing_points_at(state: State, volume: Volume) -> bool:
    """Whether a volume becomes doomed. One that is building belongs to its work."""
    return (
        volume.state == "ready" and not state.images_on(volume.id) and not state.attachments_naming(volume.id)
    )


def verify(draft: Draft) -> None:
    """Refuse a draft that would break an invariant, before it is published.

    :raises diskyard.errors.InternalError: the invariant, by its number in ``docs/format.md``.
    """
    state = draft.state
    for image_id in draft.images_touched:
        image = state.images.get(image_id)
        if image is not None:
            _verify_image(state, image)
        elif state.dependents(image_id):
            raise errors.InternalError(f"I4: image {image_id} is the parent of a volume.")
    for volume_id in draft.volumes_touched:
        volume = state.volumes.get(volume_id)
        if volume is not None:
            _verify_volume(draft, volume)
        elif volume_id in draft.before.volumes:
            if draft.before.volumes[volume_id].state != "doomed":
                raise errors.InternalError(f"I3: volume {volume_id} is forgotten but not doomed.")
            if state.images_on(volume_id) or state.attachments_naming(volume_id):
                raise errors.InternalError(f"I3: volume {volume_id} is forgotten but needed.")


def _verify_image(state: State, image: Image) -> None:
    if image.volume_id is None:
        if image.pending is None:
            raise errors.InternalError(f"I1: image {image.id} has no volume.")
        return
    volume = state.volumes.get(image.volume_id)
    if volume is None:
        raise errors.InternalError(f"I1: the volume of image {image.id} has no record.")
    if image.pending is None and volume.state != "ready":
        raise errors.InternalError(f"I1: the volume of image {image.id} is {volume.state}.")
    if image.consumed_by is not None and image.is_strong:
        raise errors.InternalError(f"I2: image {image.id} is strong and consumed.")


def _verify_volume(draft: Draft, volume: Volume) -> None:
    state = draft.state
    if volume.state == "doomed":
        if state.images_on(volume.id) or state.attachments_naming(volume.id):
            raise errors.InternalError(f"I3: volume {volume.id} is doomed but needed.")
        return
    for image_id in () if volume.state == "ready" else state.images_on(volume.id):
        if state.images[image_id].pending is None:
            raise errors.InternalError(f"I1: the volume of image {image_id} is {volume.state}.")
    seen = {volume.id}
    parent_id = volume.parent_image_id
    while parent_id is not None:
        parent = state.images.get(parent_id)
        if parent is None:
            raise errors.InternalError(f"I4: volume {volume.id} reads an image that is not there.")
        if parent.volume_id is None:
            return
        if parent.volume_id in seen:
            raise errors.InternalError(f"I2: volume {volume.id} reads itself.")
        seen.add(parent.volume_id)
        parent_id = state.volumes[parent.volume_id].parent_image_id
