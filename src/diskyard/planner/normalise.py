"""What every transaction must leave behind, whatever its verb.

This runs on each draft before it is published. It looks only at what the draft has touched, and at what
follows from that.
"""

from __future__ import annotations

from diskyard import errors
from diskyard.model.records import Image, Volume
from diskyard.model.soundness import find_flaw
from diskyard.model.state import State, awaited_base
from diskyard.model.transaction import Draft
from diskyard.planner.common import doomed


def normalise(draft: Draft) -> None:
    """Remove weak images that nothing needs and doom volumes that nothing points at.

    A doomed volume no longer reads anything, so its parent is released at once. Removing the last disk of a
    chain of weak images therefore releases the whole chain in one entry.
    """
    images = [*_awaited_before(draft), *draft.images_touched]  # the last first: copies before their bases
    volumes = list(draft.volumes_touched)
    while images or volumes:
        while images:
            image = draft.state.images.get(images.pop())
            if image is not None and _nothing_needs(draft.state, image):
                if image.volume_id is not None:
                    volumes.append(image.volume_id)
                if (base_id := awaited_base(image)) is not None:
                    images.append(base_id)
                draft.remove_image(image.id)
        while volumes:
            volume = draft.state.volumes.get(volumes.pop())
            if volume is not None and _nothing_points_at(draft.state, volume):
                if volume.parent_image_id is not None:
                    images.append(volume.parent_image_id)
                draft.put_volume(doomed(volume))


def _nothing_needs(state: State, image: Image) -> bool:
    """Whether an image is weak, and no volume, no hold, no waiting copy and no attachment needs it."""
    if image.is_strong or image.held_for or state.dependents(image.id) or _is_awaited(state, image):
        return False
    return image.volume_id is None or not state.attachments_naming(image.volume_id)


def _is_awaited(state: State, image: Image) -> bool:
    """Whether a copy waits for an image that is its base, though nothing can read it now.

    A weak image that is pending is cancelled. One whose bytes were never captured goes with the switch that
    was to make it.
    """
    is_sealed = image.pending is None and image.captured is not None
    return is_sealed and bool(state.waiting_for(image.id))


def _awaited_before(draft: Draft) -> list[str]:
    """The images that copies may have ceased to wait for."""
    touched = (draft.before.images.get(key) for key in draft.images_touched)
    bases = (awaited_base(image) for image in touched if image is not None)
    return [base_id for base_id in bases if base_id is not None]


def _nothing_points_at(state: State, volume: Volume) -> bool:
    """Whether a ready volume becomes doomed. A volume that is building belongs to its work."""
    return (
        volume.state == "ready" and not state.images_on(volume.id) and not state.attachments_naming(volume.id)
    )


def verify(draft: Draft) -> None:
    """Refuse a draft that would break an invariant, before it is published.

    :raises diskyard.errors.InternalError: names the invariant by its number in ``docs/format.md``.
    """
    flaw = find_flaw(draft.state, draft.images_touched, draft.volumes_touched, draft.attachments_touched)
    if flaw is not None:
        raise errors.InternalError(f"{flaw}.")
    for volume_id in draft.volumes_touched:
        before = draft.before.volumes.get(volume_id)
        if before is not None and before.state != "doomed" and volume_id not in draft.state.volumes:
            raise errors.InternalError(f"I3: volume {volume_id} is forgotten but not doomed.")
