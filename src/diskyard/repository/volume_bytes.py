"""What the bytes of a repository's volumes tell. They are read through its storage, as files or otherwise."""

from __future__ import annotations

from functools import partial

from diskyard import errors
from diskyard.host import Host
from diskyard.host.container import Container
from diskyard.model.courtesy import give_way
from diskyard.model.records import Volume
from diskyard.model.volume_name import VolumeName
from diskyard.mover.formats.qcow2_header import READ_BYTES, ReadAt, overlay_is_unwritten, own_header_flaw
from diskyard.mover.formats.qcow2_snapshots import snapshot_count, snapshots_flaw
from diskyard.repository.remembered import Remembered
from diskyard.storage.interface import Storage, StoredVolume

ABSENT_WORDS = "it is missing, or something else is in its place"
QCOW2_SIZE_FIELD = (24, 8)  # offset and length in bytes: docs/interop/qcow2.txt of QEMU


def volume_name(volume: Volume) -> VolumeName:
    """The name that a volume has on the storage."""
    return VolumeName(volume.named_by, volume.id, volume.format)


def is_missing(volume: Volume, stored: StoredVolume | None) -> bool:
    """Whether a ready volume is not on the storage, or is too short."""
    if volume.state != "ready":
        return False
    if stored is None:
        return True
    return volume.format == "raw" and stored.length_bytes < volume.size_bytes


