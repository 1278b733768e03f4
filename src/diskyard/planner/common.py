"""What every planner needs: finding images, refusing what must be refused, new volumes."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from msgspec.structs import replace

from diskyard import errors
from diskyard.model.records import Building, Image, ImageKind, Strategy, Volume
from diskyard.model.state import State
from diskyard.model.status import NONE_MISSING, why_broken
from diskyard.model.transaction import Draft
from diskyard.planner.volume_kind import VolumeKind

#: libvirt refuses more, and QEMU's time to open a chain grows with the square of its depth.
CHAIN_DEPTH_OPENED = 200
_LOST = (
    "Connect a repository that has it whole, and run the mend that checkStorageRepository lists then; or put "
    "the volume back from a backup of the repository."
)


class Superseded(Exception):
    """The work is no longer wanted: another worker, or a newer change, has come before it."""


def strong_image(state: State, image_id: str) -> Image:
    """The image of this id that verbs return.

    :raises diskyard.errors.ImageNotFound: there is none in this repository.
    """
    image = state.images.get(image_id)
    if image is None or not image.is_strong:
        raise errors.ImageNotFound(f"There is no image {image_id} here.", imageId=image_id)
    return image


def virtual_disk(state: State, image_id: str) -> Image:
    """The VirtualDisk of this id.

    :raises diskyard.errors.NotAVirtualDisk: it is a Snapshot.
    """
    image = strong_image(state, image_id)
    if image.kind != "virtual_disk":
        raise errors.NotAVirtualDisk(f"Image {image_id} is a Snapshot.", imageId=image_id)
    return image


def snapshot(state: State, image_id: str) -> Image:
    """The Snapshot of this id.

    :raises diskyard.errors.NotASnapshot: it is a VirtualDisk.
    """
    image = strong_image(state, image_id)
    if image.kind != "snapshot":
        raise errors.NotASnapshot(f"Image {image_id} is a VirtualDisk.", imageId=image_id)
    return image


def require_usable(state: State, image: Image, missing: Container[str] = NONE_MISSING) -> None:
    """Refuse an image whose bytes cannot be read.

    :raises diskyard.errors.ImageBroken: says why.
    :raises diskyard.model.looked.LookAgain: what is missing was looked for in another chain.
    """
    why = why_broken(state, image, missing)
    if why is not None:
        # What is pending somewhere in its chain is completed by a mend; what is lost may not be.
        is_lost = all(link.pending is None for link, _ in state.chain(image)) and image.volume_id is not None
        raise errors.ImageBroken(
            f"Image {image.id} cannot be read: {why}.",
            advice=_LOST if is_lost else None,
            imageId=image.id,
        )


def require_unattached(state: State, image: Image, *, but_readers: bool = False) -> None:
    """Refuse an image that a guest uses.

    :param but_readers: attachments that only read do not matter.
    :raises diskyard.errors.ImageInUse: names host and owner.
    """
    for attachment in state.attachments_of(image.id):
        if but_readers and attachment.mode == "read_only":
            continue
        raise errors.ImageInUse(
            f"Image {image.id} is attached on host {attachment.host.host_id} for {attachment.owner}.",
            imageId=image.id,
            hostID=attachment.host.host_id,
            owner=attachment.owner,
        )


def already_made(state: State, image_id: str, request_digest: str) -> bool:
    """Whether the same request has made this image: repeating it is a no-op then.

    :raises diskyard.errors.ImageIdInUse: another request made it.
    """
    image = state.images.get(image_id)
    if image is None:
        return False
    if image.is_strong and image.request_digest == request_digest:
        return True
    raise errors.ImageIdInUse(
        f"Image id {image_id} belongs to an image that another request made.", imageId=image_id
    )


def building_volume(
    draft: Draft,
    volume_id: str,
    *,
    kind: VolumeKind,
    parent_image_id: str | None,
    size_bytes: int,
    work_id: str,
    image_id: str,
) -> Volume:
    """Put a new volume that is to be made; the log must say so before it exists."""
    volume = Volume(
        id=volume_id,
        format=kind.format,
        parent_image_id=parent_image_id,
        size_bytes=size_bytes,
        named_by=draft.entry,
        preallocated=kind.preallocated,
        state="building",
        building=Building(work_id=work_id, image_id=image_id),
    )
    draft.put_volume(volume)
    return volume


def require_openable(state: State, image: Image) -> None:
    """Refuse an image whose chain is deeper than what can be opened together.

    :raises diskyard.errors.Unsupported: it is.
    """
    depth = sum(1 for _ in state.chain(image))
    if depth > CHAIN_DEPTH_OPENED:
        raise errors.Unsupported(
            f"The chain of image {image.id} is {depth} volumes deep; at most {CHAIN_DEPTH_OPENED} "
            "can be opened together.",
            advice="Remove Snapshots that it reads and are not needed, then run the merge fixes that "
            "checkStorageRepository lists, then the image's optimize fix.",
            imageId=image.id,
        )


def require_building(state: State, volume_id: str, work_id: str) -> Volume:
    """The volume that this work is making: the precondition of every seal.

    :raises Superseded: it was cleaned, or taken over by other work.
    """
    volume = state.volumes.get(volume_id)
    if volume is None or volume.building is None or volume.building.work_id != work_id:
        raise Superseded(f"volume {volume_id} is no longer being built by this work")
    return volume


def require_parent(state: State, image_id: str | None) -> None:
    """Refuse a parent that has gone, or is going, since the work was planned.

    :raises Superseded: it is not there, a merge consumes it, or its bytes may change.
    """
    if image_id is None:
        return
    parent = state.images.get(image_id)
    if parent is None or parent.consumed_by is not None or parent.kind != "snapshot":
        raise Superseded(f"image {image_id} is gone")


def ready(volume: Volume) -> Volume:
    """A volume sealed."""
    return replace(volume, state="ready", building=None, damage=None)


def doomed(volume: Volume) -> Volume:
    """A volume that is to be deleted: it reads nothing any more, and no work wants it."""
    return replace(volume, state="doomed", parent_image_id=None, building=None, extending=None)


def require_settled(state: State, image: Image) -> None:
    """Refuse a disk whose size is in doubt: an extend is under way, or was cut and not settled yet.

    :raises diskyard.errors.LeaseHeld: in a moment it may be settled.
    """
    volume = state.volumes.get(image.volume_id or "")
    if volume is not None and volume.extending is not None:
        raise errors.LeaseHeld(f"VirtualDisk {image.id} is being extended.", imageId=image.id)


def new_image(
    draft: Draft,
    image_id: str,
    *,
    kind: ImageKind,
    size_bytes: int,
    volume_id: str | None,
    strategy: Strategy,
    user_data: Any,
    now: str,
    **more: Any,
) -> Image:
    """A strong image that this entry makes, unless ``more`` says otherwise; it is not put."""
    fields = {"visibility": "strong", "captured_at": now, "data_generation": draft.entry, **more}
    return Image(
        id=image_id,
        kind=kind,
        size_bytes=size_bytes,
        volume_id=volume_id,
        strategy=strategy,
        user_data=user_data,
        created_at=now,
        revision=draft.entry,
        **fields,
    )
