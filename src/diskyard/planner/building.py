"""The records of a volume that is being made: begun before it exists, sealed once it is whole.

Every plan that makes a volume begins it here, so that the log names the volume before it is on the storage.
The plan also seals it here: so no work can seal a volume that other work has taken over, or whose base has
changed. A plan checks all its other conditions itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from diskyard.model.capabilities import Capabilities
from diskyard.model.records import Building, Image, Volume
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.planner.common import Superseded, base_image, require_sound
from diskyard.planner.volume_kind import Content, VolumeKind, choose_kind


@dataclass(frozen=True, slots=True)
class WorkIds:
    """New ids: for a volume, and for the work that makes it."""

    volume_id: str
    work_id: str


@dataclass(frozen=True, slots=True)
class NewVolume:
    """A volume that work has begun.

    :param volume: the record as it was put. It names the work that may seal the volume.
    :param clone_of: the volume whose bytes it shares; None to make an empty volume.
    """

    volume: Volume
    clone_of: Volume | None = None

    @property
    def work_id(self) -> str:
        """The work that may seal the volume."""
        assert self.volume.building is not None
        return self.volume.building.work_id


def begin_volume(
    draft: Draft,
    ids: WorkIds,
    kind: VolumeKind,
    *,
    image_id: str,
    size_bytes: int,
    parent_image_id: str | None = None,
    same_as: Volume | None = None,
) -> NewVolume:
    """Put the record of a volume that is to be made.

    While a clone is building, it too has the base as its parent, so that the base stays. Sealing releases
    the base.

    :param same_as: the volume to clone, if ``kind`` is a clone.
    """
    volume = Volume(
        id=ids.volume_id,
        format=kind.format,
        parent_image_id=parent_image_id,
        size_bytes=size_bytes,
        named_by=draft.entry,
        preallocated=kind.preallocated,
        state="building",
        building=Building(work_id=ids.work_id, image_id=image_id),
    )
    draft.put_volume(volume)
    return NewVolume(volume, same_as if kind.is_clone else None)


def begin_filled(
    draft: Draft,
    ids: WorkIds,
    image: Image,
    capabilities: Capabilities,
    parent_image_id: str | None,
    *,
    reserve: bool = False,
) -> NewVolume:
    """Put a volume that a copy is to fill: with all of an image's bytes, or with what its parent lacks."""
    content: Content = "copy" if parent_image_id is None else "difference"
    kind = choose_kind(capabilities, image.size_bytes, content, reserve=reserve)
    return begin_volume(
        draft, ids, kind, image_id=image.id, size_bytes=image.size_bytes, parent_image_id=parent_image_id
    )


def take_over_volume(draft: Draft, volume: Volume, work_id: str) -> NewVolume:
    """Continue a volume that other work was making. That work can no longer seal it."""
    assert volume.building is not None
    volume = replace(volume, building=replace(volume.building, work_id=work_id))
    draft.put_volume(volume)
    return NewVolume(volume)


def require_building(state: State, new: NewVolume) -> Volume:
    """Return the record of a volume that is still being made by the work that began it.

    :raises diskyard.planner.common.Superseded: the volume was cleaned, or other work has taken it over.
    """
    volume = state.volumes.get(new.volume.id)
    if volume is None or volume.building is None or volume.building.work_id != new.work_id:
        raise Superseded(f"volume {new.volume.id} is no longer being built by this work")
    return volume


def seal_volume(draft: Draft, new: NewVolume) -> Volume:
    """Put a volume as ready. The storage must have it durably.

    :raises diskyard.planner.common.Superseded: other work has the volume; or the image that it reads has
        gone; or the volume that was cloned was found to be damaged, or is no longer the base's.
    :raises diskyard.errors.ImageBroken: the image that it reads has turned out to be damaged.
    """
    state = draft.state
    volume = require_building(state, new)
    require_parent(state, volume.parent_image_id)
    if volume.parent_image_id is not None:
        parent = state.images[volume.parent_image_id]
        if new.clone_of is not None:
            if parent.volume_id != new.clone_of.id:
                raise Superseded(f"the base of volume {volume.id} is on another volume")
            if state.volumes[new.clone_of.id].damage is not None:
                raise Superseded(f"volume {new.clone_of.id} was found to be damaged")
        require_sound(state, parent)
    parent_id = None if new.clone_of is not None else volume.parent_image_id
    sealed = replace(volume, state="ready", building=None, damage=None, parent_image_id=parent_id)
    draft.put_volume(sealed)
    return sealed


def require_parent(state: State, image_id: str | None) -> None:
    """Refuse a parent that has gone, is going, or whose bytes may change.

    :raises diskyard.planner.common.Superseded: the image is no base: see
        :func:`diskyard.planner.common.base_image`.
    """
    if image_id is not None and base_image(state, image_id) is None:
        raise Superseded(f"image {image_id} is gone, or is not frozen")
