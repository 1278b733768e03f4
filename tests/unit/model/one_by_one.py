"""What Chains must say of each image, told link by link: slow, and plain to see."""

from __future__ import annotations

from collections.abc import Container

from diskyard.model.capabilities import Capabilities
from diskyard.model.records import Image
from diskyard.model.state import State
from diskyard.model.status import NONE_MISSING, Status, better_representation, merge_dependent, why_broken


def lasting_depth(state: State, image: Image) -> int:
    """How many volumes the chain of an image has once every merge that is possible now is done."""
    links = list(state.chain(image))
    return 1 + sum(merge_dependent(state, link) is None for link, _ in links[1:])


def image_status(
    state: State, image: Image, capabilities: Capabilities, missing: Container[str] = NONE_MISSING
) -> Status:
    """``broken`` only while its bytes can be wrong (I8)."""
    if why_broken(state, image, missing) is not None:
        return "broken"
    better = better_representation(state, image, capabilities, lasting_depth(state, image))
    return "degraded" if better else "optimized"
