"""What QEMU's programs say when they fail, as errors of the table."""

from __future__ import annotations

from diskyard import errors

_WORDS_LIMIT = 400
_LOCK_WORDS = ('Failed to get "', "Failed to lock byte", "Is another process using the image")
_NO_SPACE_WORDS = ("No space left on device", "Disk quota exceeded")


def failure(words: str, doing: str) -> errors.DiskyardError:
    """The error of the table for what a QEMU program said when it failed.

    :param words: QEMU's own words.
    :param doing: what was being done, as in "merging a volume".
    """
    all_words, words = words, brief(words)
    if any(part in all_words for part in _NO_SPACE_WORDS):
        return errors.NoSpace(f"The storage is full while {doing}: {words}.")
    if any(part in all_words for part in _LOCK_WORDS):
        # A reader's chain may go through volumes that a merge has the leases of, and the other
        # way round: both stay right, but only one of them can have the file open.
        return errors.LeaseHeld(f"Another task has a volume open that was needed while {doing}: {words}.")
    return errors.StorageError(f"QEMU failed while {doing}: {words}.")


def brief(words: str) -> str:
    """The last line of what a program said, cut to what a message can hold."""
    lines = [line for line in words.splitlines() if line.strip()] or [""]
    return lines[-1].strip().rstrip(".")[-_WORDS_LIMIT:]
