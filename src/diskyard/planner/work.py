"""Merge, optimize, mend: what each fix puts before it touches bytes, and how it seals."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from diskyard.model.capabilities import Capabilities
from diskyard.model.records import CopyHold, Image, TrackHold, Volume
from diskyard.model.state import State
from diskyard.model.status import (
    CHAIN_DEPTH_LIMIT,
    better_representation,
    merge_dependent,
    why_broken,
)
from diskyard.model.transaction import Draft
from diskyard.planner.common import Superseded, building_volume, ready, require_building

# -- merge ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MergePlan:
    """A merge that can be done now.

    :param image: the weak image that goes.
    :param parent: its volume.
    :param dependent: the volume that reads it.
    """

    image: Image
    parent: Volume
    dependent: Volume
    direction: Literal["down", "up"]
    moves_bytes: int


def plan_merge(state: State, image_id: str, allocated: Mapping[str, int]) -> MergePlan | None:
    """How to merge a weak image; None if there is nothing to do.

    Down moves the dependent's bytes into the parent, up the parent's into the dependent:
    whichever moves less, but a raw parent stays raw. A merge that has begun downwards can
    only be finished so, and a dependent shorter than its parent takes the parent's bytes.
    """
    image = state.images.get(image_id)
    dependent = None if image is None else merge_dependent(state, image)
    if image is None or dependent is None or image.volume_id is None:
        return None
    parent = state.volumes[image.volume_id]
    down_bytes, up_bytes = allocated.get(dependent.id, 0), allocated.get(parent.id, 0)
    down = parent.format == "raw" or down_bytes <= up_bytes
    if dependent.size_bytes < parent.size_bytes:
        down = False
    if image.consumed_by is not None:
        down = True
    return MergePlan(image, parent, dependent, "down" if down else "up", down_bytes if down else up_bytes)


def merge_in_the_way(state: State, plan: MergePlan) -> str | None:
    """The owner of an attachment whose graph has one of the two volumes, for people."""
    for volume_id in (plan.parent.id, plan.dependent.id):
        for key in state.attachments_naming(volume_id):
            attachment = state.attachments[key]
            return f"{attachment.owner} on host {attachment.host.host_id} uses the volumes"
    return None


def merge_lease_images(state: State, plan: MergePlan) -> list[str]:
    """The images that a merge works on: the one that goes, and those on the dependent."""
    return sorted({plan.image.id, *state.images_on(plan.dependent.id)})


def consume(draft: Draft, plan: MergePlan, fresh_id: str) -> str:
    """Mark the weak image as consumed, under a fresh id; the id it has from now on.

    Its own id is free to come back by a copy: its bytes will not.

    :raises Superseded: it is held, used or read otherwise since the merge was planned.
    """
    _, dependent = _require_same_merge(draft.state, plan.image.id, plan)
    image = draft.state.images[plan.image.id]
    if image.consumed_by is not None:
        return image.id
    draft.put_image(replace(image, id=fresh_id, consumed_by=dependent.id, origin=None, captured_of=None))
    draft.put_volume(replace(dependent, parent_image_id=fresh_id))
    draft.remove_image(image.id)
    return fresh_id


def _require_same_merge(state: State, image_id: str, plan: MergePlan) -> tuple[Volume, Volume]:
    image = state.images.get(image_id)
    dependent = None if image is None else merge_dependent(state, image)
    if image is None or dependent is None or image.volume_id != plan.parent.id:
        raise Superseded(f"image {image_id} is no longer to be merged")
    parent = state.volumes[plan.parent.id]
    if dependent.id != plan.dependent.id or dependent.size_bytes != plan.dependent.size_bytes:
        raise Superseded(f"the volume that reads image {image_id} has changed")
    if merge_in_the_way(state, plan) is not None:
        raise Superseded(f"the volumes of image {image_id} are attached")
    return parent, dependent


def seal_merge_down(draft: Draft, image_id: str, plan: MergePlan) -> None:
    """The parent has all bytes now: who pointed at the dependent points at it."""
    parent, dependent = _require_same_merge(draft.state, image_id, plan)
    if draft.state.images[image_id].consumed_by not in (None, dependent.id):
        raise Superseded(f"image {image_id} was consumed by another merge")
    draft.put_volume(replace(parent, size_bytes=max(parent.size_bytes, dependent.size_bytes)))
    for key in draft.state.images_on(dependent.id):
        draft.put_image(replace(draft.state.images[key], volume_id=parent.id))
    # Doomed by hand: normalising would only find so when the image it reads is gone.
    draft.put_volume(replace(dependent, state="doomed", parent_image_id=None))
    draft.remove_image(image_id)


def seal_merge_up(draft: Draft, image_id: str, plan: MergePlan) -> None:
    """The dependent has all bytes now: it reads what the parent read."""
    parent, dependent = _require_same_merge(draft.state, image_id, plan)
    if draft.state.images[image_id].consumed_by is not None:
        raise Superseded(f"image {image_id} was consumed by another merge")
    draft.put_volume(replace(dependent, parent_image_id=parent.parent_image_id))
    draft.remove_image(image_id)


# -- optimize ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OptimizePlan:
    """A better representation that can be built now.

    :param kind: ``reserve`` reserves the blocks of the volume there is; ``flatten`` builds
        a raw volume without a parent; ``shorten`` builds a qcow2 that reads ``parent_image_id``.
    """

    image: Image
    volume: Volume
    kind: Literal["reserve", "flatten", "shorten"]
    parent_image_id: str | None = None


def plan_optimize(state: State, image_id: str, capabilities: Capabilities) -> OptimizePlan | None:
    """How to optimize a degraded image; None if there is nothing to do."""
    image = state.images.get(image_id)
    if image is None or not image.is_strong or image.volume_id is None:
        return None
    if why_broken(state, image) or better_representation(state, image, capabilities) is None:
        return None
    volume = state.volumes[image.volume_id]
    if image.strategy == "performance":
        raw = volume.format == "raw" and volume.parent_image_id is None
        return OptimizePlan(image, volume, "reserve" if raw else "flatten")
    links = list(state.chain(image))
    for link, _ in links[-(CHAIN_DEPTH_LIMIT // 2) :]:
        if link.id != image.id and link.consumed_by is None:
            return OptimizePlan(image, volume, "shorten", link.id)
    return None


def optimize_waits_for(state: State, plan: OptimizePlan) -> str | None:
    """A writer in the way: what is built must be of one moment."""
    writer = state.writer_of(plan.image.id)
    if writer is None:
        return None
    return f"the image is attached on host {writer.host.host_id} for {writer.owner}"


def begin_optimize(
    draft: Draft, plan: OptimizePlan, *, volume_id: str, work_id: str, capabilities: Capabilities
) -> Volume:
    """Put the better volume as building."""
    flatten = plan.kind == "flatten"
    return building_volume(
        draft,
        volume_id,
        format="raw" if flatten and capabilities.zeroed else "qcow2",
        parent_image_id=plan.parent_image_id,
        size_bytes=plan.image.size_bytes,
        work_id=work_id,
        image_id=plan.image.id,
        preallocated=flatten and capabilities.preallocation,
    )


def seal_optimize(draft: Draft, plan: OptimizePlan, *, volume_id: str, work_id: str) -> None:
    """Switch to the better volume, if the image's bytes are still those it was built from."""
    image = _require_unchanged(draft.state, plan)
    draft.put_volume(ready(require_building(draft.state, volume_id, work_id)))
    draft.put_image(replace(image, volume_id=volume_id, last_error=None))


