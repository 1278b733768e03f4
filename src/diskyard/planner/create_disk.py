"""createVirtualDisk, and the volume that shows a Snapshot's bytes without copying them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diskyard import errors
from diskyard.model.capabilities import Capabilities
from diskyard.model.records import Image, Strategy
from diskyard.model.transaction import Draft
from diskyard.planner.building import NewVolume, WorkIds, begin_volume, seal_volume
from diskyard.planner.common import (
    Superseded,
    already_made,
    new_image,
    require_usable,
    snapshot,
)
from diskyard.planner.volume_kind import choose_kind


@dataclass(frozen=True, slots=True)
class CreateDisk:
    """A request for a VirtualDisk, empty or from a Snapshot of the same repository."""

    image_id: str
    ids: WorkIds
    size_bytes: int
    base_snapshot_id: str | None
    strategy: Strategy
    user_data: Any
    request_digest: str
    now: str


def volume_from_base(
    draft: Draft, base: Image, ids: WorkIds, *, image_id: str, size_bytes: int, capabilities: Capabilities
) -> NewVolume:
    """Put a volume that shows a Snapshot's bytes without copying them: a clone, or an overlay."""
    assert base.volume_id is not None
    base_volume = draft.state.volumes[base.volume_id]
    return begin_volume(
        draft,
        ids,
        choose_kind(capabilities, size_bytes, "difference", same_as=base_volume),
        image_id=image_id,
        size_bytes=size_bytes,
        parent_image_id=base.id,
        same_as=base_volume,
    )


def begin(draft: Draft, request: CreateDisk, capabilities: Capabilities) -> NewVolume | None:
    """Put the disk's volume as building; None if the disk was made already.

    :raises diskyard.errors.InvalidParameter: the disk would be smaller than its base.
    """
    if already_made(draft.state, request.image_id, request.request_digest):
        return None
    size_bytes = request.size_bytes
    if request.base_snapshot_id is None:
        reserve = request.strategy == "performance"
        kind = choose_kind(capabilities, size_bytes, "zeros", reserve=reserve)
        return begin_volume(draft, request.ids, kind, image_id=request.image_id, size_bytes=size_bytes)
    base = snapshot(draft.state, request.base_snapshot_id)
    require_usable(draft, base)
    require_not_smaller(size_bytes, base)
    return volume_from_base(
        draft, base, request.ids, image_id=request.image_id, size_bytes=size_bytes, capabilities=capabilities
    )


def require_not_smaller(size_bytes: int, base: Image) -> None:
    """Refuse a disk that could not show all of its base.

    :raises diskyard.errors.InvalidParameter: the disk would be smaller than its base.
    """
    if size_bytes < base.size_bytes:
        raise errors.InvalidParameter(
            f"The size {size_bytes} is smaller than its base's, {base.size_bytes}.", imageId=base.id
        )


def seal(draft: Draft, request: CreateDisk, new: NewVolume) -> None:
    """Commit the request: the disk exists. Its base may have been removed by now, but not merged away.

    :raises diskyard.planner.common.Superseded: another task has made the disk; or see :func:`seal_volume`.
    """
    if already_made(draft.state, request.image_id, request.request_digest):
        raise Superseded(f"disk {request.image_id} was made by another task")
    volume = seal_volume(draft, new)
    draft.put_image(
        new_image(
            draft,
            request.image_id,
            kind="virtual_disk",
            size_bytes=request.size_bytes,
            volume_id=volume.id,
            strategy=request.strategy,
            user_data=request.user_data,
            now=request.now,
            request_digest=request.request_digest,
        )
    )
