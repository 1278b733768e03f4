"""The records of a volume that is being made: begun before it exists, sealed once it is whole.

Every plan that makes a volume begins it here, so that the log names it before it is on the storage, and
seals it here, so that none is sealed by work that others have taken over, or over a base that is not what
it was. What else a plan was chosen for it checks itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from diskyard.model.capabilities import Capabilities
from diskyard.model.records import Building, Image, Volume
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.planner.common import Superseded, require_sound
from diskyard.planner.volume_kind import Content, VolumeKind, choose_kind


@dataclass(frozen=True, slots=True)
class WorkIds:
    """Ids that nothing has yet: of a volume, and of the work that makes it."""

    volume_id: str
    work_id: str


@dataclass(frozen=True, slots=True)
class NewVolume:
    """A volume that work has begun.

    :param volume: as it was put; it names the work, and so who may seal it.
    :param clone_of: make it by sharing this volume's bytes; None to make an empty one.
    """

    volume: Volume
    clone_of: Volume | None = None

    @property
    def work_id(self) -> str:
        """The work that may seal it."""
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
    """Put a volume that is to be made.

    While it is building even a clone has the base as its parent, so that the base stays; sealing lets it go.

    :param same_as: what it is a clone of, if it is to be one.
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
    """Put a volume that a copy is to fill: with an image's bytes, or those that differ from its parent's."""
    content: Content = "copy" if parent_image_id is None else "difference"
    kind = choose_kind(capabilities, image.size_bytes, content, reserve=reserve)
    return begin_volume(
        draft, ids, kind, image_id=image.id, size_bytes=image.size_bytes, parent_image_id=parent_image_id
    )


def take_over_volume(draft: Draft, volume: Volume, work_id: str) -> NewVolume:
    """Go on with a volume that other work was making: that work can seal it no more."""
    assert volume.building is not None
    volume = replace(volume, building=replace(volume.building, work_id=work_id))
    draft.put_volume(volume)
    return NewVolume(volume)


def require_building(state: State, new: NewVolume) -> Volume:
    """The record of a volume, while the work that began it is the one that makes it.

    :raises diskyard.planner.common.Superseded: it was cleaned, or taken over by other work.
    """
    volume = state.volumes.get(new.volume.id)
    if volume is None or volume.building is None or volume.building.work_id != new.work_id:
        raise Superseded(f"volume {new.volume.id} is no longer being built by this work")
    return volume


def seal_volume(draft: Draft, new: NewVolume) -> Volume:
    """Put a volume as ready, which the storage has durably.

    :raises diskyard.planner.common.Superseded: it is other work's, or what it reads has gone; or what was
        cloned is not the base's volume any more: that was found to be damaged, and restored.
    :raises diskyard.errors.ImageBroken: what it reads has turned out to be damaged.
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
    """Refuse a parent that has gone, or is going, since the work was planned.

    :raises diskyard.planner.common.Superseded: it is not there, a merge consumes it, or its bytes may change.
    """
    if image_id is None:
        return
    parent = state.images.get(image_id)
    if parent is None or parent.consumed_by is not None or parent.kind != "snapshot":
        raise Superseded(f"image {image_id} is gone")
