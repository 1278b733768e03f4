"""optimize: the better representation of an image, and how it replaces the old one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from diskyard.model.capabilities import Capabilities
from diskyard.model.chains import Chains
from diskyard.model.looked import Missing
from diskyard.model.records import Image, Volume
from diskyard.model.state import State
from diskyard.model.status import NONE_MISSING, better_representation, why_broken
from diskyard.model.transaction import Draft
from diskyard.planner.building import NewVolume, WorkIds, begin_filled, require_parent, seal_volume
from diskyard.planner.common import Superseded
from diskyard.planner.volume_kind import is_whole_raw


@dataclass(frozen=True, slots=True)
class OptimizePlan:
    """A better representation that can be built now.

    :param kind: ``reserve`` reserves the blocks of the existing volume; ``flatten`` builds a raw volume
        without a parent; ``shorten`` builds a qcow2 that reads ``parent_image_id``.
    """

    image: Image
    volume: Volume
    kind: Literal["reserve", "flatten", "shorten"]
    parent_image_id: str | None = None


def plan_optimize(
    state: State, image_id: str, capabilities: Capabilities, chains: Chains | None = None
) -> OptimizePlan | None:
    """How to optimize a degraded image; None if there is nothing to do.

    :param chains: the chains of ``state``, if the caller plans for many images of it.
    """
    chains = chains or Chains(state)
    image = state.images.get(image_id)
    if image is None or not image.is_strong or image.volume_id is None:
        return None
    if chains.why_broken(image):
        return None
    if better_representation(state, image, capabilities, chains.lasting_depth(image)) is None:
        return None
    volume = state.volumes[image.volume_id]
    if image.strategy == "performance":
        return OptimizePlan(image, volume, "reserve" if is_whole_raw(volume) else "flatten")
    for link in chains.roots(image):
        if link.id != image.id and link.consumed_by is None:
            return OptimizePlan(image, volume, "shorten", link.id)
    return None


def optimize_waits_for(state: State, plan: OptimizePlan, capabilities: Capabilities) -> str | None:
    """Why the plan cannot run now; None if it can.

    Either no raw volume here can be so long, or a writer would change the image meanwhile.
    """
    why_not_raw = capabilities.why_not_raw(plan.image.size_bytes)
    if plan.kind == "flatten" and why_not_raw is not None:
        return why_not_raw
    writer = state.writer_of(plan.image.id)
    if writer is None:
        return None
    return f"the image is attached on host {writer.host.host_id} for {writer.owner}"


def begin_optimize(draft: Draft, plan: OptimizePlan, ids: WorkIds, capabilities: Capabilities) -> NewVolume:
    """Put the better volume as building."""
    require_unchanged(draft.state, plan, draft.missing)
    require_parent(draft.state, plan.parent_image_id)
    return begin_filled(draft, ids, plan.image, capabilities, plan.parent_image_id, reserve=True)


def seal_optimize(draft: Draft, plan: OptimizePlan, new: NewVolume) -> None:
    """Commit the switch to the better volume, if the image still has the bytes that it was built from."""
    image = require_unchanged(draft.state, plan, draft.missing)
    volume = seal_volume(draft, new)
    draft.put_image(replace(image, volume_id=volume.id, last_error=None))


def seal_reserve(draft: Draft, plan: OptimizePlan) -> None:
    """Commit that the volume's blocks are reserved."""
    image = require_unchanged(draft.state, plan, NONE_MISSING)
    draft.put_volume(replace(draft.state.volumes[plan.volume.id], preallocated=True))
    draft.put_image(replace(image, last_error=None))


def require_unchanged(state: State, plan: OptimizePlan, missing: Missing) -> Image:
    """Return the image, if everything that the plan depends on is unchanged.

    :raises Superseded: something has changed, or the image can no longer be read.
    """
    image = state.images.get(plan.image.id)
    if image is None or not image.is_strong:
        raise Superseded(f"image {plan.image.id} was removed")
    if (image.volume_id, image.size_bytes, image.data_generation, image.strategy) != (
        plan.volume.id,
        plan.image.size_bytes,
        plan.image.data_generation,
        plan.image.strategy,
    ):
        raise Superseded(f"image {plan.image.id} changed meanwhile")
    if state.writer_of(image.id) is not None:
        raise Superseded(f"image {plan.image.id} was attached meanwhile")
    if state.volumes[plan.volume.id].extending is not None:
        raise Superseded(f"image {plan.image.id} is being extended")
    if (why := why_broken(state, image, missing)) is not None:
        raise Superseded(f"image {plan.image.id} cannot be read: {why}")
    return image
