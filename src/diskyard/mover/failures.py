"""What QEMU's programs say when they fail, as errors of the table."""

from __future__ import annotations

from diskyard import errors

_NO_SPACE_WORDS = ("No space left on device", "Disk quota exceeded")


def failure(words: str, doing: str) -> errors.DiskyardError:
    """The error of the table for what a QEMU program said when it failed.

    :param words: QEMU's own words.
    :param doing: what was being done, as in "merging a volume".
    """
    if any(part in words for part in _NO_SPACE_WORDS):
        return errors.NoSpace(f"The storage is full while {doing}: {words}.")
    return errors.StorageError(f"QEMU failed while {doing}: {words}.")
