"""Names inside a localfs repository; docs/format.md draws them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from diskyard.host.temporary import temporary_owner
from diskyard.log.store import LogKind
from diskyard.model.records import UUID_PATTERN

LOG, CHECKPOINTS, VOLUMES, PROGRESS, TEMPORARY = "log", "checkpoints", "volumes", "progress", "temporary"
FOLDERS = (LOG, CHECKPOINTS, VOLUMES, PROGRESS, TEMPORARY)
LOCKS, RESERVE = "locks", "reserve"
MADE_WITH_EXT = (
    "lost+found"  # in the root of every new ext2, ext3 or ext4, for fsck; it does not count as content
)

_FOLDER_OF: dict[LogKind, str] = {"entry": LOG, "checkpoint": CHECKPOINTS}
_COPIES = ("a", "b")
_LOG_NAME_LENGTH = 18
_IMAGE_ID = re.compile(UUID_PATTERN)
_LOG_NAME = re.compile(r"([0-9a-f]{16})\.[ab]")


def log_folder(root: str, kind: LogKind) -> str:
    """The directory of the entries or of the checkpoints."""
    return os.path.join(root, _FOLDER_OF[kind])


def log_paths(root: str, kind: LogKind, number: int) -> tuple[str, str]:
    """The paths of the two replicas of an object of the log."""
    stem = os.path.join(log_folder(root, kind), f"{number:016x}")
    return f"{stem}.{_COPIES[0]}", f"{stem}.{_COPIES[1]}"


def record_paths(root: str) -> tuple[str, str]:
    """The paths of the two replicas of the repository's own record."""
    return os.path.join(root, "repository.a"), os.path.join(root, "repository.b")


def is_of_root(name: str) -> bool:
    """Whether an interrupted creation, or the file system, may have put something into the root."""
    return name in (*FOLDERS, LOCKS, RESERVE, MADE_WITH_EXT) or temporary_owner(name) is not None


def image_id(name: str) -> str | None:
    """The image id in the name of a progress file; None if it is not such a name."""
    return name if _IMAGE_ID.search(name) else None


def log_number(name: str) -> int | None:
    """The number in the name of a replica; None if it is not such a name."""
    found = _LOG_NAME.fullmatch(name)
    return None if found is None else int(found[1], 16)


def newest_number(names: Iterable[str]) -> int:
    """The highest number in names of replicas; 0 if there is none.

    All names have the same number of digits, so the last one in the alphabet has the highest number. There
    may be hundreds of thousands of names, and only that one is parsed.
    """
    alike = [name for name in names if len(name) == _LOG_NAME_LENGTH]
    newest = log_number(max(alike, default=""))
    if newest is None:  # something that is not ours sorts last
        newest = max((number for name in alike if (number := log_number(name)) is not None), default=0)
    return newest
