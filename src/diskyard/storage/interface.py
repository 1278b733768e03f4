"""What a repository format must do: a store for the log (:mod:`diskyard.log.store`), volumes, and leases.

Terms
-----
volume
    An object that holds bytes under a name that :class:`~diskyard.model.volume_name.VolumeName` defines.
    All questions about these bytes go to the storage, by :meth:`VolumeStore.read_volume`,
    :meth:`VolumeStore.open_volume` and :meth:`VolumeStore.volume_is_written`, whether they are in a file of
    this host or not. Only QEMU goes there itself, by a descriptor or by :class:`Located`.
lease
    An exclusive, named lock held by this process or a child that inherited it.

Every method that changes something returns only when the change survives a power cut,
and says in its docstring what a crash in it leaves. Errors of the system are raised as
:class:`OSError`; callers turn them into Diskyard's errors. The contract is tested by
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

#: How the location got its marker: it was made with it, or was given it since; or the marker came with a
#: copy of another location's bytes; or the format's version did not note it.
MarkerOrigin = Literal["created", "given", "copied", "unknown"]


class StoredVolume(msgspec.Struct, frozen=True, gc=False):
    """A volume as the storage lists it.

    :param length_bytes: of the container (file, logical volume), not the virtual size: a raw volume's may be
        longer than its record says, by less than ``length_unit_bytes``.
    :param stamp: numbers that differ after anything was written to the volume. The last one is the time of
        the last write, in nanoseconds of this host's clock: a second write within one tick of that clock may
        leave the stamp as it was. Empty where the storage cannot tell.
    """

    name: VolumeName
    length_bytes: int
    allocated_bytes: int
    stamp: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that Diskyard made, neither a volume nor an object of the log: certainly not needed.

    :param name: for :meth:`VolumeStore.delete_leftover`.
    """

    name: str
    allocated_bytes: int


@dataclass(frozen=True, slots=True)
class Foreign:
    """Something in the repository that Diskyard did not make, and never touches.

    :param name: in the repository, for people.
    :param path: the path of a regular file; None for anything else.
    """

    name: str
    allocated_bytes: int
    path: str | None


@dataclass(frozen=True, slots=True)
class Located:
    """Where a volume is, for QEMU and for this host.

    :param protocol: the blockdev below the format, without node names.
    :param path: a file or device of this host, if the volume is one.
    """

    protocol: Mapping[str, object]
    path: str | None


@dataclass(frozen=True, slots=True)
class Capacity:
    """The size of the storage and its free space, in bytes."""

    capacity_bytes: int
    free_bytes: int


class Lease(Protocol):
    """A lock that is held until :meth:`release`, and while a child that inherited it lives."""

    def descriptors(self) -> Sequence[int]:
        """The file descriptors that a child must inherit to hold the lock too."""

    def release(self) -> None:
        """Release the lock. A second call does nothing."""


