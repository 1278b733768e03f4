"""Statuses and representations, derived from a state; nothing here is stored."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from diskyard.model.capabilities import Capabilities
from diskyard.model.records import Image, Volume
from diskyard.model.state import State

Status = Literal["optimized", "degraded", "broken"]
CHAIN_DEPTH_LIMIT = 32
NONE_MISSING: frozenset[str] = frozenset()


def why_broken(state: State, image: Image, missing: Collection[str] = NONE_MISSING) -> str | None:
    """Why an image cannot be read, for people; None if it can.

    :param missing: volumes that the log names and the storage does not have.
    """
    if image.pending is not None:
        return "its data has not all been set up"
    volume: Volume | None = None
    for link, volume in state.chain(image):
        if link.pending is not None:
            return f"image {link.id}, which it reads, is not complete"
        if volume.id in missing:
            return f"volume {volume.id} is missing from the storage, cut short, or damaged in its header"
        if volume.damage is not None:
            return f"volume {volume.id} is damaged: {volume.damage}"
        if volume.state != "ready":
            return f"volume {volume.id} is {volume.state}"
    if volume is None or volume.parent_image_id is not None:
        return "an image that it reads has no data yet"
    return None


def merge_dependent(state: State, image: Image) -> Volume | None:
    """The one volume that a weak image can be merged with; None if it cannot be merged.

    Attachments are not looked at: they only postpone a merge.
    """
    if image.is_strong or image.held_for or image.pending or image.volume_id is None:
        return None
    dependents = state.dependents(image.id)
    if len(dependents) != 1:
        return None
    dependent = state.volumes[next(iter(dependents))]
    mergeable = (
        dependent.state == "ready"
        and bool(state.images_on(dependent.id))
        and state.images_on(image.volume_id) == {image.id}
        and state.volumes[image.volume_id].state == "ready"
    )
    return dependent if mergeable else None


def lasting_chain(state: State, image: Image) -> list[tuple[Image, Volume]]:
    """The chain of an image as it is once every merge that is possible now is done."""
    links = list(state.chain(image))
    return [links[0], *(link for link in links[1:] if merge_dependent(state, link[0]) is None)]


def better_representation(state: State, image: Image, capabilities: Capabilities) -> str | None:
    """What would be better for the image's strategy, for people; None if nothing is known."""
    links = lasting_chain(state, image)
    if image.strategy == "space":
        if len(links) <= CHAIN_DEPTH_LIMIT:
            return None
        return f"its chain of {len(links)} volumes is longer than {CHAIN_DEPTH_LIMIT}"
    if len(links) > 1:
        return "it reads a parent"
    volume = links[-1][1]
    if volume.format != "raw":
        return "it is not raw"
    if capabilities.preallocation and not volume.preallocated:
        return "its blocks are not reserved"
    return None


def image_status(
    state: State,
    image: Image,
    capabilities: Capabilities,
    missing: Collection[str] = NONE_MISSING,
) -> Status:
    """``broken`` only while its bytes can be wrong (I8)."""
    if why_broken(state, image, missing) is not None:
        return "broken"
    return "degraded" if better_representation(state, image, capabilities) else "optimized"
