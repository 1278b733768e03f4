"""clean: which volumes are doomed, and which records are removed."""

from __future__ import annotations

from diskyard.model.records import Volume
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.planner.common import doomed


def doom_abandoned(draft: Draft, volume_id: str) -> Volume | None:
    """Doom a building volume that no image wants.

    The caller has the work lease of the volume's image, so nobody is building the volume.

    :returns: the doomed volume, also if it was doomed before; None if it is wanted, ready or gone.
    """
    volume = draft.state.volumes.get(volume_id)
    if volume is None or volume.state != "building" or volume.building is None:
        return volume if volume is not None and volume.state == "doomed" else None
    if wanted(draft.state, volume):
        return None
    gone = doomed(volume)
    draft.put_volume(gone)
    return gone


def wanted(state: State, volume: Volume) -> bool:
    """Whether an image is on this building volume. Only a pending image can be."""
    return bool(state.images_on(volume.id))


def forget(draft: Draft, volume_id: str) -> bool:
    """Remove the record of a doomed volume whose data is gone; False if there is no such record."""
    volume = draft.state.volumes.get(volume_id)
    if volume is None or volume.state != "doomed":
        return False
    draft.remove_volume(volume_id)
    return True