def seal_reserve(draft: Draft, plan: OptimizePlan) -> None:
    """Note that the volume's blocks are reserved."""
    image = _require_unchanged(draft.state, plan)
    draft.put_volume(replace(draft.state.volumes[plan.volume.id], preallocated=True))
    draft.put_image(replace(image, last_error=None))


def _require_unchanged(state: State, plan: OptimizePlan) -> Image:
    image = state.images.get(plan.image.id)
    if image is None or not image.is_strong:
        raise Superseded(f"image {plan.image.id} was removed")
    if (image.volume_id, image.size_bytes, image.data_generation) != (
        plan.volume.id,
        plan.image.size_bytes,
        plan.image.data_generation,
    ):
        raise Superseded(f"image {plan.image.id} changed meanwhile")
    if state.writer_of(image.id) is not None:
        raise Superseded(f"image {plan.image.id} was attached meanwhile")
    return image


# -- mend ----------------------------------------------------------------------------


def take_over(
    draft: Draft, image_id: str, *, work_id: str, volume_id: str, keep: bool
) -> tuple[Image, Volume]:
    """Make this work the one that may seal a pending image, and put its volume.

    :param keep: go on in the volume that there is, if there is one.
    :raises Superseded: the image is not pending any more.
    """
    image = draft.state.images.get(image_id)
    if image is None or image.pending is None or not image.is_strong:
        raise Superseded(f"image {image_id} is not pending any more")
    base_id = image.pending.base_image_id
    old = None if image.volume_id is None else draft.state.volumes[image.volume_id]
    if old is not None and old.building is not None and keep:
        volume = replace(old, building=replace(old.building, work_id=work_id))
        draft.put_volume(volume)
    else:
        volume = building_volume(
            draft,
            volume_id,
            format="raw" if base_id is None else "qcow2",
            parent_image_id=base_id,
            size_bytes=image.size_bytes,
            work_id=work_id,
            image_id=image_id,
        )
    image = replace(
        image,
        volume_id=volume.id,
        last_error=None,
        pending=replace(image.pending, work_id=work_id),
    )
    draft.put_image(image)
    return image, volume


