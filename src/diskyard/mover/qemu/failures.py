"""The messages of QEMU's programs that failed, as Diskyard's errors."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from diskyard import errors

T = TypeVar("T")

_WORDS_LIMIT = 400
_LOCK_WORDS = (
    'Failed to get "',
    'Failed to get shared "',
    "Failed to lock byte",
    "Is another process using the image",
)
_JOB_WORDS = "is in use by block job"
_NO_SPACE_WORDS = ("No space left on device", "Disk quota exceeded")


def failure(words: str, doing: str) -> errors.DiskyardError:
    """The error for what a QEMU program printed when it failed.

    :param words: QEMU's own words.
    :param doing: what was being done, as in "merging a volume".
    """
    all_words, words = words, brief(words)
    if any(part in all_words for part in _NO_SPACE_WORDS):
        return errors.NoSpace(f"The storage is full while {doing}: {words}.")
    if any(part in all_words for part in _LOCK_WORDS):
        # A reader's chain may contain volumes whose leases a merge holds, and the other way round. Both
        # are safe, but only one of them can have the file open.
        return errors.LeaseHeld(f"Another task has a needed volume open while {doing}: {words}.")
    if _JOB_WORDS in all_words:
        return errors.LeaseHeld(
            f"A block job of this QEMU uses what is needed while {doing}: {words}.",
            advice="Try again when the job is done, or end it where it was started.",
        )
    return errors.StorageError(f"QEMU failed while {doing}: {words}.")


def expected(answer: object, form: type[T], doing: str) -> T:
    """The answer of a QEMU program, if it has the expected form.

    :param answer: JSON as bytes, or a decoded value.
    :raises diskyard.errors.StorageError: it has another form.
    """
    try:
        if isinstance(answer, bytes):
            return msgspec.json.decode(answer, type=form)
        return msgspec.convert(answer, form)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise errors.StorageError(
            f"QEMU gave an unexpected answer while {doing}: {brief(str(error))}."
        ) from error


def brief(words: str) -> str:
    """The last line of what a program printed, cut to a length that fits into a message."""
    lines = [line for line in words.splitlines() if line.strip()] or [""]
    return lines[-1].strip().rstrip(".")[-_WORDS_LIMIT:]
