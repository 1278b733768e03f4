"""mend: the records by which work completes or restores an image."""

from __future__ import annotations

from msgspec.structs import replace

from diskyard.model.capabilities import Capabilities
from diskyard.model.looked import Missing
from diskyard.model.records import DONE_BY_OTHERS, CopyHold, Image, TrackHold, Volume
from diskyard.model.state import State
from diskyard.model.status import (
    why_broken,
)
from diskyard.model.transaction import Draft
from diskyard.planner.building import (
    NewVolume,
    WorkIds,
    begin_filled,
    require_parent,
    seal_volume,
    take_over_volume,
)
from diskyard.planner.common import (
    Superseded,
    base_image,
    require_usable,
)
from diskyard.planner.same import names_history, why_another
from diskyard.planner.switch import release


def take_over(
    draft: Draft, was: Image, ids: WorkIds, *, keep: bool, capabilities: Capabilities
) -> tuple[NewVolume, Volume | None]:
    """Make this work the only one that may seal a pending image, and put its volume.

    :param was: the image as it was when the mend was decided.
    :param keep: continue in the existing volume, if there is one.
    :returns: the volume, and the one that the image had before, if any.
    :raises Superseded: the image is no longer pending, or its request has changed.
    :raises diskyard.errors.ImageBroken: the image's base cannot be read.
    """
    image = draft.state.images.get(was.id)
    if image is None or image.pending is None or was.pending is None or not image.is_strong:
        raise Superseded(f"image {was.id} is not pending any more")
    base_id = image.pending.base_image_id
    wanted = (image.pending.source, base_id, image.size_bytes, image.volume_id)
    if wanted != (was.pending.source, was.pending.base_image_id, was.size_bytes, was.volume_id):
        raise Superseded(f"image {was.id} is another one, or another's work")
    require_parent(draft.state, base_id)
    if base_id is not None:
        require_usable(draft, draft.state.images[base_id])
    old = draft.state.volumes.get(image.volume_id or "")
    if old is not None and old.building is not None and keep:
        new = take_over_volume(draft, old, ids.work_id)
    else:
        new = begin_filled(draft, ids, image, capabilities, base_id)
    pending = replace(image.pending, work_id=ids.work_id)
    draft.put_image(replace(image, volume_id=new.volume.id, last_error=None, pending=pending))
    return new, old


def forget_base(draft: Draft, was: Image) -> Image:
    """Let a pending image need no base: all of its bytes are where it is copied from.

    A volume that it may have reads the base, and is left to be cleaned.

    :param was: the image as it was when this was decided.
    :returns: the image, without base and volume.
    :raises Superseded: the image is no longer pending, or other work has it.
    """
    image = draft.state.images.get(was.id)
    if image is None or image.pending is None or image.pending != was.pending or not image.is_strong:
        raise Superseded(f"image {was.id} is not pending any more, or is another's work")
    alone = replace(image, volume_id=None, pending=replace(image.pending, base_image_id=None))
    draft.put_image(alone)
    return alone


def seal_pending(draft: Draft, image_id: str, new: NewVolume) -> Image:
    """Commit that the image is whole.

    :raises Superseded: the image was removed, or other work has taken it over.
    :raises diskyard.errors.ImageBroken: the image's base has turned out to be damaged.
    """
    image = draft.state.images.get(image_id)
    if image is None or image.pending is None or image.pending.work_id != new.work_id:
        raise Superseded(f"image {image_id} was removed, or taken over")
    volume = seal_volume(draft, new)
    sealed = replace(image, pending=None, volume_id=volume.id, last_error=None)
    draft.put_image(sealed)
    return sealed


def begin_restore(
    draft: Draft, was: Image, ids: WorkIds, capabilities: Capabilities
) -> tuple[Image, NewVolume]:
    """Put a fresh volume for a Snapshot whose own volume is missing or damaged.

    The fresh volume reads the old one's parent if that is whole, and no parent otherwise.

    :raises Superseded: the Snapshot needs no restoring, or its id has another image by now.
    """
    image = draft.state.images.get(was.id)
    if image is None or not needs_restore(draft.state, image, draft.missing) or why_another(was, image):
        raise Superseded(f"image {was.id} needs no mending")
    assert image.volume_id is not None
    parent_id = draft.state.volumes[image.volume_id].parent_image_id
    parent = base_image(draft.state, parent_id)
    if parent is None or why_broken(draft.state, parent, draft.missing):
        parent_id = None
    return image, begin_filled(draft, ids, image, capabilities, parent_id)


