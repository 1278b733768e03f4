"""merge: the records of a merge, before it touches bytes and when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from diskyard.model.capabilities import Capabilities
from diskyard.model.records import Image, Volume
from diskyard.model.state import State
from diskyard.model.status import (
    merge_dependent,
)
from diskyard.model.transaction import Draft
from diskyard.planner.common import Superseded, doomed


@dataclass(frozen=True, slots=True)
class MergePlan:
    """A merge that can be done now.

    :param image: the weak image, which the merge removes.
    :param parent: the volume of that image.
    :param dependent: the volume that reads it.
    :param direction: ``down`` moves the dependent's bytes into the parent, ``up`` the parent's bytes into
        the dependent.
    :param generations: the data generations of the images on the dependent.
    """

    image: Image
    parent: Volume
    dependent: Volume
    direction: Literal["down", "up"]
    moves_bytes: int
    generations: frozenset[str]


def plan_merge(
    state: State, image_id: str, allocated: Mapping[str, int], capabilities: Capabilities
) -> MergePlan | None:
    """How to merge a weak image; None if there is nothing to do.

    The direction is the one that moves fewer bytes, with these exceptions. A raw parent is merged down, so
    that it stays raw, if it can be as long as its dependent. If the dependent is shorter than the parent,
    the merge goes up. A merge that has begun downwards can only be finished downwards.
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
    if parent.format == "raw" and capabilities.why_not_raw(dependent.size_bytes) is not None:
        down = False
    if image.consumed_by is not None:
        down = True
    moves_bytes = down_bytes if down else up_bytes
    return MergePlan(
        image, parent, dependent, "down" if down else "up", moves_bytes, _generations(state, dependent)
    )


def _generations(state: State, volume: Volume) -> frozenset[str]:
    return frozenset(state.images[key].data_generation for key in state.images_on(volume.id))


def merge_too_long(plan: MergePlan, capabilities: Capabilities) -> str | None:
    """Why a merge down into a raw volume cannot be done in this repository; None if it can.

    A merge can have begun elsewhere: in the repository that this one is a copy of.
    """
    if plan.direction == "up" or plan.parent.format != "raw":
        return None
    return capabilities.why_not_raw(plan.dependent.size_bytes)


def merge_in_the_way(state: State, plan: MergePlan) -> str | None:
    """Why a merge must wait for an attachment whose graph has one of the two volumes; None if none has."""
    for volume_id in (plan.parent.id, plan.dependent.id):
        for key in state.attachments_naming(volume_id):
            attachment = state.attachments[key]
            return f"{attachment.owner} on host {attachment.host.host_id} uses the volumes"
    return None


def merge_lease_images(state: State, plan: MergePlan) -> list[str]:
    """The images that a merge works on: the one that it removes, and those on the dependent."""
    return sorted({plan.image.id, *state.images_on(plan.dependent.id)})


def consume(draft: Draft, plan: MergePlan, fresh_id: str) -> str:
    """Mark the weak image as consumed, and give it a fresh id.

    So its own id is free for a copy of the image that comes back. The bytes here cannot come back.

    :returns: the id that it has from now on: the earlier one if it was consumed before.
    :raises Superseded: the image has been held, used or read otherwise since the merge was planned.
    """
    _, dependent = _require_same_merge(draft.state, plan.image.id, plan)
    image = draft.state.images[plan.image.id]
    if image.consumed_by is not None:
        return image.id
    draft.put_image(
        replace(image, id=fresh_id, consumed_by=dependent.id, origin=None, captured=None, captured_of=None)
    )
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
    if parent.size_bytes != plan.parent.size_bytes:
        raise Superseded(f"the volume of image {image_id} has changed")
    # If a Snapshot was taken meanwhile, it is on the dependent in place of its disk, with the same bytes.
    if not _generations(state, dependent) <= plan.generations:
        raise Superseded(f"what reads image {image_id} has been written to")
    if parent.damage is not None or dependent.damage is not None:
        raise Superseded(f"a volume of the merge of image {image_id} is damaged")
    if merge_in_the_way(state, plan) is not None:
        raise Superseded(f"the volumes of image {image_id} are attached")
    if dependent.extending is not None or parent.extending is not None:
        raise Superseded(f"the volumes of image {image_id} are being extended")
    return parent, dependent


def seal_merge_down(draft: Draft, image_id: str, plan: MergePlan) -> None:
    """Commit a merge down: the parent has all bytes, so the images on the dependent move to the parent."""
    parent, dependent = _require_same_merge(draft.state, image_id, plan)
    if draft.state.images[image_id].consumed_by not in (None, dependent.id):
        raise Superseded(f"image {image_id} was consumed by another merge")
    draft.put_volume(replace(parent, size_bytes=max(parent.size_bytes, dependent.size_bytes)))
    for key in draft.state.images_on(dependent.id):
        draft.put_image(replace(draft.state.images[key], volume_id=parent.id))
    # Doomed by hand: normalising would find this only once the image that it reads is gone.
    draft.put_volume(doomed(dependent))
    draft.remove_image(image_id)


def seal_merge_up(draft: Draft, image_id: str, plan: MergePlan) -> None:
    """Commit a merge up: the dependent has all bytes, and reads what the parent read."""
    parent, dependent = _require_same_merge(draft.state, image_id, plan)
    if draft.state.images[image_id].consumed_by is not None:
        raise Superseded(f"image {image_id} was consumed by another merge")
    draft.put_volume(replace(dependent, parent_image_id=parent.parent_image_id))
    draft.remove_image(image_id)
