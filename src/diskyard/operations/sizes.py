"""extendVirtualDisk, and how a disk whose volume is not as long as its record says is settled."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from diskyard import errors
from diskyard.host.identity import new_uuid
from diskyard.log.codec import Progress
from diskyard.log.log import Author
from diskyard.model.records import IMAGE_SIZE_LIMIT_BYTES, SECTOR_BYTES, Image, Volume
from diskyard.model.requests import ExtendVirtualDisk
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.mover.durable import os_errors, sync_layer
from diskyard.mover.qemu.grow import grow, reads_zeros, write_zeros
from diskyard.operations.building import others_may_win
from diskyard.operations.engine import Engine, Outcome
from diskyard.operations.writers import require_no_stranger, require_no_stranger_in, writing
from diskyard.planner import sizes as planner
from diskyard.planner.common import strong_image
from diskyard.planner.sizes import Growth, size_lease
from diskyard.repository.commit import Committed
from diskyard.repository.repository import Repository, volume_name
from diskyard.repository.settled import commit_looking
from diskyard.repository.volume_files import opening, reading

_EXTEND_WAIT_S = 1.0


def extend_virtual_disk(engine: Engine, request: ExtendVirtualDisk) -> Outcome:
    """Make a disk larger; durable on return.

    The intent is published before the volume grows. A crash leaves it, with a volume that is longer
    or not and holds nothing there: who comes next cuts that off and takes the intent back, as this
    does if it fails. The caller was not answered, so both sizes are right; the old one can be had
    on a full storage too.
    """
    repo = engine.connections.get(request.repository_id)
    author = engine.author("extendVirtualDisk")
    image_id = request.image_id
    with repo.work_on([image_id, size_lease(image_id)], wait_s=_EXTEND_WAIT_S) as leases:
        fds = [fd for lease in leases for fd in lease.descriptors()]
        state, _ = settle_size(repo, image_id, author, fds)
        missing = repo.missing_below(state, image_id)
        disk = planner.growable_disk(Draft(state, missing=missing), image_id, request.size)
        planner.require_free_space_to_grow(state, disk, request.size, repo.storage.capabilities)
        require_no_stranger(repo, state, image_id)
        work_id = new_uuid()
        if request.size != disk.size_bytes and not repo.gains_zeros:
            _note_filling(engine, repo, image_id, work_id)
        begun = repo.commit(
            lambda draft: planner.begin_extend(draft, image_id, request.size, work_id), author, missing
        )
        if begun.result is not None:
            try:
                _extend(repo, begun.state, image_id, begun.result, author, fds)
            except (errors.DiskyardError, OSError) as error:
                if not isinstance(error, errors.UnknownOutcome):
                    with contextlib.suppress(errors.DiskyardError, OSError):  # check lists it
                        settle_size(repo, image_id, author, fds)
                raise
    return Outcome(image_id)


def _extend(
    repo: Repository, state: State, image_id: str, grown: Volume, author: Author, fds: list[int]
) -> None:
    """Grow the volume, durably, and then its record."""
    assert grown.extending is not None
    with reading(repo, state, strong_image(state, image_id)) as chain, writing(repo, grown) as leases:
        fds = [*fds, *(fd for lease in leases for fd in lease.descriptors())]
        grow(repo.host, chain, grown.extending.size_bytes, grown.preallocated, inherit_fds=fds)
    _forget_filling(repo, image_id)
    with others_may_win():
        commit_looking(repo, image_id, lambda draft: planner.seal_extend(draft, image_id, grown), author)


def _note_filling(engine: Engine, repo: Repository, image_id: str, work_id: str) -> None:
    """Say beside the log that what an extend adds is not zeros yet; before its intent, durable on return.

    From the bytes nobody can tell what the storage had there from what a guest has written since. Work on the
    disk notes its own progress once it has settled the size.
    """
    with os_errors("noting that an extend begins"):
        repo.put_progress(
            Progress(
                image_id=image_id,
                host=engine.host.identity,
                fix="extend",
                stage="1/1",
                percent=-1,
                work_id=work_id,
            )
        )


def _forget_filling(repo: Repository, image_id: str) -> None:
    if not repo.gains_zeros:
        with os_errors("noting that an extend has filled a volume"):
            repo.storage.remove_progress(image_id)


def _is_filling(repo: Repository, image_id: str, volume: Volume) -> bool:
    """Whether a raw volume's extend ended before what it adds was zeros."""
    if repo.gains_zeros or volume.format != "raw" or volume.extending is None:
        return False
    with os_errors("reading what an extend has noted"):
        progress = repo.read_progress(image_id)
    return progress is not None and progress.work_id == volume.extending.work_id


def settle_disk(repo: Repository, state: State, image_id: str, author: Author) -> State:
    """Make sure that a disk's volume is as long as its record says; mostly a look.

    :param state: what the caller has read last.
    :returns: the same, or what came of it.
    :raises diskyard.errors.LeaseHeld: an extend is under way.
    :raises diskyard.errors.ImageBroken: it is longer, and that cannot be taken over.
    """
    image = state.images.get(image_id)
    if image is None or not _is_in_doubt(repo, state, image):
        return state
    try:
        with repo.work_on([size_lease(image_id)], wait_s=_EXTEND_WAIT_S) as leases:
            fds = [fd for lease in leases for fd in lease.descriptors()]
            return settle_size(repo, image_id, author, fds)[0]
    except errors.LeaseHeld as error:
        raise errors.LeaseHeld(f"VirtualDisk {image_id} is being extended.", imageId=image_id) from error


