"""What a repository format must do: a store for the log (:mod:`diskyard.log.store`), volumes, and leases.

Terms
-----
volume
    An object that holds bytes at a name that :class:`~diskyard.model.volume_name.VolumeName` defines. Whoever
    asks anything of these bytes asks the storage, by :meth:`VolumeStore.read_volume`,
    :meth:`VolumeStore.open_volume` and :meth:`VolumeStore.volume_is_written`, whether they are in a file of
    this host or not; only QEMU goes there itself, by a descriptor or by :class:`Located`.
lease
    An exclusive, named lock held by this process or a child that inherited it.

Every method that changes something returns only when the change survives a power cut,
and says in its docstring what a crash in it leaves. Errors of the system are raised as
:class:`OSError`; callers turn them into errors of the table. The contract is tested by
``diskyard.testing.storage_contract``, which a new format passes by naming itself.

How it maps to other storage (checked on paper, ``docs/decisions/0003``): on clvm an entry
is a frame in a ring on a logical volume, written under a lease; on rbd ``put`` is one
exclusive create of an object with its contents.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from diskyard.host.container import Container
from diskyard.log.store import LogStore
from diskyard.model.capabilities import Capabilities
from diskyard.model.volume_name import VolumeName

#: Whether the marker was made with the place, or given to it since; or came with a copy of another's
#: bytes; or is of a version that did not note it.
MarkerOrigin = Literal["created", "given", "copied", "unknown"]


class StoredVolume(msgspec.Struct, frozen=True, gc=False):
    """A volume as the storage lists it.

    :param length_bytes: of the container (file, logical volume), not the virtual size: a raw volume's may be
        longer than its record says, by less than ``length_unit_bytes``.
    :param stamp: numbers of which one changes with everything that is written to the volume, the last
        of them when that was, in nanoseconds of this host's clock: what is written so soon afterwards that
        the clock may not have gone on can leave it as it was. Empty where the storage cannot tell.
    """

    name: VolumeName
    length_bytes: int
    allocated_bytes: int
    stamp: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something of our making that is no volume and no log object: provably of no use.

    :param name: to hand back to :meth:`VolumeStore.delete_leftover`.
    """

    name: str
    allocated_bytes: int


@dataclass(frozen=True, slots=True)
class Foreign:
    """Something in the repository's place that is not of our making, and is never touched.

    :param name: in the repository, for people.
    :param path: of a regular file; None for anything else.
    """

    name: str
    allocated_bytes: int
    path: str | None


@dataclass(frozen=True, slots=True)
class Located:
    """Where a volume is, for QEMU and for this host.

    :param protocol: the blockdev below the format, without node names.
    :param path: a file or device of this host, where there is one.
    """

    protocol: Mapping[str, object]
    path: str | None


@dataclass(frozen=True, slots=True)
class Capacity:
    """Room on the storage, in bytes."""

    capacity_bytes: int
    free_bytes: int


class Lease(Protocol):
    """A lock that is held until :meth:`release`, and while a child that inherited it lives."""

    def descriptors(self) -> Sequence[int]:
        """The file descriptors that a child must inherit to hold it too."""

    def release(self) -> None:
        """Give it up; a second call does nothing."""


