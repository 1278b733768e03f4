"""Questions about the chains of many images of one state. What chains share is walked only once.

Every image in a chain of thousands needs the same facts about everything that it reads. If each were
answered by itself, the work would grow with the square of the chain's length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from diskyard.model.capabilities import Capabilities
from diskyard.model.courtesy import give_way
from diskyard.model.looked import Missing
from diskyard.model.records import Image, Volume
from diskyard.model.state import State
from diskyard.model.status import (
    CHAIN_DEPTH_LIMIT,
    NONE_MISSING,
    NOT_SET_UP,
    Status,
    better_representation,
    merge_dependent,
    why_link_broken,
)

#: How many links nearest to the root a shortened chain may keep.
ROOTS = CHAIN_DEPTH_LIMIT // 2


class _Seen(msgspec.Struct, frozen=True, gc=False):
    """Facts about the chain from one image on, for the images that read it.

    :param why: why it cannot be read; None if it can.
    :param lasting: how many of its links remain after every merge that is possible now.
    :param allocated_bytes: the sum over all of its volumes.
    :param roots: its last links, at most :data:`ROOTS`, the root last.
    """

    why: str | None
    lasting: int
    allocated_bytes: int
    roots: tuple[Image, ...]


class Chains:
    """Answers questions about the images of a state. Each answer is as if it were the only one.

    :param missing: volumes that the log names and the storage does not have.
    :param allocated: bytes by volume. In both, the facts about an image may arrive as late as the first
        question about that image.
    """

    def __init__(
        self,
        state: State,
        missing: Missing = NONE_MISSING,
        allocated: Mapping[str, int] | None = None,
    ) -> None:
        self._state = state
        self._missing = missing
        self._allocated = {} if allocated is None else allocated
        self._links: dict[str, tuple[Volume | None, Image | None]] = {}
        self._seen: dict[str, _Seen] = {}

    def links(self, image: Image) -> Iterator[tuple[Image, Volume]]:
        """As :meth:`State.chain <diskyard.model.state.State.chain>`, but no record is looked up twice.

        Among very many records, a look-up takes longer than most of what is done with the record.
        """
        current: Image | None = image
        while current is not None:
            volume, parent = self._link(current)
            if volume is None:
                return
            yield current, volume
            current = parent

    def not_met(self, image: Image) -> Iterator[Volume]:
        """The volumes of the image's chain, down to the first that an earlier question has come to."""
        current: Image | None = image
        while current is not None and current.id not in self._links:
            volume, parent = self._link(current)
            if volume is not None:
                yield volume
            current = parent

    def why_broken(self, image: Image) -> str | None:
        """As :func:`~diskyard.model.status.why_broken`."""
        return NOT_SET_UP if image.pending is not None else self._of(image).why

    def status(self, image: Image, capabilities: Capabilities) -> Status:
        """As :func:`~diskyard.model.status.image_status`."""
        if self.why_broken(image) is not None:
            return "broken"
        depth = self.lasting_depth(image)
        return "degraded" if better_representation(self._state, image, capabilities, depth) else "optimized"

    def lasting_depth(self, image: Image) -> int:
        """How many volumes the image's chain has after every merge that is possible now."""
        seen = self._of(image)
        return seen.lasting + (merge_dependent(self._state, image) is not None)

    def allocated_bytes(self, image: Image) -> int:
        """The allocated bytes of all volumes in the image's chain."""
        return self._of(image).allocated_bytes

    def roots(self, image: Image) -> tuple[Image, ...]:
        """The last links of the image's chain, the root last, at most :data:`ROOTS`."""
        return self._of(image).roots

    def _of(self, image: Image) -> _Seen:
        give_way()
        unseen: list[Image] = []
        link: Image | None = image
        while link is not None and link.id not in self._seen:
            unseen.append(link)
            _, link = self._link(link)
        below = None if link is None else self._seen[link.id]
        for link in reversed(unseen):
            below = self._seen[link.id] = self._above(link, below)
        return self._seen[image.id]

    def _link(self, image: Image) -> tuple[Volume | None, Image | None]:
        """The volume of an image, and the image that this volume reads."""
        found = self._links.get(image.id)
        if found is None:
            volume = None if image.volume_id is None else self._state.volumes[image.volume_id]
            parent_id = None if volume is None else volume.parent_image_id
            parent = None if parent_id is None else self._state.images[parent_id]
            found = self._links[image.id] = volume, parent
        return found

    def _above(self, link: Image, below: _Seen | None) -> _Seen:
        volume, _ = self._link(link)
        if volume is None:
            return _Seen("an image that it reads has no data yet", 0, 0, ())
        why = why_link_broken(link, volume, self._missing)
        lasting = int(merge_dependent(self._state, link) is None)
        allocated_bytes = self._allocated.get(volume.id, 0)
        if below is None:
            return _Seen(why, lasting, allocated_bytes, (link,))
        return _Seen(
            why or below.why,
            lasting + below.lasting,
            allocated_bytes + below.allocated_bytes,
            below.roots if len(below.roots) == ROOTS else (link, *below.roots),
        )
