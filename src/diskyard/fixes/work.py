"""What a running fix is given: the repository, who watches it, and when to stop."""

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
#: Failures of the storage, and other work in the way: neither says anything about the image.
_PASSING = (
    OSError,
    errors.CorruptRecord,
    errors.ImageInUse,
    errors.LeaseHeld,
    errors.RepositoryUnavailable,
    errors.StorageError,
)


class Watcher(Protocol):
    """What is told the progress of a fix, and can stop it: a task of this host."""

    def report(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        """Take note of how many bytes of a stage are done."""

    def stop_asked(self) -> bool:
        """Whether the work should end here."""


class NobodyWatches:
    """A watcher for work that is short, or that nobody may stop."""

    def report(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        """Do nothing."""

    def stop_asked(self) -> bool:
        """Never."""
        return False


@dataclass(slots=True)
class Work:
    """One fix at work in one repository. It is also the movers' monitor.

    :param image_id: the image whose progress is persisted (:meth:`of_image`); None to persist none.
    :param fix: the fix's type, as the progress names it.
    :param force: the caller vouches for what this host cannot know.
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
        """The leases' descriptors. A child that moves data inherits them, and so holds the leases too."""
        return [fd for lease in self.leases for fd in lease.descriptors()]

    def newest(self) -> State:
        """The newest state of a log that can be written. Work that needs leases calls this after taking them.

        :raises diskyard.errors.CorruptRecord: a part of the log cannot be read, or its history was replaced.
        :raises diskyard.errors.StorageError: the storage is read-only.
        """
        state = self.repo.state()
        self.repo.log.require_writable()
        return state

    def builds(self, new: NewVolume, fingerprint: str = "") -> None:
        """From now on, let the progress name the volume that this work makes, and its source."""
        self.volume_id, self.work_id, self.fingerprint = new.volume.id, new.work_id, fingerprint

    @contextmanager
    def of_image(self, image_id: str | None) -> Iterator[None]:
        """A context in which the progress of an image is persisted, at its end how the work ended.

        The caller holds the image's lease until then. Nothing is written without it, because other work may
        have noted what it relies on, as an extend does.
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
        """Let the progress of finished work say 100 %, or remove it if the image is gone."""
        if self.image_id is None or self.percent < 0:
            return
        if self.image_id in newest_known(self.repo.log).images:
            self.percent = 100
            self.persist()
        else:
            self.repo.storage.remove_progress(self.image_id)

    def hold(self, leases: list[Lease]) -> None:
        """Let every child from now on inherit these leases, and no others."""
        self.leases = leases

    @contextmanager
    def writing(self, *volumes: Volume) -> Iterator[None]:
        """A context in which a program writes to volumes. It inherits the leases that tell others so."""
        held = self.leases
        with writing(self.repo, *volumes) as leases:
            self.hold([*held, *leases])
            try:
                yield
            finally:
                self.hold(held)

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        """Report progress, persist it now and then, and stop here if the watcher asks to.

        :raises Stopped: the watcher asked to stop.
        :raises Superseded: the image was removed, which cancels its making.
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
        """Stop work for an image or a volume that nobody wants any more."""
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
        """Write the progress file. If that fails the work goes on, because progress may be lost."""
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
    """Why work on an image ended early, for getImageStatus to show; None if nothing is to be kept."""
    if isinstance(error, Stopped):
        return "stopped"
    if isinstance(error, _PASSING):
        return None
    return error.message if isinstance(error, errors.DiskyardError) else errors.unexpected(error).message


def filled_bytes(repo: Repository, state: State, image: Image) -> int:
    """How many bytes earlier work has already allocated in an image's volume."""
    volume = state.volumes.get(image.volume_id or "")
    stored = None if volume is None else repo.stored(volume)
    return 0 if stored is None else stored.allocated_bytes


def require_free_space(repo: Repository, needs_bytes: int, doing: str) -> None:
    """Refuse work that would fail later because the storage is full.

    :param doing: names the work, at the beginning of a sentence.
    :raises diskyard.errors.NoSpace: says how much is needed, and how much is free.
    """
    free_bytes = repo.storage.capacity().free_bytes
    if needs_bytes > free_bytes:
        raise errors.NoSpace(
            f"{doing} needs {needs_bytes} bytes and {repo.storage.place} has {free_bytes} free.",
            repositoryId=repo.repo_id,
        )
