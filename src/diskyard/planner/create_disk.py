"""createVirtualDisk, and the volume that represents an image's bytes at no cost."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from diskyard import errors
from diskyard.model.capabilities import Capabilities
from diskyard.model.records import Image, Strategy, Volume
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.planner.common import (
    Superseded,
    already_made,
    building_volume,
    new_image,
    ready,
    require_building,
    require_usable,
    snapshot,
)
from diskyard.planner.volume_kind import choose_kind


@dataclass(frozen=True, slots=True)
class CreateDisk:
    """A request for a VirtualDisk, empty or from a Snapshot of the same repository."""

    image_id: str
    volume_id: str
    work_id: str
    size_bytes: int
    base_snapshot_id: str | None
    strategy: Strategy
    user_data: Any
    request_digest: str
    now: str


@dataclass(frozen=True, slots=True)
class NewVolume:
    """How to make a volume that was put as building.

    :param clone_of: copy this volume by sharing its bytes; None to make an empty one.
    """

    volume: Volume
    clone_of: Volume | None


def volume_from_base(
    draft: Draft,
    base: Image,
    *,
    volume_id: str,
    size_bytes: int,
    work_id: str,
    image_id: str,
    capabilities: Capabilities,
) -> NewVolume:
    """Put a volume that shows a Snapshot's bytes at once: a clone, or an overlay.

    While it is building even a clone has the base as its parent, so that the base stays;
    sealing it (:func:`seal_from_base`) lets it go.
    """
    assert base.volume_id is not None
    base_volume = draft.state.volumes[base.volume_id]
    kind = choose_kind(capabilities, size_bytes, "difference", same_as=base_volume)
    volume = building_volume(
        draft,
        volume_id,
        kind=kind,
        parent_image_id=base.id,
        size_bytes=size_bytes,
        work_id=work_id,
        image_id=image_id,
    )
    return NewVolume(volume, base_volume if kind.is_clone else None)


def seal_from_base(state: State, new: NewVolume, work_id: str) -> Volume:
    """The sealed record of a volume that :func:`volume_from_base` put.

    :raises diskyard.planner.common.Superseded: it is other work's, or what was cloned is not
        the base's volume any more: that was found to be damaged, and restored.
    """
    building = require_building(state, new.volume.id, work_id)
    if new.clone_of is None:
        return ready(building)
    base = state.images.get(building.parent_image_id or "")
    if base is None or base.volume_id != new.clone_of.id:
        raise Superseded(f"the base of volume {building.id} is on another volume")
    if state.volumes[new.clone_of.id].damage is not None:
        raise Superseded(f"volume {new.clone_of.id} was found to be damaged")
    return replace(ready(building), parent_image_id=None)


def begin(
    draft: Draft, request: CreateDisk, capabilities: Capabilities, missing: Container[str]
) -> NewVolume | None:
    """Put the disk's volume as building; None if the disk was made already.

    :raises diskyard.errors.InvalidParameter: it would be smaller than its base.
    """
    if already_made(draft.state, request.image_id, request.request_digest):
        return None
    if request.base_snapshot_id is None:
        volume = building_volume(
            draft,
            request.volume_id,
            kind=choose_kind(
                capabilities, request.size_bytes, "zeros", reserve=request.strategy == "performance"
            ),
            parent_image_id=None,
            size_bytes=request.size_bytes,
            work_id=request.work_id,
            image_id=request.image_id,
        )
        return NewVolume(volume, None)
    base = snapshot(draft.state, request.base_snapshot_id)
    require_usable(draft.state, base, missing)
    if request.size_bytes < base.size_bytes:
        raise errors.InvalidParameter(
            f"The size {request.size_bytes} is smaller than its base's, {base.size_bytes}.",
            imageId=base.id,
        )
    return volume_from_base(
        draft,
        base,
        volume_id=request.volume_id,
        size_bytes=request.size_bytes,
        work_id=request.work_id,
        image_id=request.image_id,
        capabilities=capabilities,
    )


def seal(draft: Draft, request: CreateDisk, new: NewVolume) -> None:
    """The commit: the disk exists. That its base may have been removed by now does not matter."""
    if already_made(draft.state, request.image_id, request.request_digest):
        raise Superseded(f"disk {request.image_id} was made by another task")
    draft.put_volume(seal_from_base(draft.state, new, request.work_id))
    draft.put_image(
        new_image(
            draft,
            request.image_id,
            kind="virtual_disk",
            size_bytes=request.size_bytes,
            volume_id=request.volume_id,
            strategy=request.strategy,
            user_data=request.user_data,
            now=request.now,
            request_digest=request.request_digest,
        )
    )