def seal_pending(draft: Draft, image_id: str, *, volume_id: str, work_id: str) -> Image:
    """The image is whole.

    :raises Superseded: it was removed, or is another work's.
    """
    image = draft.state.images.get(image_id)
    if image is None or image.pending is None or image.pending.work_id != work_id:
        raise Superseded(f"image {image_id} was removed, or taken over")
    draft.put_volume(ready(require_building(draft.state, volume_id, work_id)))
    sealed = replace(image, pending=None, volume_id=volume_id, last_error=None)
    draft.put_image(sealed)
    return sealed


def begin_restore(
    draft: Draft, image_id: str, *, volume_id: str, work_id: str, missing: Collection[str]
) -> tuple[Image, Volume]:
    """Put a fresh volume for a Snapshot whose own volume is missing or damaged.

    It reads what the old one read if that is whole, and nothing otherwise.

    :raises Superseded: nothing is wrong with it.
    """
    image = draft.state.images.get(image_id)
    if image is None or not needs_restore(draft.state, image, missing):
        raise Superseded(f"image {image_id} needs no mending")
    assert image.volume_id is not None
    parent_id = draft.state.volumes[image.volume_id].parent_image_id
    parent = draft.state.images.get(parent_id or "")
    if parent is None or parent.consumed_by or why_broken(draft.state, parent, missing):
        parent_id = None
    volume = building_volume(
        draft,
        volume_id,
        format="raw" if parent_id is None else "qcow2",
        parent_image_id=parent_id,
        size_bytes=image.size_bytes,
        work_id=work_id,
        image_id=image_id,
    )
    return image, volume


def needs_restore(state: State, image: Image, missing: Collection[str]) -> bool:
    """Whether a Snapshot's own volume, not one below it, is missing or damaged."""
    if image.kind != "snapshot" or image.pending is not None or image.volume_id is None:
        return False
    volume = state.volumes[image.volume_id]
    return image.consumed_by is None and (volume.id in missing or volume.damage is not None)


def seal_restore(draft: Draft, image_id: str, *, old_volume_id: str, volume_id: str, work_id: str) -> None:
    """The Snapshot, and all that read it, read the fresh volume."""
    image = draft.state.images.get(image_id)
    if image is None or image.volume_id != old_volume_id:
        raise Superseded(f"image {image_id} changed meanwhile")
    draft.put_volume(ready(require_building(draft.state, volume_id, work_id)))
    draft.put_image(replace(image, volume_id=volume_id, last_error=None))


def set_last_error(draft: Draft, image_id: str, text: str | None) -> None:
    """Keep why work on an image ended early, where the caller sees it."""
    image = draft.state.images.get(image_id)
    if image is not None and image.last_error != text:
        draft.put_image(replace(image, last_error=text))


def set_damage(draft: Draft, volume_id: str, damage: str | None) -> None:
    """Note what a deep check found wrong with a volume, or that it is whole again."""
    volume = draft.state.volumes.get(volume_id)
    if volume is not None and volume.state == "ready" and volume.damage != damage:
        draft.put_volume(replace(volume, damage=damage))


def keep_tracker(draft: Draft, frozen_id: str, hold: CopyHold, disk_id: str) -> None:
    """Turn the hold of a finished copy into the one tracker of its disk for that target."""
    frozen = draft.state.images.get(frozen_id)
    if frozen is None or hold not in frozen.held_for or disk_id not in draft.state.images:
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
    """How many volumes of the source's chain, from the top, hold all that differs from a base.

    Known where the base's origin is the source or an image that it still reads: the bytes
    of that image were those of the base, and nothing has let either change since.

    :param state: of the source's repository; the base may be in another.
    :returns: None if ancestry does not tell.
    """
    origin = base.origin
    if origin is None or origin.marker != state.marker:
        return None
    for count, (image, _) in enumerate(state.chain(source)):
        same = origin.image_id in (image.id, image.captured_of)
        if same and image.data_generation == origin.data_generation and not image.consumed_by:
            return count
    return None


# -- clean ------------------------------------------------------------------------------


def doom_abandoned(draft: Draft, volume_id: str) -> Volume | None:
    """Doom a building volume that its image does not want; None if it is wanted or gone.

    The caller has the image's work lease, so nobody is building it.
    """
    volume = draft.state.volumes.get(volume_id)
    if volume is None or volume.state != "building" or volume.building is None:
        return volume if volume is not None and volume.state == "doomed" else None
    if wanted(draft.state, volume):
        return None
    doomed = replace(volume, state="doomed", parent_image_id=None, building=None)
    draft.put_volume(doomed)
    return doomed


def wanted(state: State, volume: Volume) -> bool:
    """Whether a pending image waits for exactly this building volume."""
    return bool(state.images_on(volume.id))


def forget(draft: Draft, volume_id: str) -> bool:
    """Remove the record of a doomed volume whose data is gone; False if it is gone already."""
    volume = draft.state.volumes.get(volume_id)
    if volume is None or volume.state != "doomed":
        return False
    draft.remove_volume(volume_id)
    return True