def needs_restore(state: State, image: Image, missing: Missing) -> bool:
    """Whether a Snapshot's own volume, not one below it, is missing or damaged."""
    if image.kind != "snapshot" or image.pending is not None or image.volume_id is None:
        return False
    volume = state.volumes[image.volume_id]
    return image.consumed_by is None and (volume.id in missing or volume.damage is not None)


def seal_restore(draft: Draft, image_id: str, new: NewVolume, *, old_volume_id: str) -> None:
    """Commit the restoration: the Snapshot is on the fresh volume, for all images that read it too.

    :raises Superseded: the Snapshot, its volume or its size is not the same any more.
    """
    image = draft.state.images.get(image_id)
    volume = seal_volume(draft, new)
    if image is None or image.kind != "snapshot" or image.volume_id != old_volume_id:
        raise Superseded(f"image {image_id} changed meanwhile")
    if image.size_bytes != volume.size_bytes:
        raise Superseded(f"image {image_id} is another one")
    draft.put_image(replace(image, volume_id=volume.id, last_error=None))


def set_last_error(draft: Draft, image_id: str, text: str | None) -> None:
    """Record why work on an image ended early, so that callers see it; None to clear that."""
    image = draft.state.images.get(image_id)
    if image is not None and image.last_error != text:
        draft.put_image(replace(image, last_error=text))


def users_of(state: State, volume: Volume) -> dict[str, str]:
    """The images on a volume, each with its data generation: the entry that last changed its bytes."""
    return {key: state.images[key].data_generation for key in state.images_on(volume.id)}


def set_damage(draft: Draft, volume_id: str, damage: str | None) -> None:
    """Record what a deep check found wrong with a volume, or that the volume is whole again.

    Nothing is recorded if a guest may write to the volume by now: the check may have seen half of a change.
    """
    volume = draft.state.volumes.get(volume_id)
    given_out = (draft.state.attachments[key] for key in draft.state.attachments_naming(volume_id))
    if any(attachment.mode == "read_write" for attachment in given_out):
        return
    if volume is None or volume.state != "ready" or volume.damage == damage:
        return
    if not (volume.damage or "").startswith(DONE_BY_OTHERS):  # a check of the bytes cannot know of that
        draft.put_volume(replace(volume, damage=damage))


def note_damage(draft: Draft, was: Volume, users: dict[str, str], damage: str | None) -> None:
    """Like :func:`set_damage`, unless the volume may have been written to since the check of it began.

    What a check sees in the middle of a write means nothing.

    :param was: the volume's record when the check began.
    :param users: the images on it then: see :func:`users_of`.
    """
    if draft.state.volumes.get(was.id) == was and users_of(draft.state, was) == users:
        set_damage(draft, was.id, damage)


def keep_tracker(draft: Draft, frozen_id: str, hold: CopyHold, disk_id: str) -> None:
    """Turn the hold of a finished copy into the only tracker of its disk for that target."""
    frozen = draft.state.images.get(frozen_id)
    if frozen is None or hold not in frozen.held_for:
        return
    disk = draft.state.images.get(disk_id)
    if disk is None or disk.kind != "virtual_disk" or not disk.is_strong:
        release(draft, frozen_id, hold)  # the disk is gone: there are no more changes to track
        return
    tracker = TrackHold(target_marker=hold.target_marker, disk_id=disk_id, copy_id=hold.copy_id)
    for held_id in list(draft.state.held):
        held = draft.state.images[held_id]
        rest = tuple(
            found
            for found in held.held_for
            if not (
                isinstance(found, TrackHold)
                and (found.disk_id, found.target_marker) == (disk_id, hold.target_marker)
            )
        )
        if rest != held.held_for:
            draft.put_image(replace(held, held_for=rest))
    frozen = draft.state.images[frozen_id]
    rest = tuple(found for found in frozen.held_for if found != hold)
    draft.put_image(replace(frozen, held_for=(*rest, tracker)))


def changed_layers(state: State, source: Image, base: Image) -> int | None:
    """How many volumes of the source's chain, from the top, hold everything that differs from a base.

    This is known if the base's origin is the source, or an image that the source still reads: that image
    and the base had the same bytes, and neither can have changed since.

    :param state: the state of the source's repository. The base may be in another repository.
    :returns: None if the ancestry does not tell.
    """
    origin = base.origin
    if origin is None or origin.marker != state.marker or not names_history(origin.data_generation):
        return None
    for count, (image, _) in enumerate(state.chain(source)):
        same = origin.image_id in (image.id, image.captured_of)
        if same and image.data_generation == origin.data_generation and not image.consumed_by:
            return count
    return None
