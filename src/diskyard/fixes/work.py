"""What a running fix is given: where it works, who watches, and when to stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from diskyard import errors
from diskyard.log.codec import Progress
from diskyard.log.log import Author
from diskyard.model.records import Image, Volume
from diskyard.model.state import State
from diskyard.mover.interface import Stopped
from diskyard.operations.engine import Engine
from diskyard.operations.writers import writing
from diskyard.planner.building import NewVolume
from diskyard.planner.common import Superseded
from diskyard.repository.commit import newest_known
from diskyard.repository.repository import Repository
from diskyard.storage.interface import Lease

_PROGRESS_EVERY_S = 1.0
#: The storage's failures, and others at work: neither says anything of the image.
_PASSING = (
    OSError,
    errors.CorruptRecord,
    errors.ImageInUse,
    errors.LeaseHeld,
    errors.RepositoryUnavailable,
    errors.StorageError,
)


class Watcher(Protocol):
    """Who is told how a fix goes: a task of this host."""

    def report(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        """Bytes of a stage."""

    def stop_asked(self) -> bool:
        """Whether the work should end here."""


class NobodyWatches:
    """For work that is short, or that nobody may stop."""

    def report(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        """Nothing is kept."""

    def stop_asked(self) -> bool:
        """Never."""
        return False


@dataclass(slots=True)
class Work:
    """One fix at work in one repository; it is also the movers' monitor.

    :param image_id: whose progress is persisted (:meth:`of_image`); None to persist none.
    :param fix: the fix's type, as progress names it.
    :param force: the caller answers for what cannot be known here.
    """

    engine: Engine
    repo: Repository
    author: Author
    watcher: Watcher = field(default_factory=NobodyWatches)
    rate_limit_bytes_per_s: int = 0
    image_id: str | None = None
    fix: str = ""
    force: bool = False
    stage: str = "1/1"
    volume_id: str | None = None
    work_id: str | None = None
    fingerprint: str = ""
    durable_bytes: int = 0
    percent: int = -1
    leases: list[Lease] = field(default_factory=list)
    _persisted_s: float = 0.0

    @property
    def inherit_fds(self) -> Sequence[int]:
        """The leases' descriptors: a child that moves data holds them too."""
        return [fd for lease in self.leases for fd in lease.descriptors()]

    def newest(self) -> State:
        """The newest state, of a log that can be written; who needs leases asks for it once they are taken.

        :raises diskyard.errors.CorruptRecord: the log cannot all be read, or its history was replaced.
        :raises diskyard.errors.StorageError: the storage is read-only.
        """
        state = self.repo.state()
        self.repo.log.require_writable()
        return state

    def builds(self, new: NewVolume, fingerprint: str = "") -> None:
        """Name the volume that it makes, and what of, in its progress from now on."""
        self.volume_id, self.work_id, self.fingerprint = new.volume.id, new.work_id, fingerprint

    @contextmanager
    def of_image(self, image_id: str | None) -> Iterator[None]:
        """Persist the progress of an image within, and at the end how the work ended.

        The caller has the image's lease until then. Without it nothing is written: others may have noted
        what they rely on, as an extend does.
        """
        self.image_id = image_id
        try:
            yield
            self._forget_progress()
        except Exception as error:
            why = why_ended(error)
            if why is not None and not isinstance(error, Superseded):
                self.persist(why)
            raise
        finally:
            self.image_id = None

    def _forget_progress(self) -> None:
        """Work that is done leaves 100 % to be seen, or nothing where its image is gone."""
        if self.image_id is None or self.percent < 0:
            return
        if self.image_id in newest_known(self.repo.log).images:
            self.percent = 100
            self.persist()
        else:
            self.repo.storage.remove_progress(self.image_id)

    def hold(self, leases: list[Lease]) -> None:
        """Hand the leases on to every child from now on."""
        self.leases = leases

    @contextmanager
    def writing(self, *volumes: Volume) -> Iterator[None]:
        """While a program writes to volumes that others may look at: it inherits what tells them."""
        held = self.leases
        with writing(self.repo, *volumes) as leases:
            self.hold([*held, *leases])
            try:
                yield
            finally:
                self.hold(held)

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        """Report progress; persist it now and then; stop here if that was asked.

        :raises Stopped: it was.
        :raises Superseded: the image was removed: that is how its making is cancelled.
        """
        self.percent = min(100, done_bytes * 100 // total_bytes) if total_bytes else -1
        self.watcher.report(self.stage, done_bytes, total_bytes)
        now_s = self.engine.host.clock.monotonic_s()
        if now_s - self._persisted_s >= _PROGRESS_EVERY_S:
            has_just_begun, self._persisted_s = not self._persisted_s, now_s
            self.persist()
            if not has_just_begun:
                self._require_wanted()
        if self.watcher.stop_asked():
            raise Stopped

    def _require_wanted(self) -> None:
        """Go no further for an image or a volume that nobody wants any more."""
        if self.work_id is None or self.volume_id is None:
            return
        state = self.repo.state()
        volume = state.volumes.get(self.volume_id)
        image_gone = self.image_id is not None and self.image_id not in state.images
        if volume is None or volume.state == "doomed" or image_gone:
            raise Superseded(f"volume {self.volume_id} is not wanted any more")

    def checkpoint(self, durable_bytes: int) -> None:
        """Persist that everything below an offset is durable."""
        self.durable_bytes = durable_bytes
        self.persist()

    def persist(self, error: str | None = None) -> None:
        """Write the progress file; that it may be lost makes failing to no reason to stop."""
        if self.image_id is None:
            return
        try:
            self.repo.put_progress(
                Progress(
                    image_id=self.image_id,
                    host=self.engine.host.identity,
                    fix=self.fix,
                    stage=self.stage,
                    percent=self.percent,
                    volume_id=self.volume_id,
                    work_id=self.work_id,
                    durable_bytes=self.durable_bytes,
                    fingerprint=self.fingerprint,
                    error=error,
                )
            )
        except OSError:
            return


def why_ended(error: Exception) -> str | None:
    """What is kept of why work on an image ended early, where getImageStatus shows it; None for nothing."""
    if isinstance(error, Stopped):
        return "stopped"
    if isinstance(error, _PASSING):
        return None
    return error.message if isinstance(error, errors.DiskyardError) else errors.unexpected(error).message


def filled_bytes(repo: Repository, state: State, image: Image) -> int:
    """What earlier work on an image has stored of it already."""
    volume = state.volumes.get(image.volume_id or "")
    stored = None if volume is None else repo.stored(volume)
    return 0 if stored is None else stored.allocated_bytes


def require_free_space(repo: Repository, needs_bytes: int, doing: str) -> None:
    """Refuse before starting what would only fail when the storage is full.

    :raises diskyard.errors.NoSpace: says how much is needed and how much there is.
    """
    free_bytes = repo.storage.capacity().free_bytes
    if needs_bytes > free_bytes:
        raise errors.NoSpace(
            f"{doing} needs {needs_bytes} bytes and {repo.storage.place} has {free_bytes} free.",
            repositoryId=repo.repo_id,
        )