class VolumeStore(Protocol):
    """Where the bytes of one repository's images are kept, and what is kept beside them.

    :ivar capabilities: what can be done with volumes here, and how.
    """

    capabilities: Capabilities

    def create_volume(
        self, name: VolumeName, *, length_bytes: int, initial: bytes = b"", preallocate: bool = False
    ) -> None:
        """Make a volume that starts with ``initial``.

        What follows reads zeros where the capability ``zeroed`` is there. Where it is not, it reads anything:
        what a volume that is gone held, perhaps; and nobody must see it. A crash leaves no volume, or one of
        any length and content under the name, which nothing refers to yet.

        :param length_bytes: at least this long, rounded up to ``length_unit_bytes``.
        :raises FileExistsError: it is there.
        """

    def clone_volume(self, source: VolumeName, target: VolumeName) -> bool:
        """Make a new volume that shares the source's bytes; False if that is not possible here.

        A crash leaves the same as a crash in :meth:`create_volume`. The source stays as it is.
        """

    def grow_volume(self, name: VolumeName, *, length_bytes: int, preallocate: bool = False) -> None:
        """Make a volume's container at least this long, rounded up to ``length_unit_bytes``.

        What is new reads zeros where the capability ``zeroed`` is there, and anything where it is not. A
        crash leaves the old length or a longer one, and the old bytes up to the old length.
        """

    def share_access(self, source: VolumeName, target: VolumeName) -> None:
        """Let the programs that may open a volume open another, which a guest is about to open; durable.

        A guest's QEMU runs as a user of its own, and whoever started it may have let that user in.
        """

    def delete_volume(self, name: VolumeName) -> bool:
        """Remove a volume; False if it does not exist. A crash leaves the whole volume, or none."""

    def list_volumes(self) -> list[StoredVolume]:
        """Every volume on the storage, in one pass."""

    def stored_volume(self, name: VolumeName) -> StoredVolume | None:
        """One volume as :meth:`list_volumes` would return it; None if it does not exist."""

    def stored_volumes(self, names: Sequence[VolumeName]) -> list[StoredVolume | None]:
        """Several volumes as :meth:`stored_volume` would return them, in the order of the names."""

    def locate_volume(self, name: VolumeName) -> Located:
        """Where a volume is. The volume need not exist."""

    def open_volume(self, name: VolumeName) -> AbstractContextManager[Container]:
        """Open a volume within the context; map it too, if volumes are mapped only while used.

        :raises OSError: nothing is there (ENOENT), a link (ELOOP), or something else than a volume (EINVAL).
        :raises diskyard.errors.UnsafeImage: the volume can be reached by other names too.
        """

    def read_volume(self, name: VolumeName, offset_bytes: int, size_bytes: int) -> bytes:
        """Read a part of a volume that :meth:`stored_volume` has just shown; fewer bytes only at its end.

        This is one call, where :meth:`open_volume` needs three. It is an OSError if something else has taken
        the volume's place since.
        """

    def volume_is_written(self, name: VolumeName) -> bool:
        """Whether a program of QEMU, a guest or a tool, has a volume open for writing now, at least here.

        False if the volume does not exist. An OSError means that it cannot be known.
        """

    # -- beside the volumes ---------------------------------------------------------------

    def put_progress(self, image_id: str, data: bytes) -> None:
        """Replace the progress of an image's work. A crash leaves the old progress or the new.

        Whoever relies on progress must be able to do without: it may be lost with nothing else.
        """

    def get_progress(self, image_id: str) -> bytes | None:
        """The last progress that was put; None if there is none. An OSError says that it cannot be read."""

    def remove_progress(self, image_id: str) -> None:
        """Remove an image's progress, if there is any. A power cut may bring it back."""

    def progress_image_ids(self) -> list[str]:
        """The images that have progress."""

    def list_leftovers(self) -> list[Leftover]:
        """Leftovers of processes that have certainly ended."""

    def list_foreign(self) -> list[Foreign]:
        """What others have put where it could be taken for a part of a volume, in order of the names."""

    def delete_leftover(self, name: str) -> bool:
        """Remove one of :meth:`list_leftovers`, if it still is a leftover."""

    def private_path(self) -> str | None:
        """A fresh path on this storage for a file of this process; None if the storage has no files.

        A file that is made there and not removed is found by :meth:`list_leftovers`.
        """

    def capacity(self) -> Capacity:
        """The size of the storage and its free space."""


class Leases(Protocol):
    """The locks of one repository, by their names."""

    def try_lock(self, name: str) -> Lease | None:
        """Take the lease with this name at once; None if somebody holds it."""

    def is_locked(self, name: str) -> bool:
        """Whether somebody holds the lease with this name. This does not take it."""

    def locked_among(self, names: Collection[str]) -> set[str]:
        """The names whose lease somebody holds, as :meth:`is_locked` would say of each.

        If the format can, it asks for all of them at once, so that this does not cost one call for each.
        """


class Storage(LogStore, VolumeStore, Leases, Protocol):
    """One connected location that stores images.

    :ivar identity: of what is at this location, as this host saw it when it connected. Another path to the
        same location leads to the same identity; a copy, which has the same marker, has another one.
    :ivar place_identity: the same, but valid on every host and for every later connection: the logs of
        other repositories keep it. A copy that was made below the file system, of its device, may have
        the same one. Empty if the format has none.
    :ivar made_s: when the location, or the copy, was made, by this host's wall clock; None if that is not
        known.
    """

    marker_origin: MarkerOrigin
    identity: str
    place_identity: str
    made_s: float | None

    def close(self) -> None:
        """End the connection; a second call does nothing. Leases stay with those that took them."""
