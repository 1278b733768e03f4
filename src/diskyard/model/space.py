"""What uses the storage: every allocated byte belongs to exactly one of these sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from diskyard.model.records import Image, Volume
from diskyard.model.state import State
from diskyard.model.status import merge_dependent


@dataclass(frozen=True, slots=True)
class Usage:
    """Allocated bytes of volumes, by the reason why they exist; ``total_bytes`` is the sum.

    :param strong_bytes: volumes that a strong image points at.
    :param retained_bytes: volumes of weak images that others need.
    :param mergeable_bytes: volumes of weak images that a merge would remove; a merge frees at most
        this.
    :param building_bytes: volumes that are being made.
    :param doomed_bytes: volumes that clean deletes.
    :param garbage_bytes: volumes that the log does not name, and temporary files.
    """

    strong_bytes: int
    retained_bytes: int
    mergeable_bytes: int
    building_bytes: int
    doomed_bytes: int
    garbage_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum of all of them."""
        return (
            self.strong_bytes
            + self.retained_bytes
            + self.mergeable_bytes
            + self.building_bytes
            + self.doomed_bytes
            + self.garbage_bytes
        )

    @property
    def reclaimable_bytes(self) -> int:
        """What clean would free now."""
        return self.doomed_bytes + self.garbage_bytes


def usage(state: State, allocated: Mapping[str, int], leftovers_bytes: int) -> Usage:
    """Count every stored volume under one reason.

    :param allocated: bytes of every volume on the storage, by volume id, or by name if the log does not
        name the volume.
    :param leftovers_bytes: of temporary files.
    """
    sums = dict.fromkeys(("strong", "retained", "mergeable", "building", "doomed", "garbage"), 0)
    for volume_id, size_bytes in allocated.items():
        sums[_reason(state, volume_id)] += size_bytes
    sums["garbage"] += leftovers_bytes
    return Usage(**{f"{name}_bytes": value for name, value in sums.items()})


def _reason(state: State, volume_id: str) -> str:
    volume = state.volumes.get(volume_id)
    if volume is None:
        return "garbage"
    if volume.state != "ready":
        return volume.state
    reason = "retained"
    for key in state.images_on(volume_id):
        image = state.images[key]
        if image.is_strong:
            return "strong"
        if merge_dependent(state, image) is not None:
            reason = "mergeable"
    return reason


def exclusive_bytes(state: State, chain: Iterable[tuple[Image, Volume]], allocated: Mapping[str, int]) -> int:
    """Bytes that removing an image would free. All other bytes that it reads are shared.

    Removing frees the image's own volume if nothing else reads it, and then the volume of every weak
    image below that only this chain kept.

    :param chain: of the image, the image itself first.
    """
    found_bytes = 0
    reader: str | None = None
    for link, volume in chain:
        if reader is not None and link.is_strong:
            break
        # Only counted: thousands of images may read this one, and each of them comes here.
        readers = state.dependents(link.id)
        if len(readers) > (reader in readers) or link.held_for or len(state.images_on(volume.id)) > 1:
            break
        if state.waiting_for(link.id):
            break
        found_bytes += allocated.get(volume.id, 0)
        reader = volume.id
    return found_bytes
