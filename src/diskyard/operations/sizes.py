"""extendVirtualDisk, and settling disks whose volume is not as long as its record says."""

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

    The intent is published before the volume grows. A crash leaves the intent, and a volume that may be
    longer but holds no data there. The next work on the disk cuts the volume back, and takes the intent back;
    so does this function if it fails. The caller got no answer, so both sizes are right. The old size needs
    no space, so a full storage can go back to it.
    """
    repo = engine.connections.get(request.repository_id)
    author = engine.author("extendVirtualDisk")
    image_id = request.image_id
    with repo.work_on([image_id, size_lease(image_id)], wait_s=_EXTEND_WAIT_S) as leases:
        fds = [fd for lease in leases for fd in lease.descriptors()]
        state, _ = settle_size(repo, image_id, author, fds)
        missing = repo.missing_below(state, image_id)
        disk = planner.growable_disk(Draft(state, missing=missing), image_id, request.size)
        planner.require_possible_length(state, disk, request.size, repo.storage.capabilities)
        require_no_stranger(repo, state, image_id)
        work_id = new_uuid()
        if request.size != disk.size_bytes and not repo.gains_zeros:
            _note_filling(repo, image_id, work_id)
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
    """Grow the volume durably, and then its record."""
    assert grown.extending is not None
    with reading(repo, state, strong_image(state, image_id)) as chain, writing(repo, grown) as leases:
        fds = [*fds, *(fd for lease in leases for fd in lease.descriptors())]
        grow(repo.host, chain, grown.extending.size_bytes, grown.preallocated, inherit_fds=fds)
    _forget_filling(repo, image_id)
    with others_may_win():
        commit_looking(repo, image_id, lambda draft: planner.seal_extend(draft, image_id, grown), author)


def _note_filling(repo: Repository, image_id: str, work_id: str) -> None:
    """Record in the progress file that the bytes which an extend adds are not zeros yet; durable on return.

    This is done before the intent is published. The bytes alone do not tell whether the storage had them, or
    a guest has written them since. Other work on the disk writes its own progress only after settling the
    size.
    """
    with os_errors("noting that an extend begins"):
        _put_note(repo, image_id, work_id)


def _forget_filling(repo: Repository, image_id: str) -> None:
    """Take the note away. It is made another one first: a power cut may bring back what was removed."""
    if not repo.gains_zeros:
        with os_errors("noting that an extend has filled a volume"):
            _put_note(repo, image_id, None)
            repo.storage.remove_progress(image_id)


def _put_note(repo: Repository, image_id: str, work_id: str | None) -> None:
    repo.put_progress(
        Progress(
            image_id=image_id,
            host=repo.host.identity,
            fix="extend",
            stage="1/1",
            percent=-1,
            work_id=work_id,
        )
    )


def _is_filling(repo: Repository, image_id: str, volume: Volume) -> bool:
    """Whether a raw volume's extend was interrupted before the bytes that it adds were zeros."""
    if repo.gains_zeros or volume.format != "raw" or volume.extending is None:
        return False
    with os_errors("reading what an extend has noted"):
        progress = repo.read_progress(image_id)
    return progress is not None and progress.work_id == volume.extending.work_id


def settle_disk(repo: Repository, state: State, image_id: str, author: Author) -> State:
    """Make sure that a disk's volume is as long as its record says. Mostly this only looks.

    :param state: the state that the caller read last.
    :returns: the same state, or the newest one if something had to be settled.
    :raises diskyard.errors.LeaseHeld: an extend is under way.
    :raises diskyard.errors.ImageBroken: the volume is longer, and its size cannot be taken over.
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
    """Like :func:`settle_disk`, for a caller that has the lease of the disk's size.

    This reads the log: what an extend did before it released the lease must not be undone.

    An interrupted extend is taken back. In three cases the guest's QEMU has grown or written the volume: it
    is longer without an extend; it is longer than the extend was to make it; or it holds data beyond its
    record. Then the disk takes over the volume's size. A volume that is too short has lost data. It is
    damaged, and must not be made to look whole.

    :returns: the newest state, and whether anything changed.
    """
    state, changed = repo.state(), False
    while True:
        image = state.images.get(image_id)
        if image is None or not _is_in_doubt(repo, state, image):
            return state, changed
        volume = state.volumes[str(image.volume_id)]
        if repo.is_unreadable(volume, repo.stored(volume)):
            return state, changed  # whoever uses the disk is told that it cannot be read
        settled = _settle(repo, state, image, volume, author, inherit_fds)
        state, changed = settled.state, changed or settled.result


def _settle(
    repo: Repository, state: State, image: Image, volume: Volume, author: Author, inherit_fds: list[int]
) -> Committed[bool]:
    """Try once to settle a size whose lease the caller has; False if the disk has changed since."""
    require_no_stranger_in(repo, volume, image.id)
    actual_bytes = repo.virtual_bytes(volume)
    repo.log.require_writable()  # if nothing can be committed, the volume must not be changed either
    extending = volume.extending
    is_cut = extending is not None and actual_bytes <= repo.most_bytes(volume, extending.size_bytes)
    if is_cut and _is_unwritten_beyond(repo, image.id, volume, actual_bytes):
        _cut_back(repo, state, image, volume, actual_bytes, inherit_fds)
        taken_back = repo.commit(lambda draft: planner.take_back(draft, volume), author)
        # Not before the commit: after a crash in between, what the storage had in the container's last unit
        # would count as a guest's bytes.
        if taken_back.result:
            _forget_filling(repo, image.id)
        return taken_back
    growth = growth_of(repo, state, volume)
    return repo.commit(lambda draft: planner.adopt(draft, image.id, growth), author)


def _is_unwritten_beyond(repo: Repository, image_id: str, volume: Volume, actual_bytes: int) -> bool:
    """Whether a volume holds no data beyond its record. During an extend, it must hold none.

    If somebody wrote there, the intent is not the disk's newest one: the log was restored to an older state,
    and after that state the disk had been extended and given to a guest.
    """
    if actual_bytes <= volume.size_bytes or _is_filling(repo, image_id, volume):
        return True
    with opening(repo, [volume]) as (layer,):
        return reads_zeros(repo.host, layer, volume.size_bytes, actual_bytes)


def _cut_back(
    repo: Repository, state: State, image: Image, volume: Volume, actual_bytes: int, inherit_fds: list[int]
) -> None:
    """Let a volume durably end where its record says. An earlier attempt's cut may not be durable yet."""
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
    """The size of a volume that is longer than its record, made durable, in whole sectors.

    A guest's disk always ends with a whole sector. If the file ends inside one, zeros fill the rest.

    :raises diskyard.errors.ImageBroken: the size cannot be taken over.
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
    """How a guest that ends has grown its disk; None if it has not, or if that cannot be known.

    An attachment must be able to end even if the storage fails. The next work on the disk gets the error.
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
