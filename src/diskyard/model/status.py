"""Statuses and representations. They are derived from a state, and never stored."""

from __future__ import annotations

from typing import Literal

from diskyard.model.capabilities import Capabilities
from diskyard.model.looked import Missing
from diskyard.model.records import Image, Volume
from diskyard.model.state import State

Status = Literal["optimized", "degraded", "broken"]
CHAIN_DEPTH_LIMIT = 32
NOT_SET_UP = "its data has not all been set up"
NONE_MISSING: frozenset[str] = frozenset()


def why_broken(state: State, image: Image, missing: Missing = NONE_MISSING) -> str | None:
    """Why an image cannot be read, for people; None if it can.

    :raises diskyard.model.looked.LookAgain: what is missing was looked for in another chain.
    """
    if image.pending is not None:
        return NOT_SET_UP
    volume: Volume | None = None
    for link, volume in state.chain(image):
        if (why := why_link_broken(link, volume, missing)) is not None:
            return why
    if volume is None or volume.parent_image_id is not None:
        return "an image that it reads has no data yet"
    return None


def why_link_broken(link: Image, volume: Volume, missing: Missing) -> str | None:
    """Why a link of a chain makes what reads it unreadable; None if it does not."""
    if link.pending is not None:
        return f"image {link.id}, which it reads, is not complete"
    if volume.state != "ready":
        return f"volume {volume.id} is {volume.state}"
    if volume.id in missing:
        return f"volume {volume.id} is missing from the storage, cut short, or damaged in its header"
    if volume.damage is not None:
        return f"volume {volume.id} is damaged: {volume.damage}"
    return None


def merge_dependent(state: State, image: Image) -> Volume | None:
    """The one volume that a weak image can be merged with; None if it cannot be merged.

    A base that a copy waits for is kept as it is. Attachments do not count here: they only postpone a merge.
    """
    if image.is_strong or image.held_for or image.pending or image.volume_id is None:
        return None
    if state.waiting_for(image.id):
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


def better_representation(state: State, image: Image, capabilities: Capabilities, depth: int) -> str | None:
    """What would suit the strategy of an image with a volume better; None if nothing is known.

    :param depth: how many volumes its chain has after every merge that is possible now.
    """
    if image.strategy == "space":
        if depth <= CHAIN_DEPTH_LIMIT:
            return None
        return f"its chain of {depth} volumes is longer than {CHAIN_DEPTH_LIMIT}"
    if depth > 1:
        return "it reads a parent"
    volume = state.volumes[str(image.volume_id)]
    if volume.format != "raw":
        return "it is not raw"
    if capabilities.preallocation and not volume.preallocated:
        return "its blocks are not reserved"
    return None
