"""What a repository format can do, as data that planners branch on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a format can do: planners and tests branch on these, never on a format's name.

    :param reflink: volumes can share blocks: only where they are zeroed, and their lengths exact.
    :param preallocation: volumes can have their blocks reserved.
    :param zeroed: a new volume reads zeros before anything is written to it, and so does what a volume
        gains when its container grows. If not, both read what was there before, which is never shown.
    :param shared: several hosts use one repository at a time.
    :param needs_sdm: only the SDM creates, grows and deletes volumes.
    :param overlays_grow: a guest's overlay needs growing while the guest runs.
    :param enforced_leases: a lost lease's holder can no longer write.
    :param longest_bytes: the longest that a volume can be in the place, or a raw volume's image: None if
        any image fits.
    :param length_unit_bytes: a container's length is rounded up to a multiple of it. What a container holds
        between the end that the record says and its own is nobody's: it is never shown.
    """

    reflink: bool = False
    preallocation: bool = False
    zeroed: bool = True
    shared: bool = False
    needs_sdm: bool = False
    overlays_grow: bool = False
    enforced_leases: bool = True
    longest_bytes: int | None = None
    length_unit_bytes: int = 1

    def container_bytes(self, size_bytes: int) -> int:
        """How long the container of a raw volume of this size is at most, if nobody else made it longer."""
        return -(-size_bytes // self.length_unit_bytes) * self.length_unit_bytes

    def why_not_raw(self, size_bytes: int) -> str | None:
        """Why no raw volume can have this size here, for people; None if one can."""
        if self.longest_bytes is None or self.container_bytes(size_bytes) <= self.longest_bytes:
            return None
        return f"a raw volume of {size_bytes} bytes would be longer than a file can be ({self.longest_bytes})"
