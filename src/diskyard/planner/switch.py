"""The switch: a VirtualDisk continues in a new, empty overlay; what it held until now is frozen.

createSnapshot makes the frozen image strong; a freeze for a copy makes it held. Two switches of one disk can
run at the same time: the overlay's parent is the frozen *image*, and sealing decides which volume that image
points at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from diskyard import errors
from diskyard.model.capabilities import Capabilities
from diskyard.model.records import AnyHold, Attachment, Image, Strategy, Volume
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.planner import running
from diskyard.planner.building import NewVolume, WorkIds, begin_volume, require_building, seal_volume
from diskyard.planner.common import (
    Superseded,
    already_made,
    doomed,
    new_image,
    require_openable,
    require_settled,
    require_unattached,
    require_usable,
    virtual_disk,
)
from diskyard.planner.same import captured_now, why_another
from diskyard.planner.volume_kind import OVERLAY, choose_kind, is_whole_raw


class SwitchAgain(Exception):
    """The disk's size or volume is changing, or has changed: the switch needs another overlay."""


@dataclass(frozen=True, slots=True)
class Switch:
    """A request to freeze a disk's bytes as an image.

    :param image_id: the id of the frozen image.
    :param hold: the hold that keeps the image; None for a Snapshot, which becomes strong.
    :param strategy: the Snapshot's strategy; None for the disk's.
    :param attachment_id: the attachment whose running guest is to follow (``planner/running.py``); None for a
        disk that nobody uses.
    """

    disk_id: str
    image_id: str
    ids: WorkIds
    now: str
    attachment_id: str | None = None
    hold: AnyHold | None = None
    user_data: Any = None
    request_digest: str | None = None
    strategy: Strategy | None = None


def begin(draft: Draft, request: Switch) -> NewVolume | None:
    """Put the weak frozen image, and the overlay as building; None if this request was fulfilled before."""
    _discard_abandoned(draft, request)
    state = draft.state
    if request.request_digest is not None and already_made(state, request.image_id, request.request_digest):
        return None
    disk = _freezable(draft, request)
    if request.hold is not None:
        require_openable(state, disk)  # whoever holds it will read it
    frozen = new_image(
        draft,
        request.image_id,
        kind="snapshot",
        visibility="weak",
        size_bytes=disk.size_bytes,
        volume_id=disk.volume_id,
        strategy=request.strategy or disk.strategy,
        user_data=request.user_data,
        now=request.now,
        data_generation=disk.data_generation,
        captured_of=disk.id,
        # Only the seal knows what it captures: until then the disk may still change.
        origin=disk.origin,
        held_for=() if request.hold is None else (request.hold,),
        request_digest=request.request_digest,
    )
    draft.put_image(frozen)
    return begin_volume(
        draft, request.ids, OVERLAY, image_id=frozen.id, size_bytes=disk.size_bytes, parent_image_id=frozen.id
    )


def _freezable(draft: Draft, request: Switch) -> Image:
    """The disk, if its bytes are whole and nothing may be changing them but a guest that is to follow."""
    disk = virtual_disk(draft.state, request.disk_id)
    require_usable(draft, disk)
    if _writer(draft.state, disk, request) is not None:
        require_openable(draft.state, disk, more=1)  # its guest must be able to start again
    require_settled(draft.state, disk)
    return disk


def _writer(state: State, disk: Image, request: Switch) -> Attachment | None:
    """The attachment whose guest is to follow; None if nobody uses the disk, as the request has it."""
    if request.attachment_id is None:
        require_unattached(state, disk)
        return None
    return running.require_followable(state, disk, request.attachment_id)


