"""QEMU programs that write to a volume or file although the log does not say so.

A guest may be started without prepareImage, or go on after its attachment was ended by force. Some of its
writes are still in its memory, and its next writes go into bytes that others take for frozen. QEMU's own
locks show that it is there. So it is looked for wherever bytes are read as frozen, or a writer counts as
gone.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diskyard import errors
from diskyard.host import Host
from diskyard.model.records import Attachment, Volume
from diskyard.model.state import State
from diskyard.model.volume_name import VolumeName
from diskyard.mover.durable import os_errors
from diskyard.repository.repository import Repository, volume_name
from diskyard.storage.interface import Lease

WRITER_WORDS = "a running QEMU has it open for writing"
_ENDING_S = 1.0  # a program that was just killed is gone by then
_POLL_S = 0.02
#: Errors of looking who writes to a file that concern this file alone, not the storage or this process.
_UNASKED = frozenset((errno.EACCES, errno.EPERM, errno.EIO, errno.EUCLEAN, errno.ESTALE))
_END_IT = "End that program first (fuser -v with the file's path shows it)"


def require_file_unwritten(host: Host, fd: int, path: str) -> None:
    """Refuse an open file that some QEMU has open for writing.

    :raises diskyard.errors.ImageInUse: some QEMU has it open for writing.
    """
    with os_errors(f"looking who writes to {path}"):
        if not host.files.is_written_by_qemu(fd):
            return
    raise errors.ImageInUse(
        f"{path} cannot be imported: {WRITER_WORDS}, and some of its writes may still be in its memory.",
        advice=f"{_END_IT}, or pass force if you know that all its writes are in the file.",
    )


def is_written(repo: Repository, name: VolumeName) -> bool:
    """Whether some QEMU program, ours or another, has a volume open for writing now.

    :raises OSError: that cannot be known. Work that relies on the answer must fail.
    """
    return repo.storage.volume_is_written(name)


@contextmanager
def unasked_is_unwritten() -> Iterator[None]:
    """A context for giving a volume up: work goes on if it cannot be known who writes to the volume's file.

    A file that cannot even be opened (damage, or another user's permissions) must not stay for ever.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _UNASKED:
            raise


def why_unasked(repo: Repository, name: VolumeName) -> str | None:
    """Why this host cannot know whether a volume is being written to; None if it can."""
    try:
        is_written(repo, name)
    except OSError as error:
        if error.errno not in _UNASKED:
            raise
        return f"whether {WRITER_WORDS} cannot be known: {error.strerror}, {name}"
    return None


@contextmanager
def writing(repo: Repository, *volumes: Volume) -> Iterator[list[Lease]]:
    """A context that tells others that a writer of these volumes is a program of ours.

    These leases are held only while such a program may write. Work that is still looking for strangers does
    not hold them, so that a stranger is never mistaken for the very work that it prevents.

    :yields: the leases. The program must inherit them, so that they last until it ends, even if this process
        ends before.
    :raises diskyard.errors.LeaseHeld: other work writes to one of the volumes.
    """
    with repo.work_on([_writing_lease(volume) for volume in volumes], wait_s=_ENDING_S) as leases:
        yield leases


def _writing_lease(volume: Volume) -> str:
    return f"{volume.id}/writing"


def has_stranger(repo: Repository, volume: Volume, *, wait_s: float = _ENDING_S) -> bool:
    """Whether a QEMU program that neither the log nor :func:`writing` explains writes to a volume.

    :param wait_s: how long to wait for such a program to end.
    """
    deadline_s = repo.host.clock.monotonic_s() + wait_s
    while is_written(repo, volume_name(volume)):
        if _is_known(repo, volume):
            return False
        if repo.host.clock.monotonic_s() >= deadline_s:
            # Once more: work that ended between the two checks held its lease until its program's end.
            return is_written(repo, volume_name(volume)) and not _is_known(repo, volume)
        repo.host.clock.sleep(_POLL_S)
    return False


def _is_known(repo: Repository, volume: Volume) -> bool:
    """Whether a writer may be the guest that has the volume attached, or a program of ours at work on it."""
    state = repo.state()
    for key in state.attachments_naming(volume.id):
        attachment = state.attachments[key]
        if attachment.mode == "read_write" and volume.id in _written_by(attachment):
            return True
    building = None if (now := state.volumes.get(volume.id)) is None else now.building
    if building is not None and repo.is_locked(building.image_id):
        return True
    return repo.is_locked(_writing_lease(volume))


def _written_by(attachment: Attachment) -> tuple[str, ...]:
    """The volumes that the guest of an attachment may write to: one, or two while it is moved."""
    top_id, switching = attachment.volume_ids[0], attachment.switching
    return (top_id,) if switching is None else (top_id, switching.from_volume_id)


def require_no_stranger(repo: Repository, state: State, image_id: str, *, depth: int = 1) -> None:
    """Refuse an image if a program that nothing explains (:func:`has_stranger`) writes to its volumes.

    :param depth: how many volumes, from the top, to check; 0 for all.
    :raises diskyard.errors.ImageInUse: names the image and the volume.
    """
    image = state.images.get(image_id)
    if image is None or image.volume_id is None:
        return
    for number, (_, volume) in enumerate(state.chain(image)):
        if depth and number >= depth:
            break
        require_no_stranger_in(repo, volume, image_id)


def require_no_stranger_in(repo: Repository, volume: Volume, image_id: str | None = None) -> None:
    """Like :func:`require_no_stranger`, for one volume."""
    if has_stranger(repo, volume):
        of = "" if image_id is None else f" of image {image_id}"
        raise errors.ImageInUse(
            f"A running QEMU has volume {volume.id}{of} open for writing, and no attachment says so.",
            advice=f"{_END_IT}, then try again; prepare an image before a guest opens it.",
            imageId=image_id,
        )


@contextmanager
def nobody_writes(repo: Repository, volumes: Sequence[Volume], image_id: str) -> Iterator[None]:
    """A context for reading an image's volumes: refuse strangers that write to them, before and after.

    :raises diskyard.errors.ImageInUse: some program writes to one of them.
    """
    for volume in volumes:
        require_no_stranger_in(repo, volume, image_id)
    yield
    for volume in volumes:
        require_no_stranger_in(repo, volume, image_id)


def require_writer_gone(repo: Repository, state: State, attachment: Attachment, *, advice: str) -> None:
    """Refuse to end an attachment whose guest still writes.

    :param state: a state with the attachment. As long as the attachment exists, nobody merges its volumes.
    :raises diskyard.errors.ImageInUse: some QEMU has one of the volumes open for writing, or that cannot be
        known.
    """
    if attachment.mode != "read_write":
        return
    deadline_s = repo.host.clock.monotonic_s() + _ENDING_S
    while (why := _why_not_gone(repo, state, attachment)) is not None:
        if repo.host.clock.monotonic_s() >= deadline_s:
            raise errors.ImageInUse(
                f"The attachment of image {attachment.image_id} for {attachment.owner} cannot end: {why}.",
                advice=advice,
                imageId=attachment.image_id,
                hostID=attachment.host.host_id,
                owner=attachment.owner,
            )
        repo.host.clock.sleep(_POLL_S)


def _why_not_gone(repo: Repository, state: State, attachment: Attachment) -> str | None:
    """Why a writer may still be there: a volume is open for writing, or that cannot be known. Else None."""
    for volume_id in attachment.volume_ids:
        volume = state.volumes.get(volume_id)
        if volume is None:
            continue
        why = why_unasked(repo, volume_name(volume))
        if why is None and is_written(repo, volume_name(volume)):
            why = f"a running QEMU has its volume {volume_id} open for writing"
        if why is not None:
            return why
    return None