class VolumeBytes:
    """How a connected repository looks at its volumes. A header that cannot be read counts as damaged."""

    __slots__ = ()
    storage: Storage
    host: Host
    remembered: Remembered

    def stored(self, volume: Volume) -> StoredVolume | None:
        """What the storage says of a volume; None if the storage does not have it."""
        return self.storage.stored_volume(volume_name(volume))

    def is_unreadable(self, volume: Volume, stored: StoredVolume | None, *, read_again: bool = False) -> bool:
        """Whether a ready volume is missing or too short, or its header is damaged.

        :param stored: what the storage says of the volume.
        :param read_again: read the header even if this process has found it to be sound, and nothing has
            been written to the volume since: the storage may no longer return it.
        """
        give_way()
        if volume.state != "ready":
            return False
        if stored is None or volume.format == "raw":
            return is_missing(volume, stored)
        if not read_again and self.remembered.headers.has(volume, stored):
            return False
        read_ns = int(self.host.clock.wall_s() * 1e9)
        if self.flaw(volume, stored) is not None:
            return True
        self.remembered.headers.keep(volume, stored, read_ns)
        return False

    def flaw(
        self, volume: Volume, stored: StoredVolume | None, container: Container | None = None
    ) -> str | None:
        """Why no program may open what is in a volume's place; None if one may.

        :param container: the volume's open container, if there is one: then the header is read from it.
        """
        if stored is None:
            return ABSENT_WORDS
        if volume.format == "raw":
            return None
        read_more = self._reader(volume) if container is None else container.read
        try:
            head = read_more(0, READ_BYTES)

            def read(offset_bytes: int, size_bytes: int) -> bytes:
                if offset_bytes + size_bytes <= READ_BYTES:
                    return head[offset_bytes : offset_bytes + size_bytes]
                return read_more(offset_bytes, size_bytes)

            flaw = own_header_flaw(read, stored.length_bytes, volume.size_bytes)
            if flaw is None:
                self.remembered.note_snapshots(volume, snapshot_count(read))
                self.remembered.note_size(volume, int.from_bytes(read(*QCOW2_SIZE_FIELD), "big"))
                flaw = snapshots_flaw(read, stored.length_bytes)
            return flaw
        except OSError as error:
            return f"its header cannot be read: {error.strerror or error}"

    def _reader(self, volume: Volume) -> ReadAt:
        return partial(self.storage.read_volume, volume_name(volume))

    def not_opened(self, volume: Volume, flaw: str) -> errors.ImageBroken:
        """The error for a volume that no program may open."""
        return errors.ImageBroken(
            f"Volume {volume.id} of {self.storage.place} cannot be opened: {flaw}.",
            advice="Run checkStorageRepository with deep, and put the volume back from a backup "
            "where no mend is listed.",
        )

    def is_unwritten(self, volume: Volume) -> bool:
        """Whether nothing was ever written to a qcow2 volume that nobody has open.

        False if the volume is not there: it may have been merged meanwhile.
        """
        if volume.format != "qcow2" or self.flaw(volume, self.stored(volume)) is not None:
            return False
        try:
            return overlay_is_unwritten(self._reader(volume))
        except FileNotFoundError:
            return False

    def has_snapshots(self, volume: Volume) -> bool:
        """Whether a user has made internal snapshots in a volume that can be read (``qemu-img snapshot``)."""
        return volume.format == "qcow2" and snapshot_count(self._reader(volume)) > 0

    def longer_bytes(
        self, volume: Volume, stored: StoredVolume | None, *, as_read: bool = False
    ) -> int | None:
        """The virtual size of a volume that can be read, and is longer than its record says; else None.

        :param as_read: use the size from when the header was last read, which the caller has just had done.
        """
        if stored is None:
            return None
        actual_bytes = self._raw_bytes(volume, stored)
        if volume.format == "qcow2":
            if as_read:
                return self.remembered.virtual_bytes.get(volume.id)
            if self.is_unreadable(volume, stored):
                return None
            try:
                actual_bytes = int.from_bytes(self._reader(volume)(*QCOW2_SIZE_FIELD), "big")
            except FileNotFoundError:  # it was merged meanwhile: work that goes on with it looks again
                return None
        return actual_bytes if actual_bytes > volume.size_bytes else None

    def virtual_bytes(self, volume: Volume) -> int:
        """The virtual size of a volume. Unlike :meth:`longer_bytes`, this fails if the size cannot be read.

        :raises diskyard.errors.ImageBroken: the volume cannot be read.
        """
        stored = self.stored(volume)
        if stored is None or self.is_unreadable(volume, stored):
            raise self.not_opened(volume, self.flaw(volume, stored) or "it could not be read")
        if volume.format == "raw":
            return self._raw_bytes(volume, stored)
        try:
            return int.from_bytes(self._reader(volume)(*QCOW2_SIZE_FIELD), "big")
        except OSError as error:
            flaw = f"its header cannot be read: {error.strerror or error}"
            raise self.not_opened(volume, flaw) from error

    @property
    def gains_zeros(self) -> bool:
        """Whether the bytes that a raw volume gains read as zeros, and it can have any length exactly."""
        capabilities = self.storage.capabilities
        return capabilities.zeroed and capabilities.length_unit_bytes == 1

    def most_bytes(self, volume: Volume, size_bytes: int) -> int:
        """The length that a volume of this size can have at most, if no other program made it longer."""
        is_raw = volume.format == "raw"
        return self.storage.capabilities.container_bytes(size_bytes) if is_raw else size_bytes

    def _raw_bytes(self, volume: Volume, stored: StoredVolume) -> int:
        """The length of a raw volume, without what its container has because the storage rounds lengths up.

        During an extend, it is the length that the volume is to have, once the container is long enough.
        """
        extending = volume.extending
        size_bytes = volume.size_bytes if extending is None else extending.size_bytes
        if volume.size_bytes < stored.length_bytes <= self.most_bytes(volume, size_bytes):
            return min(size_bytes, stored.length_bytes)
        return stored.length_bytes

    def require_as_recorded(self, volume: Volume) -> None:
        """Refuse a volume that another program has made longer than its record says."""
        actual_bytes = self.virtual_bytes(volume)
        if actual_bytes > volume.size_bytes:
            raise errors.ImageBroken(
                f"Volume {volume.id} of {self.storage.place} has {actual_bytes} bytes, and its record "
                f"says {volume.size_bytes}: another program made it longer, and that would be shown.",
                advice="Run the clean fix that checkStorageRepository lists for it, with force: it cuts that "
                "off. Keep it first if it is needed.",
            )
