"""What one scan of a repository finds, for :mod:`diskyard.planner.find_fixes` to judge: values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from diskyard.model.capabilities import Capabilities
from diskyard.model.fix import CleanTwin
from diskyard.model.records import AnyHold, EntryId
from diskyard.model.state import State
from diskyard.model.volume_name import VolumeName


@dataclass(frozen=True, slots=True)
class SourceView:
    """Where a mend would read.

    :param waits_for: why it cannot run now; None if it can.
    :param moves_bytes: how much is to read, at most; None if not known.
    """

    waits_for: str | None
    moves_bytes: int | None


@dataclass(frozen=True, slots=True)
class TwinFound:
    """An object of the log with a missing or damaged replica.

    :param waits_for: why it cannot be written again; None if it can.
    """

    action: CleanTwin
    waits_for: str | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What one scan of a repository's storage found.

    The storage was listed before ``state`` was read: a volume that was listed then and is not named
    now will not be named by any later entry either.

    :param read_only: why nothing can be changed here now; None if it can.
    :param stored: allocated bytes by volume name, at least of those that ``state`` does not name.
    :param made_here: of those that it does not name, which an entry of this history named.
    :param allocated: allocated bytes by volume id.
    :param missing: volumes that are named ready and are not on the storage.
    :param leftovers: allocated bytes by name.
    :param foreign: what others have put here, by name; of what is an overlay of a volume, which one.
    :param snapshotted: by volume, what waits as long as it has internal snapshots of a user's.
    :param locked: the images whose work lease somebody has.
    :param written: of the volumes that fixes are about, and by their names of those that nothing names,
        all that a program of QEMU has open for writing though neither an attachment nor a lease says why.
    :param unasked: of the same volumes those of which that cannot be known, with the reason.
    :param gone_attachments: attachments whose host is provably gone.
    :param holds_over: holds whose copy is provably over.
    :param holds_unknown: holds whose copy cannot be looked at, with the reason.
    :param twins: objects of the log with a missing or damaged replica.
    :param stray: the entry of the log that follows nothing, if there is one.
    :param longer: the sizes of volumes that are longer than their records.
    :param sources: for images to mend.
    :param differing: for Snapshots of which another repository has another image under the same id, why.
    :param workers: the host that last worked on an image.
    """

    state: State
    capabilities: Capabilities
    read_only: str | None = None
    stored: Mapping[VolumeName, int] = field(default_factory=dict)
    made_here: frozenset[VolumeName] = frozenset()
    allocated: Mapping[str, int] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()
    leftovers: Mapping[str, int] = field(default_factory=dict)
    foreign: Mapping[str, str | None] = field(default_factory=dict)
    snapshotted: Mapping[str, str] = field(default_factory=dict)
    progress: tuple[str, ...] = ()
    locked: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    unasked: Mapping[str, str] = field(default_factory=dict)
    gone_attachments: frozenset[str] = frozenset()
    holds_over: tuple[tuple[str, AnyHold], ...] = ()
    holds_unknown: tuple[tuple[str, AnyHold, str], ...] = ()
    twins: tuple[TwinFound, ...] = ()
    stray: EntryId | None = None
    longer: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, SourceView] = field(default_factory=dict)
    differing: Mapping[str, str] = field(default_factory=dict)
    workers: Mapping[str, str] = field(default_factory=dict)
