"""A connected repository: its storage, its log, and the chains of its images."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from msgspec.structs import replace

from diskyard import errors
from diskyard.host import Host
from diskyard.host.container import Container
from diskyard.log.codec import Damaged, NewerMajor, Progress, decode, encode
from diskyard.log.log import Author, Log
from diskyard.model.looked import NOT_LOOKED, LookAgain, Looked
from diskyard.model.records import Image, Volume
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.model.volume_name import backing_name
from diskyard.mover.formats.qcow2_header import empty_qcow2
from diskyard.mover.interface import Chain, Layer
from diskyard.repository.commit import Committed, commit, newest_known, refresh
from diskyard.repository.remembered import Remembered
from diskyard.repository.volume_bytes import VolumeBytes, volume_name
from diskyard.storage.interface import Lease, Storage, StoredVolume

__all__ = ["Repository", "lease_name", "volume_name"]
Result = TypeVar("Result")
_LEASE_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Repository(VolumeBytes):
    """One connected repository, under one of its repoIds. Its aliases are others, which share its log."""

    repo_id: str
    format: str
    storage: Storage
    log: Log
    host: Host
    remembered: Remembered = field(default_factory=Remembered, compare=False, repr=False)

    @property
    def marker(self) -> str:
        """The repository's random identity, the same on every host."""
        return self.storage.marker

    def state(self) -> State:
        """The newest state, durable.

        :raises diskyard.errors.RepositoryUnavailable: the storage does not show it.
        """
        return refresh(self.log)

    @property
    def is_read_only(self) -> bool:
        """Whether this host cannot write to the storage now, so that nothing can be held or attached."""
        return self.storage.read_only_because() is not None

    def commit(
        self, plan: Callable[[Draft], Result], author: Author, missing: Looked = NOT_LOOKED
    ) -> Committed[Result]:
        """Publish what ``plan`` writes: see :func:`diskyard.repository.commit.commit`.

        :raises diskyard.errors.LeaseHeld: the plan relies on a look at the volumes of an image, and the image
            has other volumes now. :func:`diskyard.repository.settled.commit_looking` looks again.
        """
        try:
            return self.try_commit(plan, author, missing)
        except LookAgain as error:
            raise errors.LeaseHeld("The volumes of the image were merged meanwhile.") from error

    def try_commit(
        self, plan: Callable[[Draft], Result], author: Author, missing: Looked
    ) -> Committed[Result]:
        """Like :meth:`commit`, with another error.

        :raises LookAgain: the plan relies on a look at the volumes of an image, and the image has other
            volumes now.
        """
        return commit(self.log, plan, author, missing)

    # -- leases -------------------------------------------------------------------------

    @contextmanager
    def work_on(self, image_ids: Iterable[str], *, wait_s: float = 0.0) -> Iterator[list[Lease]]:
        """Hold the work leases of images, taken in the order of their ids.

        :param wait_s: how long to try; other work may be short.
        :raises diskyard.errors.LeaseHeld: names the image, and the host that works on it, if that is known.
        :raises diskyard.errors.StorageError: the storage cannot be written to, so nothing can be locked.
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

    @contextmanager
    def work_as_known(
        self, images_of: Callable[[State], list[str]], *, wait_s: float = 0.0
    ) -> Iterator[tuple[list[str], list[Lease]]]:
        """Hold the work leases that are needed according to the newest state that this process knows.

        The caller reads the log once it holds them, and begins again if the newer state needs others. If a
        lease is held by others, this reads the log: old knowledge is no reason to refuse anything.

        :yields: the ids of the images, and their leases.
        :raises diskyard.errors.LeaseHeld: see :meth:`work_on`; the newest state needs that lease too.
        """
        image_ids = images_of(newest_known(self.log))
        while True:
            with ExitStack() as held:
                try:
                    leases = held.enter_context(self.work_on(image_ids, wait_s=wait_s))
                except errors.LeaseHeld:
                    newest = images_of(self.state())
                    if newest == image_ids:
                        raise
                    image_ids = newest
                    continue
                yield image_ids, leases
                return

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
        """The images, of several, that somebody works on now."""
        names = {lease_name(image_id): image_id for image_id in image_ids}
        return frozenset(names[name] for name in self.storage.locked_among(names))

    # -- volumes ------------------------------------------------------------------------------

    def make_empty(self, volume: Volume) -> None:
        """Make an empty volume: a raw one, or a qcow2 that shows its parent.

        A raw volume reads as zeros only if the storage's new volumes do (``zeroed``).
        """
        if volume.format == "raw":
            self.storage.create_volume(
                volume_name(volume),
                length_bytes=volume.size_bytes,
                preallocate=volume.preallocated,
            )
            return
        header = empty_qcow2(volume.size_bytes, self.name_in_header(volume, volume.parent_image_id))
        self.storage.create_volume(volume_name(volume), length_bytes=len(header), initial=header)

    def name_in_header(self, volume: Volume, parent_image_id: str | None) -> str | None:
        """The name of its parent in the header of a qcow2 volume; None if the header has no name.

        The name is for people who look at files. In a nested graph, QEMU passes it on to the node below, and
        storage that is not opened by a file's name refuses it there.
        """
        is_file = self.storage.locate_volume(volume_name(volume)).path is not None
        return backing_name(parent_image_id) if is_file else None

    def stored_all(self, volumes: Sequence[Volume]) -> list[StoredVolume | None]:
        """Like :meth:`stored`, for several volumes, in their order."""
        return self.storage.stored_volumes([volume_name(volume) for volume in volumes])

    def look(self, volumes: Sequence[Volume]) -> Looked:
        """Which of the volumes the storage does not have whole. Only ready volumes are looked at."""
        ready = [volume for volume in volumes if volume.state == "ready"]
        found = zip(ready, self.stored_all(ready), strict=True)
        missing = [volume.id for volume, stored in found if self.is_unreadable(volume, stored)]
        return Looked([volume.id for volume in ready], missing)

    def missing_of(self, state: State, image: Image) -> Looked:
        """Which volumes of an image's chain the storage does not have whole."""
        return self.look([volume for _, volume in state.chain(image)])

    def missing_below(self, state: State, image_id: str | None) -> Looked:
        """Like :meth:`missing_of`, for the id of an image that may not exist."""
        image = state.images.get(image_id or "")
        return self.look([]) if image is None else self.missing_of(state, image)

    def layer(self, volume: Volume, container: Container | None = None) -> Layer:
        """A volume as the movers and guests open it: every volume that QEMU opens comes from here.

        :param container: the volume's open container (:mod:`diskyard.repository.volume_files`). If it is
            given, the checks read from it, and it becomes the layer's.
        :raises diskyard.errors.ImageBroken: the volume must not be opened.
        """
        stored = self.stored(volume)
        if container is not None and stored is not None:
            stored = replace(stored, length_bytes=container.length_bytes())
        flaw = self.flaw(volume, stored, container)
        if flaw is not None:
            raise self.not_opened(volume, flaw)
        located = self.storage.locate_volume(volume_name(volume))
        has_bytes = stored.length_bytes if volume.format == "raw" and stored is not None else 0
        return Layer(
            name=volume.id,
            format=volume.format,
            protocol=located.protocol,
            path=located.path,
            size_bytes=volume.size_bytes,
            bound_bytes=volume.size_bytes if has_bytes > volume.size_bytes else None,
            bounds_writers=has_bytes <= self.most_bytes(volume, volume.size_bytes),
            gains_zeros=self.gains_zeros,
            container=container,
        )

    def layers(self, state: State, volumes: Sequence[Volume], *, own: int = 0) -> Chain:
        """The layers of volumes that read one another, top first.

        :param own: for how many volumes, from the top, the caller itself makes sure that the volumes below
            them show no more than their records say (:meth:`require_bounded`).
        :raises diskyard.errors.ImageBroken: one of them must not be opened, or not in this chain.
        """
        self.require_bounded(state, volumes[own:])
        return tuple(self.layer(volume) for volume in volumes)

    def chain(self, state: State, image: Image) -> Chain:
        """The layers of an image's volumes, top first."""
        return self.layers(state, [volume for _, volume in state.chain(image)])

    def require_bounded(self, state: State, volumes: Sequence[Volume]) -> None:
        """Refuse a chain that would show what a volume in it holds beyond its record.

        A raw volume is opened with the length in its record (:attr:`Layer.bound_bytes`), but QEMU cannot open
        a part of a qcow2 volume. A volume that a merge consumes may be longer: the merge has grown it for the
        volume above. The code that opens the top volume bounds it itself.
        """
        for above, volume in pairwise(volumes):
            if volume.format != "qcow2" or above.size_bytes <= volume.size_bytes:
                continue
            consumed = any(state.images[key].consumed_by for key in state.images_on(volume.id))
            if not consumed:
                self.require_as_recorded(volume)

    # -- progress -----------------------------------------------------------------------------------

    def progress(self, image_id: str) -> Progress | None:
        """The last progress that work on an image has written, if it can be read."""
        try:
            return self.read_progress(image_id)
        except OSError:
            return None

    def read_progress(self, image_id: str) -> Progress | None:
        """The same, for callers that must tell unreadable progress from none.

        :raises OSError: it cannot be read.
        """
        data = self.storage.get_progress(image_id)
        if data is None:
            return None
        try:
            progress, _ = decode(data, Progress)
        except (Damaged, NewerMajor):
            return None
        return progress if progress.image_id == image_id else None

    def put_progress(self, progress: Progress) -> None:
        """Write progress. A crash leaves the old progress or the new."""
        self.storage.put_progress(progress.image_id, encode(progress))


def lease_name(image_id: str) -> str:
    """The storage's name for the lease of an image or a volume, or of one use of it such as ``<id>/size``."""
    return f"work:{image_id}"
