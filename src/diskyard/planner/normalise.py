"""What every transaction must leave behind, whatever its verb.

This runs on each draft before it is published. It looks only at what the draft has touched, and at what
follows from that.
"""

from __future__ import annotations

from diskyard import errors
from diskyard.model.records import Image, Volume
from diskyard.model.soundness import find_flaw
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.planner.common import doomed


def normalise(draft: Draft) -> None:
    """Remove weak images that nothing needs and doom volumes that nothing points at.

    A doomed volume no longer reads anything, so its parent is released at once. Removing the last disk of a
    chain of weak images therefore releases the whole chain in one entry.
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
                draft.put_volume(doomed(volume))


def _nothing_needs(state: State, image: Image) -> bool:
    """Whether an image is weak, and no volume, no hold and no attachment needs it."""
    if image.is_strong or image.held_for or state.dependents(image.id):
        return False
    return image.volume_id is None or not state.attachments_naming(image.volume_id)


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
