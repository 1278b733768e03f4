"""Making the volume that a plan has begun: after its intent is in the log, and before its seal.

Work that makes a volume begins it (``planner.building``), makes its bytes here or with
:meth:`Repository.make_empty`, fills it if that is needed, and seals it. If the work fails in between, the
volume stays building, and check lists its clean. Nothing else refers to the volume.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diskyard import errors
from diskyard.host.identity import new_uuid
from diskyard.log.log import Author
from diskyard.model.records import Volume
from diskyard.operations.writers import require_no_stranger_in
from diskyard.planner import clean
from diskyard.planner.building import NewVolume, WorkIds
from diskyard.planner.common import Superseded
from diskyard.repository.repository import Repository, volume_name


def new_ids() -> WorkIds:
    """New ids for a volume that is to be made, and for the work that makes it."""
    return WorkIds(volume_id=new_uuid(), work_id=new_uuid())


@contextmanager
def others_may_win() -> Iterator[None]:
    """A context that turns :class:`Superseded` into the error that the caller of a verb gets.

    :raises diskyard.errors.LeaseHeld: other work has taken over, or the work is no longer wanted.
    """
    try:
        yield
    except Superseded as error:
        raise errors.LeaseHeld(f"Another task has taken over: {error}.") from error


def make_volume(repo: Repository, new: NewVolume, image_id: str | None) -> None:
    """Make a volume that the log has as building, empty or as a clone; durable on return.

    :param image_id: the image whose volume is cloned, if one is.
    :raises diskyard.errors.ImageInUse: some program writes to the volume that is cloned.
    :raises diskyard.planner.common.Superseded: cloning failed, and the image is on another volume now.
    """
    source = new.clone_of
    if source is None:
        repo.make_empty(new.volume)
        return
    try:
        require_no_stranger_in(repo, source)
        _make_clone(repo, source, new.volume)
        require_no_stranger_in(repo, source)
    except (errors.StorageError, FileNotFoundError) as error:
        image = repo.state().images.get(image_id or "")
        if image is not None and image.volume_id == source.id:
            raise
        raise Superseded(f"image {image_id} is on another volume") from error


def _make_clone(repo: Repository, source: Volume, target: Volume) -> None:
    storage, name = repo.storage, volume_name(target)
    if not storage.clone_volume(volume_name(source), name):
        raise errors.StorageError(f"{storage.place} refused to share the bytes of volume {source.id}.")
    made = repo.stored(target)
    if made is not None and made.length_bytes > source.size_bytes:
        # Another program has made the source longer: what is there belongs to no image.
        with storage.open_volume(name) as container:
            container.set_length(source.size_bytes)
            container.sync()
    if target.size_bytes > source.size_bytes:
        storage.grow_volume(name, length_bytes=target.size_bytes)


def forget_volume(repo: Repository, volume_id: str, author: Author) -> None:
    """Delete a volume that this operation was making, and does not use."""
    doomed = repo.commit(lambda draft: clean.doom_abandoned(draft, volume_id), author).result
    if doomed is not None:
        repo.storage.delete_volume(volume_name(doomed))
        repo.commit(lambda draft: clean.forget(draft, volume_id), author)