def _is_in_doubt(repo: Repository, state: State, image: Image) -> bool:
    if image.kind != "virtual_disk" or state.attachments_of(image.id):
        return False
    volume = state.volumes.get(image.volume_id or "")
    if volume is None or volume.state != "ready":
        return False
    return volume.extending is not None or repo.longer_bytes(volume, repo.stored(volume)) is not None


def settle_size(
    repo: Repository, image_id: str, author: Author, inherit_fds: list[int]
) -> tuple[State, bool]:
    """The same for who has the lease of its size; the newest state, and whether anything changed.

    The log is read for it: what an extend did before it gave up the lease must not be undone.

    An extend that was cut is taken back. A volume that is longer without one, or than it was to
    become, or that holds anything there, was grown or written by its guest's QEMU: the disk becomes as
    long. A shorter one has lost data: it is damaged, and must not be made to look whole.
    """
    state, changed = repo.state(), False
    while True:
        image = state.images.get(image_id)
        if image is None or not _is_in_doubt(repo, state, image):
            return state, changed
        volume = state.volumes[str(image.volume_id)]
        if repo.is_unreadable(volume, repo.stored(volume)):
            return state, changed  # who asked for the disk is told that it cannot be read
        settled = _settle(repo, state, image, volume, author, inherit_fds)
        state, changed = settled.state, changed or settled.result


def _settle(
    repo: Repository, state: State, image: Image, volume: Volume, author: Author, inherit_fds: list[int]
) -> Committed[bool]:
    """One try, of who has the lease of its size; False if the disk is not as it was found any more."""
    require_no_stranger_in(repo, volume, image.id)
    actual_bytes = repo.virtual_bytes(volume)
    repo.log.require_writable()  # of what cannot be committed nothing is done to the file either
    extending = volume.extending
    is_cut = extending is not None and actual_bytes <= repo.most_bytes(volume, extending.size_bytes)
    if is_cut and _is_unwritten_beyond(repo, image.id, volume, actual_bytes):
        _cut_back(repo, state, image, volume, actual_bytes, inherit_fds)
        taken_back = repo.commit(lambda draft: planner.take_back(draft, volume), author)
        if taken_back.result:  # not before: a crash in between leaves the last unit as it was
            _forget_filling(repo, image.id)
        return taken_back
    growth = growth_of(repo, state, volume)
    return repo.commit(lambda draft: planner.adopt(draft, image.id, growth), author)


def _is_unwritten_beyond(repo: Repository, image_id: str, volume: Volume, actual_bytes: int) -> bool:
    """Whether a volume holds nothing beyond its record, as it must while an extend is under way.

    Where somebody wrote there the intent is not the newest of the disk: its log was put back, and the disk
    was extended and given out since.
    """
    if actual_bytes <= volume.size_bytes or _is_filling(repo, image_id, volume):
        return True
    with opening(repo, [volume]) as (layer,):
        return reads_zeros(repo.host, layer, volume.size_bytes, actual_bytes)


def _cut_back(
    repo: Repository, state: State, image: Image, volume: Volume, actual_bytes: int, inherit_fds: list[int]
) -> None:
    """Let a volume durably end where its record says; what an earlier try cut may not be durable yet."""
    if actual_bytes > volume.size_bytes:
        with reading(repo, state, image) as chain, writing(repo, volume) as leases:
            fds = [*inherit_fds, *(fd for lease in leases for fd in lease.descriptors())]
            grow(repo.host, chain, volume.size_bytes, volume.preallocated, inherit_fds=fds)
    else:
        _sync(repo, volume)


def _sync(repo: Repository, volume: Volume) -> None:
    with opening(repo, [volume]) as (layer,):
        sync_layer(layer)


def growth_of(repo: Repository, state: State, volume: Volume) -> Growth:
    """The size that a longer volume has, durably, in whole sectors.

    A guest's disk ends with a whole sector, whatever its file does: the rest of it are zeros.

    :raises diskyard.errors.ImageBroken: it cannot be taken over.
    """
    longer_bytes = max(repo.virtual_bytes(volume), volume.size_bytes)
    size_bytes = -(-longer_bytes // SECTOR_BYTES) * SECTOR_BYTES
    if planner.disk_of(state, volume) is None or size_bytes > IMAGE_SIZE_LIMIT_BYTES:
        raise errors.ImageBroken(
            f"Volume {volume.id} of {repo.storage.place} has {longer_bytes} bytes, and its record says "
            f"{volume.size_bytes}: another program made it longer than a disk can be, or while a Snapshot "
            "had it.",
            advice="Once nobody needs the bytes beyond that, cut it to the length that its record says.",
        )
    if volume.format == "raw" and size_bytes > longer_bytes:
        # Neither of the two cuts, as growing a layer does: the program may still be adding to it.
        repo.storage.grow_volume(volume_name(volume), length_bytes=size_bytes)
        if not repo.gains_zeros:
            with opening(repo, [volume]) as (layer,):
                write_zeros(repo.host, replace(layer, size_bytes=longer_bytes), size_bytes)
    _sync(repo, volume)
    return Growth(volume, size_bytes)


def growth_of_writer(repo: Repository, state: State, image_id: str) -> Growth | None:
    """What a guest that ends has made of its disk's size; None if nothing, or if that cannot be said.

    An attachment must end whatever the storage says: who looks at the disk next is told.
    """
    with contextlib.suppress(errors.DiskyardError, OSError):
        image = state.images.get(image_id)
        volume = None if image is None else state.volumes.get(image.volume_id or "")
        if (
            image is None
            or volume is None
            or image.kind != "virtual_disk"
            or state.writer_of(image_id) is None
        ):
            return None
        if repo.longer_bytes(volume, repo.stored(volume)) is not None:
            return growth_of(repo, state, volume)
    return None
