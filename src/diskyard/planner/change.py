"""Verbs that change one image in one transaction: remove, revert, set userData, set strategy."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from diskyard import errors
from diskyard.model.capabilities import Capabilities
from diskyard.model.records import Image, Strategy, TrackHold
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.planner.building import NewVolume, WorkIds, seal_volume
from diskyard.planner.common import (
    Superseded,
    require_unattached,
    require_usable,
    snapshot,
    strong_image,
    virtual_disk,
)
from diskyard.planner.create_disk import volume_from_base


def remove(draft: Draft, image_id: str) -> Image:
    """Make the image weak. Normalising then removes it, or keeps it hidden while others need it.

    Removing a disk ends its trackers. Removing a pending image cancels it.

    :returns: the image as it was.
    :raises diskyard.errors.ImageInUse: it is attached; or the base of a copy that has no volume yet, and so
        nothing but its request that would keep the base. A VirtualDisk with the base's id is no base.
    """
    image = strong_image(draft.state, image_id)
    require_unattached(draft.state, image)
    if image.kind == "snapshot":
        _require_not_awaited(draft.state, image_id)
    _make_weak(draft, image)
    return image


def take_back(draft: Draft, copy_id: str) -> None:
    """Remove a pending copy that was not answered: nothing keeps its bytes.

    A copy that waits for this one as its base does not keep it: force completes that one without it. An image
    that is not pending stays: others have completed it, or it is a Snapshot that was there before.
    """
    image = draft.state.images.get(copy_id)
    if image is not None and image.is_strong and image.pending is not None:
        _make_weak(draft, image)


def _require_not_awaited(state: State, image_id: str) -> None:
    for copy_id in sorted(state.waiting_for(image_id)):
        raise errors.ImageInUse(
            f"Image {image_id} is the base of image {copy_id}, which is still to be copied.",
            advice="Let the copy be completed first (checkStorageRepository lists its mend), or remove it.",
            imageId=image_id,
        )


def _make_weak(draft: Draft, image: Image) -> None:
    end_trackers(draft, image.id)
    draft.put_image(replace(image, visibility="weak", user_data=None))


def end_trackers(draft: Draft, disk_id: str, copy_id: str | None = None) -> bool:
    """Release the freeze points that track a disk's changes: all, or only those for one copy.

    :returns: whether there were any.
    """
    ended = False
    for held_id in list(draft.state.held):
        held = draft.state.images[held_id]
        rest = tuple(
            found
            for found in held.held_for
            if not (
                isinstance(found, TrackHold) and found.disk_id == disk_id and copy_id in (None, found.copy_id)
            )
        )
        if rest != held.held_for:
            draft.put_image(replace(held, held_for=rest))
            ended = True
    return ended


def set_user_data(draft: Draft, image_id: str, user_data: Any, if_revision: str | None) -> None:
    """Replace an image's userData.

    :raises diskyard.errors.RevisionMismatch: the image changed since the caller read it.
    """
    image = strong_image(draft.state, image_id)
    if if_revision is not None and image.revision != if_revision:
        raise errors.RevisionMismatch(
            f"Image {image_id} is at revision {image.revision}, not {if_revision}.",
            imageId=image_id,
        )
    if image.user_data != user_data:
        draft.put_image(replace(image, user_data=user_data, revision=draft.entry))


def set_strategy(draft: Draft, image_id: str, strategy: Strategy) -> None:
    """Change what the image is to be optimized for."""
    image = strong_image(draft.state, image_id)
    if image.strategy != strategy:
        draft.put_image(replace(image, strategy=strategy, revision=draft.entry))


def begin_revert(
    draft: Draft, disk_id: str, snapshot_id: str, ids: WorkIds, capabilities: Capabilities
) -> NewVolume:
    """Put the volume that shows the Snapshot's bytes as building."""
    disk = virtual_disk(draft.state, disk_id)
    require_unattached(draft.state, disk)
    if disk.pending is not None:
        raise errors.ImageBroken(
            f"Disk {disk_id} is still being made; remove it instead of reverting it.",
            imageId=disk_id,
        )
    base = snapshot(draft.state, snapshot_id)
    require_usable(draft, base)
    return volume_from_base(
        draft, base, ids, image_id=disk_id, size_bytes=base.size_bytes, capabilities=capabilities
    )


def seal_revert(draft: Draft, disk_id: str, new: NewVolume) -> None:
    """Commit the revert: the disk has the Snapshot's bytes and size. Normalising dooms the old volume."""
    disk = virtual_disk(draft.state, disk_id)
    require_unattached(draft.state, disk)
    if disk.pending is not None:
        raise Superseded(f"disk {disk_id} is another one, and still being made")
    volume = seal_volume(draft, new)
    draft.put_image(
        replace(
            disk,
            volume_id=volume.id,
            size_bytes=volume.size_bytes,
            revision=draft.entry,
            data_generation=draft.entry,
            origin=None,
        )
    )