class VolumeStore(Protocol):
    """Where the bytes of one repository's images are kept, and what lies beside them.

    :ivar capabilities: what can be done with volumes here, and how.
    """

    capabilities: Capabilities

    def create_volume(
        self, name: VolumeName, *, length_bytes: int, initial: bytes = b"", preallocate: bool = False
    ) -> None:
        """Make a volume that starts with ``initial``.

        What follows reads zeros where the capability ``zeroed`` is there. Where it is not, it reads anything:
        what a volume that is gone held, perhaps; and nobody must see it.

        :param length_bytes: at least this long, rounded up to ``length_unit_bytes``.
        :raises FileExistsError: it is there.
        """

    def clone_volume(self, source: VolumeName, target: VolumeName) -> bool:
        """Make a new volume with the source's bytes by sharing them; False if it cannot here."""

    def grow_volume(self, name: VolumeName, *, length_bytes: int, preallocate: bool = False) -> None:
        """Make a volume's container at least this long, rounded up to ``length_unit_bytes``.

        What is new reads zeros where the capability ``zeroed`` is there, and anything where it is not.
        """

    def delete_volume(self, name: VolumeName) -> bool:
        """Remove a volume; False if it is not there."""

    def list_volumes(self) -> list[StoredVolume]:
        """Every volume on the storage, in one pass."""

    def stored_volume(self, name: VolumeName) -> StoredVolume | None:
        """One volume as :meth:`list_volumes` shows it; None if it is not there."""

    def stored_volumes(self, names: Sequence[VolumeName]) -> list[StoredVolume | None]:
        """Several volumes as :meth:`stored_volume` shows each, in the order of the names."""

    def locate_volume(self, name: VolumeName) -> Located:
        """Where a volume is; the volume need not exist."""

    def open_volume(self, name: VolumeName) -> AbstractContextManager[Container]:
        """A volume, open within; where volumes are mapped only while used, this one is mapped within.

        :raises OSError: nothing is there (ENOENT), or a link (ELOOP), or what is no volume (EINVAL).
        :raises diskyard.errors.UnsafeImage: what is there can be reached by other names too.
        """

    def read_volume(self, name: VolumeName, offset_bytes: int, size_bytes: int) -> bytes:
        """A part of a volume that :meth:`stored_volume` has just shown; fewer bytes only at its end.

        One call, where :meth:`open_volume` is three. What has taken the volume's place since is an OSError.
        """

    def volume_is_written(self, name: VolumeName) -> bool:
        """Whether a program of QEMU, a guest or a tool, has a volume open for writing now, at least here.

        An OSError says that it cannot be known. Of what is not there it is false.
        """

    # -- beside the volumes ---------------------------------------------------------------

    def put_progress(self, image_id: str, data: bytes) -> None:
        """Replace the progress of an image's work; it may be lost."""

    def get_progress(self, image_id: str) -> bytes | None:
        """The last progress put; None if there is none or it cannot be read."""

    def remove_progress(self, image_id: str) -> None:
        """Forget an image's progress, if there is any."""

    def progress_image_ids(self) -> list[str]:
        """The images that have progress."""

    def list_leftovers(self) -> list[Leftover]:
        """What processes that are provably gone left behind."""

    def list_foreign(self) -> list[Foreign]:
        """What others have put where they could take it for part of a volume, in order of the names."""

    def delete_leftover(self, name: str) -> bool:
        """Remove one of :meth:`list_leftovers` if it still is one."""

    def private_path(self) -> str | None:
        """A fresh path on this storage for a file of this process; None if it has no files.

        What is made there and not removed is found by :meth:`list_leftovers`.
        """

    def capacity(self) -> Capacity:
        """Room on the storage."""


class Leases(Protocol):
    """The locks of one repository, by their names."""

    def try_lock(self, name: str) -> Lease | None:
        """Take the lease of this name at once, or None if somebody has it."""

    def is_locked(self, name: str) -> bool:
        """Whether somebody has the lease of this name, without taking it."""

    def locked_among(self, names: Collection[str]) -> set[str]:
        """Those of several names of which somebody has the lease, as :meth:`is_locked` says of each.

        All are asked for at once where the format can: it does not cost a question for each.
        """


class Storage(LogStore, VolumeStore, Leases, Protocol):
    """One connected place that stores images.

    :ivar identity: of what is in this place, as this host saw it when it was connected. The same
        place by another way has the same; a copy of it, which has its marker, has another.
    :ivar place_identity: the same, as every host and every later connection sees it: it is kept in
        the log of other repositories. A copy that was made below the file system, of its device,
        may have the same. Empty where the format cannot tell.
    :ivar made_s: when the place was made, be it as a copy, by this host's wall clock; None if that
        cannot be told.
    """

    marker_origin: MarkerOrigin
    identity: str
    place_identity: str
    made_s: float | None

    def close(self) -> None:
        """Let go of everything; leases held are given up."""
