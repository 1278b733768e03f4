"""What a repository format can do, as data that planners branch on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a format can do: planners and tests branch on these, never on a format's name.

    :param reflink: volumes can share blocks.
    :param preallocation: volumes can have their blocks reserved.
    :param zeroed: a new volume reads zeros before anything is written to it.
    :param shared: several hosts can use one repository at the same time.
    :param needs_sdm: only the SDM creates, grows and deletes volumes.
    :param overlays_grow: a guest's overlay needs growing while the guest runs.
    :param enforced_leases: a host that has lost a lease can no longer write.
    :param longest_bytes: the maximum length of a volume at this location, and so of an image in a raw
        volume; None if any image fits.
    """

    reflink: bool = False
    preallocation: bool = False
    zeroed: bool = True
    shared: bool = False
    needs_sdm: bool = False
    overlays_grow: bool = False
    enforced_leases: bool = True
    longest_bytes: int | None = None

    def why_not_raw(self, size_bytes: int) -> str | None:
        """Why no raw volume can have this size here, for people; None if one can."""
        if self.longest_bytes is None or size_bytes <= self.longest_bytes:
            return None
        return f"a raw volume of {size_bytes} bytes would be longer than a file can be ({self.longest_bytes})"
