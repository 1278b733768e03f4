"""A connected repository: its storage, its log, and the chains of its images."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from msgspec.structs import replace

from diskyard import errors
from diskyard.commit import Committed, commit, refresh
from diskyard.host import Host
from diskyard.log.codec import Damaged, NewerMajor, Progress, decode, encode
from diskyard.log.log import Author, Log
from diskyard.model.courtesy import give_way
from diskyard.model.looked import LookAgain, Looked
from diskyard.model.records import Image, Volume
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.model.volume_name import VolumeName, backing_name
from diskyard.mover.interface import Chain, Layer
from diskyard.mover.qcow2_header import READ_BYTES, empty_qcow2, overlay_is_unwritten, own_header_flaw
from diskyard.mover.qcow2_snapshots import snapshot_count, snapshots_flaw
from diskyard.planner.create_disk import NewVolume
from diskyard.remembered import Remembered
from diskyard.repositories.interface import Lease, Repository, StoredVolume

Result = TypeVar("Result")
_LEASE_POLL_S = 0.02
ABSENT_WORDS = "it is missing, or something else is in its place"
QCOW2_SIZE_FIELD = (24, 8)  # offset and length in bytes: docs/interop/qcow2.txt of QEMU


def volume_name(volume: Volume) -> VolumeName:
    """The name that a volume has on the storage."""
    return VolumeName(volume.named_by, volume.id, volume.format)


def is_missing(volume: Volume, stored: StoredVolume | None) -> bool:
    """Whether a volume that must be on the storage is not, or is cut short."""
    if volume.state != "ready":
        return False
    if stored is None:
        return True
    return volume.format == "raw" and stored.length_bytes < volume.size_bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """One place, under the first repoId that it was connected by."""

    repo_id: str
    format: str
    storage: Repository
    log: Log
    host: Host
    remembered: Remembered = field(default_factory=Remembered, compare=False, repr=False)

    @property
    def marker(self) -> str:
        """The repository's own name, on every host."""
        return self.storage.marker

    def state(self) -> State:
        """The newest state, durable.

        :raises diskyard.errors.RepositoryUnavailable: the storage does not show it.
        """
        return refresh(self.log)

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be written to the storage now, and so nothing held or attached."""
        return self.storage.read_only_because() is not None

    def commit(self, plan: Callable[[Draft], Result], author: Author) -> Committed[Result]:
        """Publish what ``plan`` writes: see :func:`diskyard.commit.commit`.

        :raises diskyard.errors.LeaseHeld: the plan relies on a look at the volumes of an image, which
            are others now. :func:`diskyard.settled.commit_looking` looks again.
        """
        try:
            return self.try_commit(plan, author)
        except LookAgain as error:
            raise errors.LeaseHeld("The volumes of the image were merged meanwhile.") from error

    def try_commit(self, plan: Callable[[Draft], Result], author: Author) -> Committed[Result]:
        """The same.

        :raises LookAgain: the plan relies on a look at the volumes of an image, which are others now.
        """
        return commit(self.log, plan, author)

    # -- leases -------------------------------------------------------------------------

    @contextmanager
    def work_on(self, image_ids: Iterable[str], *, wait_s: float = 0.0) -> Iterator[list[Lease]]:
        """Hold the work leases of images, taken in order of id.

        :param wait_s: how long to try; work in the way may be short.
        :raises diskyard.errors.LeaseHeld: names the host that works on it, where known.
        :raises diskyard.errors.StorageError: nothing can be written there, nor locked.
        """
        leases: list[Lease] = []
        self.log.require_writable_place()
        try:
            for image_id in sorted(set(image_ids)):
                leases.append(self._lock(image_id, wait_s))
            yield leases
        finally:
            for lease in reversed(leases):
                lease.release()

    def _lock(self, image_id: str, wait_s: float) -> Lease:
        deadline_s = time.monotonic() + wait_s
        while (lease := self.storage.try_lock(lease_name(image_id))) is None:
            if time.monotonic() >= deadline_s:
                progress = self.progress(image_id)
                worker = "another task" if progress is None else f"host {progress.host.host_id}"
                raise errors.LeaseHeld(
                    f"Image {image_id} is being worked on by {worker}.",
                    imageId=image_id,
                    hostID=None if progress is None else progress.host.host_id,
                )
            time.sleep(_LEASE_POLL_S)
        return lease

    def is_locked(self, image_id: str) -> bool:
        """Whether somebody works on the image now."""
        return self.storage.is_locked(lease_name(image_id))

    def locked_among(self, image_ids: Collection[str]) -> frozenset[str]:
        """Those of several images that somebody works on now."""
        names = {lease_name(image_id): image_id for image_id in image_ids}
        return frozenset(names[name] for name in self.storage.locked_among(names))

    # -- volumes ------------------------------------------------------------------------------

    def make(self, new: NewVolume) -> None:
        """Make a volume that the log has as building; durable on return."""
        if new.clone_of is not None and self._make_clone(new.clone_of, new.volume):
            return
        self.make_empty(new.volume)

    def _make_clone(self, source: Volume, target: Volume) -> bool:
        if not self.storage.clone_volume(volume_name(source), volume_name(target)):
            raise errors.StorageError(
                f"{self.storage.place} refused to share the bytes of volume {source.id}."
            )
        made = self.stored(target)
        if made is not None and made.length_bytes > source.size_bytes:
            # Another program has made the source longer: what it holds there is nobody's.
            self.resize_raw(self.layer(target), source.size_bytes)
        if target.size_bytes > source.size_bytes:
            self.storage.grow_volume(volume_name(target), length_bytes=target.size_bytes)
        return True

    def make_empty(self, volume: Volume) -> None:
        """Make an empty volume: a raw one that reads zeros, or a qcow2 that shows its parent."""
        if volume.format == "raw":
            self.storage.create_volume(
                volume_name(volume),
                length_bytes=volume.size_bytes,
                preallocate=volume.preallocated,
            )
            return
        header = empty_qcow2(volume.size_bytes, backing_name(volume.parent_image_id))
        self.storage.create_volume(volume_name(volume), length_bytes=len(header), initial=header)

    def stored(self, volume: Volume) -> StoredVolume | None:
        """What the storage says of a volume; None if it does not have it."""
        return self.storage.stored_volume(volume_name(volume))

    def stored_all(self, volumes: Sequence[Volume]) -> list[StoredVolume | None]:
        """The same of several volumes, in their order."""
        return self.storage.stored_volumes([volume_name(volume) for volume in volumes])

    def is_unreadable(self, volume: Volume, stored: StoredVolume | None, *, read_again: bool = False) -> bool:
        """Whether a ready volume is missing or cut short, or its header is damaged.

        :param stored: what the storage says of it.
        :param read_again: also a header that this process has found to be sound, though nothing has
            been written to the volume since: the storage may not give it back any more.
        """
        give_way()
        if volume.state != "ready":
            return False
        if stored is None or volume.format == "raw":
            return is_missing(volume, stored)
        if not read_again and self.remembered.headers.has(volume, stored):
            return False
        read_ns = int(self.host.clock.wall_s() * 1e9)
        if self._flaw(volume, stored) is not None:
            return True
        self.remembered.headers.keep(volume, stored, read_ns)
        return False

    def _flaw(self, volume: Volume, stored: StoredVolume | None, fd: int | None = None) -> str | None:
        """Why no program may open what is in a volume's place; None if one may.

        :param fd: its file, if that is open.
        """
        if stored is not None and volume.format == "raw":
            return None
        path = self.storage.locate_volume(volume_name(volume)).path
        if path is None:
            return None
        if stored is None:
            return ABSENT_WORDS

        def read(offset_bytes: int, size_bytes: int) -> bytes:
            if offset_bytes + size_bytes <= READ_BYTES:
                return head[offset_bytes : offset_bytes + size_bytes]
            if fd is not None:
                return self.host.files.read_open(fd, offset_bytes, size_bytes)
            return self.host.files.read_at(path, offset_bytes, size_bytes)

        try:
            if fd is None:
                head = self.host.files.read_beginning(path, READ_BYTES)
            else:
                head = self.host.files.read_open(fd, 0, READ_BYTES)
            flaw = own_header_flaw(read, stored.length_bytes, volume.size_bytes)
            if flaw is None:
                self.remembered.note_snapshots(volume, snapshot_count(read))
                self.remembered.note_size(volume, int.from_bytes(read(*QCOW2_SIZE_FIELD), "big"))
                flaw = snapshots_flaw(read, stored.length_bytes)
            return flaw
        except OSError as error:
            return f"its header cannot be read: {error.strerror or error}"

    def look(self, volumes: Sequence[Volume]) -> Looked:
        """Which of some volumes the storage does not have whole."""
        ready = [volume for volume in volumes if volume.state == "ready"]
        found = zip(ready, self.stored_all(ready), strict=True)
        missing = [volume.id for volume, stored in found if self.is_unreadable(volume, stored)]
        return Looked([volume.id for volume in ready], missing)

    def missing_of(self, state: State, image: Image) -> Looked:
        """Which volumes of an image's chain the storage does not have whole."""
        return self.look([volume for _, volume in state.chain(image)])

    def missing_below(self, state: State, image_id: str | None) -> Looked:
        """The same for an image id that may not exist."""
        image = state.images.get(image_id or "")
        return self.look([]) if image is None else self.missing_of(state, image)

    def layer(self, volume: Volume, *, fd: int | None = None) -> Layer:
        """A volume as the movers and guests open it: the one way to all that QEMU opens of ours.

        :param fd: its file, open (:mod:`diskyard.volume_files`): that one is looked at, and is the layer's.
        :raises diskyard.errors.ImageBroken: what is in its place must not be opened.
        """
        stored = self.stored(volume)
        if fd is not None and stored is not None:
            stored = replace(stored, length_bytes=self.host.files.size_bytes_of(fd))
        flaw = self._flaw(volume, stored, fd)
        if flaw is not None:
            raise self.not_opened(volume, flaw)
        located = self.storage.locate_volume(volume_name(volume))
        is_longer = volume.format == "raw" and stored is not None and stored.length_bytes > volume.size_bytes
        return Layer(
            name=volume.id,
            format=volume.format,
            protocol=located.protocol,
            path=located.path,
            size_bytes=volume.size_bytes,
            bound_bytes=volume.size_bytes if is_longer else None,
            fd=fd,
        )

    def not_opened(self, volume: Volume, flaw: str) -> errors.ImageBroken:
        """The error for a volume that no program may open."""
        return errors.ImageBroken(
            f"Volume {volume.id} of {self.storage.place} cannot be opened: {flaw}.",
            advice="Run checkStorageRepository with deep, and put the volume back from a backup "
            "where no mend is listed.",
        )

    def layers(self, state: State, volumes: Sequence[Volume], *, own: int = 0) -> Chain:
        """Volumes that read one another, top first.

        :raises diskyard.errors.ImageBroken: one of them must not be opened so.
        """
        self.require_bounded(state, volumes[own:])
        return tuple(self.layer(volume) for volume in volumes)

    def chain(self, state: State, image: Image) -> Chain:
        """An image's volumes, top first."""
        return self.layers(state, [volume for _, volume in state.chain(image)])

    def is_unwritten(self, volume: Volume) -> bool:
        """Whether nothing was ever written to a qcow2 volume that nobody has open.

        Of one that is not there, as it may have been merged meanwhile, nothing is known.
        """
        path = self.storage.locate_volume(volume_name(volume)).path
        if path is None or volume.format != "qcow2" or self._flaw(volume, self.stored(volume)) is not None:
            return False
        try:
            return overlay_is_unwritten(lambda offset, size: self.host.files.read_at(path, offset, size))
        except FileNotFoundError:
            return False

    def longer_bytes(
        self, volume: Volume, stored: StoredVolume | None, *, as_read: bool = False
    ) -> int | None:
        """The virtual size of a volume that can be read and is longer than its record says; else None.

        :param as_read: its header was read just now, and is not read again.
        """
        if stored is None:
            return None
        actual_bytes = stored.length_bytes
        if volume.format == "qcow2":
            if as_read:
                return self.remembered.virtual_bytes.get(volume.id)
            path = self.storage.locate_volume(volume_name(volume)).path
            if path is None or self.is_unreadable(volume, stored):
                return None
            try:
                actual_bytes = int.from_bytes(self.host.files.read_at(path, *QCOW2_SIZE_FIELD), "big")
            except FileNotFoundError:  # it was merged meanwhile: who goes on with it looks again
                return None
        return actual_bytes if actual_bytes > volume.size_bytes else None

    def require_bounded(self, state: State, volumes: Sequence[Volume]) -> None:
        """Refuse a chain that would show what a volume in it holds beyond its record.

        A raw one is opened as long as its record says (:attr:`Layer.bound_bytes`); of a qcow2 QEMU can
        show no part. What a merge consumes is longer by what it is read through; the top is bounded by
        who opens it.
        """
        for above, volume in pairwise(volumes):
            if volume.format != "qcow2" or above.size_bytes <= volume.size_bytes:
                continue
            consumed = any(state.images[key].consumed_by for key in state.images_on(volume.id))
            if not consumed:
                self.require_as_recorded(volume)

    def require_as_recorded(self, volume: Volume) -> None:
        """Refuse a volume that another program has made longer than its record says."""
        longer_bytes = self.longer_bytes(volume, self.stored(volume))
        if longer_bytes is not None:
            raise errors.ImageBroken(
                f"Volume {volume.id} of {self.storage.place} has {longer_bytes} bytes, and its record "
                f"says {volume.size_bytes}: another program made it longer, and that would be shown.",
                advice="Run the clean fix that checkStorageRepository lists for it, with force: it cuts that "
                "off. Keep it first if it is needed.",
            )

    def has_snapshots(self, volume: Volume) -> bool:
        """Whether a user has made internal snapshots in a volume that can be read (``qemu-img snapshot``)."""
        path = self.storage.locate_volume(volume_name(volume)).path
        if path is None or volume.format != "qcow2":
            return False
        return snapshot_count(lambda offset, size: self.host.files.read_at(path, offset, size)) > 0

    def resize_raw(self, layer: Layer, size_bytes: int) -> None:
        """Make the file of a raw layer exactly so long, durably."""
        assert layer.path is not None
        if layer.fd is None:
            fd = self.host.files.open_alone(layer.path, writable=True)
        else:
            fd = self.host.files.open_for_writing(layer.fd)
        try:
            self.host.files.truncate(fd, size_bytes)
            self.host.files.sync(fd)
        finally:
            os.close(fd)

    # -- progress -----------------------------------------------------------------------------------

    def progress(self, image_id: str) -> Progress | None:
        """The last progress written of work on an image, if it can be read."""
        data = self.storage.get_progress(image_id)
        if data is None:
            return None
        try:
            progress, _ = decode(data, Progress)
        except (Damaged, NewerMajor):
            return None
        return progress if progress.image_id == image_id else None

    def put_progress(self, progress: Progress) -> None:
        """Write progress down; a crash leaves the old or the new."""
        self.storage.put_progress(progress.image_id, encode(progress))


def lease_name(image_id: str) -> str:
    """The name of the work lease of an image, or of a volume that is being deleted."""
    return f"work:{image_id}"