def _discard_abandoned(draft: Draft, request: Switch) -> None:
    """Undo what an earlier attempt of the same request left. We have its lease now."""
    image = draft.state.images.get(request.image_id)
    if image is None or image.is_strong or image.request_digest != request.request_digest:
        return
    dependents = [draft.state.volumes[key] for key in draft.state.dependents(image.id)]
    own = (volume.building is not None and volume.building.image_id == image.id for volume in dependents)
    if image.held_for or not all(own):
        return  # it was a Snapshot, and others need it: its id is in use
    for volume in dependents:
        draft.put_volume(doomed(volume))
    draft.remove_image(image.id)


def seal(draft: Draft, request: Switch, new: NewVolume) -> Image:
    """Commit the switch: the disk continues in the overlay, and the frozen image has the disk's bytes of now.

    Others may have switched the disk since, or changed its volume. It must have the size that the overlay was
    made for.

    If a guest uses the disk, this comes before it follows: the overlay is empty, so both volumes are right.
    The frozen image is weak until ``running.complete``, or goes again with ``running.undo``.

    :returns: the frozen image.
    :raises Superseded: the overlay or the frozen image is gone.
    :raises SwitchAgain: the disk has another size now, or is being extended.
    """
    state = draft.state
    disk = virtual_disk(state, request.disk_id)
    require_usable(draft, disk)
    writer = _writer(state, disk, request)
    overlay = require_building(state, new)
    frozen = state.images.get(request.image_id)
    if frozen is None or overlay.parent_image_id != frozen.id:
        raise Superseded(f"the frozen image {request.image_id} is gone")
    assert disk.volume_id is not None
    if overlay.size_bytes != disk.size_bytes or state.volumes[disk.volume_id].extending is not None:
        raise SwitchAgain
    frozen = replace(
        frozen,
        volume_id=disk.volume_id,
        data_generation=disk.data_generation,
        captured=captured_now(draft, disk),
        origin=disk.origin,
        captured_at=request.now,
        size_bytes=disk.size_bytes,
        strategy=request.strategy or disk.strategy,
        visibility="strong" if request.hold is None else "weak",
    )
    draft.put_image(frozen)
    disk = replace(disk, volume_id=overlay.id)
    draft.put_image(disk)
    seal_volume(draft, new)  # now that nothing writes to the frozen image any more
    if writer is not None:  # but the guest does, until it has followed
        draft.put_image(replace(frozen, visibility="weak", captured=None))
        draft.put_image(replace(disk, data_generation=draft.entry, origin=None))
        running.expect_guest(draft, writer, frozen, new.work_id)
    return frozen


@dataclass(frozen=True, slots=True)
class Clone:
    """A frozen image to be made by sharing the bytes of a disk's only volume, which is raw.

    :param new: the volume that is to hold the bytes.
    :param disk: the disk, as it was when ``new`` was put.
    """

    new: NewVolume
    disk: Image


def begin_clone(draft: Draft, request: Switch, capabilities: Capabilities) -> Clone | None:
    """Put a volume for a frozen image that shares the disk's bytes; None if it cannot be a clone.

    It can be one if the storage can share bytes, and all of the disk's bytes are in one raw volume. The
    state of the draft decides, not what the caller saw before: a qcow2 file that is cloned as if it were raw
    would show other bytes.
    """
    disk = _freezable(draft, request)
    source = draft.state.volumes[disk.volume_id or ""]
    kind = choose_kind(capabilities, source.size_bytes, "difference", same_as=source)
    if not kind.is_clone:
        return None
    new = begin_volume(
        draft, request.ids, kind, image_id=request.image_id, size_bytes=source.size_bytes, same_as=source
    )
    return Clone(new, disk)


