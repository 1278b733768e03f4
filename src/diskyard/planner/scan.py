"""What one scan of a repository finds, as values, for :mod:`diskyard.planner.find_fixes` to judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from diskyard.model.capabilities import Capabilities
from diskyard.model.fix import CleanReplica
from diskyard.model.records import AnyHold, EntryId
from diskyard.model.state import State
from diskyard.model.volume_name import VolumeName


@dataclass(frozen=True, slots=True)
class SourceView:
    """The source that a mend would read.

    :param waits_for: why the mend cannot run now; None if it can.
    :param moves_bytes: how many bytes it would read at most; None if not known.
    """

    waits_for: str | None
    moves_bytes: int | None


@dataclass(frozen=True, slots=True)
class ReplicaFound:
    """An object of the log with a missing or damaged replica.

    :param waits_for: why the replica cannot be written again; None if it can.
    """

    action: CleanReplica
    waits_for: str | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """What one scan of a repository's storage found.

    The storage was listed before ``state`` was read. So if a volume was listed, and ``state`` does not name
    it, no later entry will name it either.

    :param read_only: why nothing can be changed here now; None if it can.
    :param stored: allocated bytes by volume name, at least for the volumes that ``state`` does not name.
    :param made_here: the volumes that ``state`` does not name, but an entry of this history named.
    :param allocated: allocated bytes by volume id, for the volumes that ``state`` names.
    :param missing: volumes that are recorded as ready, and are not on the storage whole.
    :param leftovers: temporary files of processes that have ended: allocated bytes by name.
    :param foreign: foreign files by name, with the volume that the file is an overlay of, if it is one.
    :param snapshotted: volumes in which a user has made internal snapshots, with what to do before fixes can
        run.
    :param progress: the images for which there is a progress file.
    :param locked: the images and volumes whose work lease somebody holds, and the disks' size leases
        (:func:`~diskyard.planner.sizes.size_lease`), of those that fixes are about.
    :param written: the volumes that a program of QEMU has open for writing although neither an attachment
        nor a lease explains it: among those that fixes are about (ids), and those that no record names
        (names).
    :param unasked: the same kind of volumes for which that cannot be known, with the reason.
    :param gone_attachments: attachments whose host is provably gone.
    :param switching: attachments whose guests are being moved to another volume, with why that cannot be
        ended from here; None if it can.
    :param holds_over: holds whose copy has provably ended.
    :param holds_unknown: holds whose copy cannot be checked, with the reason.
    :param replicas: objects of the log with a missing or damaged replica.
    :param stray: the entry of the log that follows nothing, if there is one.
    :param longer: the sizes of volumes that are longer than their records.
    :param sources: the source of each image that needs a mend.
    :param differing: Snapshots whose id names a different image in another repository, with the reason.
    :param workers: for images that are worked on, the host that last wrote their progress.
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
    switching: Mapping[str, str | None] = field(default_factory=dict)
    holds_over: tuple[tuple[str, AnyHold], ...] = ()
    holds_unknown: tuple[tuple[str, AnyHold, str], ...] = ()
    replicas: tuple[ReplicaFound, ...] = ()
    stray: EntryId | None = None
    longer: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, SourceView] = field(default_factory=dict)
    differing: Mapping[str, str] = field(default_factory=dict)
    workers: Mapping[str, str] = field(default_factory=dict)
