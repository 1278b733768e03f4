"""What every planner needs: finding images, and refusing requests that must be refused."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from diskyard import errors
from diskyard.model.looked import Missing, Seen
from diskyard.model.records import Image, ImageKind, Strategy, Volume
from diskyard.model.state import State
from diskyard.model.status import NONE_MISSING, why_broken
from diskyard.model.transaction import Draft

#: libvirt refuses more, and QEMU's time to open a chain grows with the square of its depth.
CHAIN_DEPTH_OPENED = 200
_LOST = (
    "Connect a repository that has it whole, and run the mend that checkStorageRepository lists then; or put "
    "the volume back from a backup of the repository."
)


class Superseded(Exception):
    """The work is no longer wanted: another worker, or a newer change, was quicker."""


def strong_image(state: State, image_id: str) -> Image:
    """The image with this id, if verbs return it.

    :raises diskyard.errors.ImageNotFound: this repository has no such image.
    """
    image = state.images.get(image_id)
    if image is None or not image.is_strong:
        raise errors.ImageNotFound(f"There is no image {image_id} here.", imageId=image_id)
    return image


def virtual_disk(state: State, image_id: str) -> Image:
    """The VirtualDisk with this id.

    :raises diskyard.errors.ImageNotFound: this repository has no such image.
    :raises diskyard.errors.NotAVirtualDisk: the image is a Snapshot.
    """
    image = strong_image(state, image_id)
    if image.kind != "virtual_disk":
        raise errors.NotAVirtualDisk(f"Image {image_id} is a Snapshot.", imageId=image_id)
    return image


def snapshot(state: State, image_id: str) -> Image:
    """The Snapshot with this id.

    :raises diskyard.errors.ImageNotFound: this repository has no such image.
    :raises diskyard.errors.NotASnapshot: the image is a VirtualDisk.
    """
    image = strong_image(state, image_id)
    if image.kind != "snapshot":
        raise errors.NotASnapshot(f"Image {image_id} is a VirtualDisk.", imageId=image_id)
    return image


def require_usable(seen: Seen, image: Image) -> None:
    """Refuse an image whose bytes cannot be read, as far as the storage and the records tell.

    :raises diskyard.errors.ImageBroken: says why.
    :raises diskyard.model.looked.LookAgain: missing volumes were looked for in another chain, or not at all.
    """
    _refuse_broken(seen.state, image, seen.missing)


def require_sound(state: State, image: Image) -> None:
    """Refuse an image that cannot be read according to the records alone, without looking at the storage.

    :raises diskyard.errors.ImageBroken: says why.
    """
    _refuse_broken(state, image, NONE_MISSING)


def _refuse_broken(state: State, image: Image, missing: Missing) -> None:
    why = why_broken(state, image, missing)
    if why is not None:
        # A mend completes what is pending in the chain. It may not be able to restore what is lost.
        is_lost = all(link.pending is None for link, _ in state.chain(image)) and image.volume_id is not None
        raise errors.ImageBroken(
            f"Image {image.id} cannot be read: {why}.",
            advice=_LOST if is_lost else None,
            imageId=image.id,
        )


def base_image(state: State, image_id: str | None) -> Image | None:
    """The image with this id, if a volume may read it: nobody changes its bytes, and no merge consumes it."""
    image = state.images.get(image_id or "")
    if image is None or image.kind != "snapshot" or image.consumed_by is not None:
        return None
    return image if _is_frozen(state, image) else None


def _is_frozen(state: State, image: Image) -> bool:
    """Whether nobody writes to an image's volume, and the image's record says what its bytes are.

    A kind does not tell. Until a switch is sealed, the image that it makes is on its disk's volume, which a
    guest may be given. If the disk then goes, the record still has the origin of the bytes before the guest.
    """
    on_it = () if image.volume_id is None else state.images_on(image.volume_id)
    if any(state.images[key].kind == "virtual_disk" for key in on_it) or _is_left(state, image):
        return False
    return image.is_strong or image.captured is not None or not _is_being_made(state, image)


def _is_left(state: State, image: Image) -> bool:
    """Whether a running guest is being moved from an image's volume, and may still write there."""
    naming = () if image.volume_id is None else state.attachments_naming(image.volume_id)
    switches = (state.attachments[key].switching for key in naming)
    return any(switching is not None and switching.image_id == image.id for switching in switches)


def _is_being_made(state: State, image: Image) -> bool:
    """Whether a switch that makes an image is not sealed: the overlay that reads it is built for it."""
    readers = (state.volumes[key].building for key in state.dependents(image.id))
    return any(building is not None and building.image_id == image.id for building in readers)


def require_unattached(
    state: State, image: Image, *, but_readers: bool = False, but_live: bool = False
) -> None:
    """Refuse an image that a guest uses.

    :param but_readers: allow attachments that only read.
    :param but_live: allow a guest that can be talked to while it runs.
    :raises diskyard.errors.ImageInUse: names the host and the owner.
    """
    for attachment in state.attachments_of(image.id):
        if but_readers and attachment.mode == "read_only":
            continue
        if but_live and attachment.live is not None:
            continue
        raise errors.ImageInUse(
            f"Image {image.id} is attached on host {attachment.host.host_id} for {attachment.owner}.",
            imageId=image.id,
            hostID=attachment.host.host_id,
            owner=attachment.owner,
        )


def already_made(state: State, image_id: str, request_digest: str) -> bool:
    """Whether the same request has made this image: then repeating the request does nothing.

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


def require_openable(state: State, image: Image, *, more: int = 0) -> None:
    """Refuse an image whose chain has more volumes than can be opened together.

    :param more: how many volumes the chain is about to get.
    :raises diskyard.errors.Unsupported: the chain is too deep.
    """
    depth = more + sum(1 for _ in state.chain(image))
    if depth > CHAIN_DEPTH_OPENED:
        raise errors.Unsupported(
            f"The chain of image {image.id} is {depth} volumes deep; at most {CHAIN_DEPTH_OPENED} "
            "can be opened together.",
            advice="Remove Snapshots that it reads and are not needed, then run the merge fixes that "
            "checkStorageRepository lists, then the image's optimize fix.",
            imageId=image.id,
        )


def doomed(volume: Volume) -> Volume:
    """The record of a volume as one to be deleted: it no longer reads anything, and no work wants it."""
    return replace(volume, state="doomed", parent_image_id=None, building=None, extending=None)


def require_settled(state: State, image: Image) -> None:
    """Refuse a disk whose size is in doubt: an extend is under way, or was interrupted and is not settled.

    :raises diskyard.errors.LeaseHeld: the size is in doubt. It may be settled in a moment.
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
    """Return a new image of this entry, without putting it; strong unless ``more`` says otherwise."""
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