def seal_clone(draft: Draft, request: Switch, clone: Clone) -> Image:
    """Commit a weak, held image with the disk's bytes, if these have not changed since.

    :returns: the frozen image.
    :raises Superseded: the disk may have been written to, or is on another volume.
    """
    disk = _freezable(draft, request)
    source, cloned, was = draft.state.volumes[disk.volume_id or ""], clone.new.clone_of, clone.disk
    same = cloned is not None and (source.id, source.size_bytes) == (cloned.id, cloned.size_bytes)
    if not same or not is_whole_raw(source):
        raise Superseded(f"disk {disk.id} is on another volume")
    if (disk.data_generation, disk.size_bytes) != (was.data_generation, was.size_bytes):
        raise Superseded(f"disk {disk.id} changed while it was frozen")
    volume = seal_volume(draft, clone.new)
    frozen = new_image(
        draft,
        request.image_id,
        kind="snapshot",
        visibility="weak",
        size_bytes=disk.size_bytes,
        volume_id=volume.id,
        strategy=disk.strategy,
        user_data=None,
        now=request.now,
        data_generation=disk.data_generation,
        captured_of=disk.id,
        captured=captured_now(draft, disk),
        origin=disk.origin,
        held_for=() if request.hold is None else (request.hold,),
    )
    draft.put_image(frozen)
    return frozen


def reusable_freeze_point(state: State, disk: Image) -> tuple[Image, Volume] | None:
    """A frozen image that still has the disk's bytes, provided that the disk's overlay is unwritten.

    :returns: the image and the overlay. The caller must check that the overlay is unwritten.
    """
    if disk.volume_id is None or disk.pending is not None:
        return None
    overlay = state.volumes[disk.volume_id]
    frozen = state.images.get(overlay.parent_image_id or "")
    if frozen is None or overlay.format != "qcow2" or state.attachments_of(disk.id):
        return None
    same = (
        frozen.kind == "snapshot"
        and frozen.consumed_by is None
        and frozen.pending is None
        and frozen.size_bytes == disk.size_bytes
        and overlay.extending is None
    )
    return (frozen, overlay) if same else None


def hold_again(draft: Draft, disk: Image, frozen_id: str, overlay_id: str, new_hold: AnyHold) -> Image | None:
    """Hold a freeze point found by :func:`reusable_freeze_point`; None if it is no longer one.

    :param disk: the disk as it was when its overlay was seen to be unwritten.
    :returns: the freeze point, with the hold.
    """
    now = virtual_disk(draft.state, disk.id)
    require_usable(draft, now)
    found = reusable_freeze_point(draft.state, now)
    if found is None or now.data_generation != disk.data_generation:
        return None
    # The overlay's parent must be the same too: a merge may have written into the overlay, and removed it.
    frozen, overlay = found
    require_openable(draft.state, frozen)
    return _held(draft, frozen, new_hold) if (frozen.id, overlay.id) == (frozen_id, overlay_id) else None


def hold(draft: Draft, was: Image, new_hold: AnyHold) -> Image:
    """Hold a Snapshot, weak or strong, so that its bytes stay.

    :param was: the Snapshot as it was when it was found.
    :returns: the Snapshot, with the hold.
    :raises diskyard.errors.ImageBroken: the Snapshot cannot be read.
    :raises diskyard.errors.ImageNotFound: the Snapshot was removed since it was found.
    :raises diskyard.errors.Unsupported: the Snapshot's chain is too deep to be opened.
    """
    image = draft.state.images.get(was.id)
    gone = image is None or image.kind != "snapshot" or image.consumed_by is not None
    if image is None or gone or why_another(was, image) is not None:
        raise errors.ImageNotFound(f"Snapshot {was.id} was removed meanwhile.", imageId=was.id)
    require_usable(draft, image)
    require_openable(draft.state, image)
    return _held(draft, image, new_hold)


def _held(draft: Draft, image: Image, new_hold: AnyHold) -> Image:
    if new_hold not in image.held_for:
        image = replace(image, held_for=(*image.held_for, new_hold))
        draft.put_image(image)
    return image


def release(draft: Draft, image_id: str, old_hold: AnyHold) -> bool:
    """End a hold; False if there is no such hold."""
    image = draft.state.images.get(image_id)
    if image is None or old_hold not in image.held_for:
        return False
    rest = tuple(found for found in image.held_for if found != old_hold)
    draft.put_image(replace(image, held_for=rest))
    return True
