"""clean: deletes what nothing needs, settles sizes, and writes missing replicas again."""

from __future__ import annotations

from diskyard import errors
from diskyard.fixes.judge import hold_is_over
from diskyard.fixes.work import Work
from diskyard.host import provably_gone_host
from diskyard.log.replicas import rewrite_replica
from diskyard.model.fix import (
    CleanAttachment,
    CleanChanged,
    CleanGarbage,
    CleanHold,
    CleanLeftover,
    CleanProgress,
    CleanReplica,
    CleanSize,
    CleanStray,
    CleanSwitch,
    CleanVolume,
    Merge,
)
from diskyard.model.records import Attachment, Image
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.model.volume_name import VolumeName
from diskyard.mover.qemu.grow import grow
from diskyard.operations.change import cleaning
from diskyard.operations.engine import FollowUp
from diskyard.operations.running import settle_guest
from diskyard.operations.sizes import growth_of_writer, settle_size
from diskyard.operations.writers import (
    is_written,
    require_no_stranger_in,
    require_writer_gone,
    unasked_is_unwritten,
)
from diskyard.planner.attach import remove_attachment
from diskyard.planner.clean import doom_abandoned, forget
from diskyard.planner.running import accept_changed
from diskyard.planner.sizes import adopt, disk_of, size_lease
from diskyard.planner.switch import release
from diskyard.repository.commit import newest_known
from diskyard.repository.foreign import overlays_of
from diskyard.repository.repository import Repository, volume_name
from diskyard.repository.volume_files import opening_chain


def clean_volume(work: Work, action: CleanVolume) -> bool:
    """Delete a volume that is doomed, or whose making was abandoned; then remove its record.

    A crash leaves the record as doomed, with or without the data.

    :raises diskyard.errors.ImageInUse: some QEMU writes to the volume.
    """
    repo, volume_id = work.repo, action.volume_id
    while True:
        with repo.work_as_known(lambda known: _leases_to_clean(known, volume_id)) as (leases_of, _):
            state = work.newest()
            if _leases_to_clean(state, volume_id) != leases_of:
                continue
            doomed = state.volumes.get(volume_id)
            if doomed is None or doomed.state == "ready":
                return False
            if doomed.state == "building":
                doomed = repo.commit(lambda draft: doom_abandoned(draft, volume_id), work.author).result
                # Another process may have doomed it, in a history that has replaced ours meanwhile.
                repo.log.require_writable()
            if doomed is None:
                return False
            _require_unwritten(repo, volume_name(doomed))
            repo.storage.delete_volume(volume_name(doomed))
            return repo.commit(lambda draft: forget(draft, volume_id), work.author).result


def _leases_to_clean(state: State, volume_id: str) -> list[str]:
    """The leases of a volume, and of the image for which it is being made, if it is."""
    volume = state.volumes.get(volume_id)
    if volume is None or volume.building is None:
        return [volume_id]
    return [volume_id, volume.building.image_id]


def clean_garbage(work: Work, action: CleanGarbage) -> bool:
    """Delete a volume that no record names.

    The storage had the volume before the log was read anew. If an entry of this history named it, and no
    record does now, no later entry will name it again. If this history cannot be shown to have made it, it
    may hold an image of the history that was there before a restore. Then only force deletes it.

    :raises diskyard.errors.ImageInUse: some QEMU writes to the volume.
    """
    repo = work.repo
    name = VolumeName.parse(action.name)
    if name is None:
        return False
    if repo.storage.stored_volume(name) is None:
        return False
    state = work.newest()
    named = state.volumes.get(name.volume_id)
    if named is not None and volume_name(named) == name:
        return False
    if not (repo.log.has_entry(name.named_by) or work.force):
        return False
    _require_unwritten(repo, name)
    return repo.storage.delete_volume(name)


def _require_unwritten(repo: Repository, name: VolumeName) -> None:
    """Refuse to delete a volume that a guest still writes to.

    The guest would go on writing, and all of that would be lost when it ends.
    """
    with unasked_is_unwritten():
        if is_written(repo, name):
            raise errors.ImageInUse(
                f"Volume {name.volume_id} is not deleted: a running QEMU has it open for writing.",
                advice="End that program, then run the fix again.",
            )


def clean_leftover(work: Work, action: CleanLeftover) -> bool:
    """Delete a temporary file whose process has ended."""
    work.newest()
    return work.repo.storage.delete_leftover(action.name)


def clean_progress(work: Work, action: CleanProgress) -> bool:
    """Remove the progress of an image that is gone, or that was removed."""
    repo = work.repo
    if action.image_id not in repo.storage.progress_image_ids():
        return False
    lease = repo.storage.try_lock(f"work:{action.image_id}")
    if lease is None:
        return False
    try:
        image = work.newest().images.get(action.image_id)
        if image is not None and image.is_strong:
            return False
        repo.storage.remove_progress(action.image_id)
        return True
    finally:
        lease.release()


def clean_attachment(work: Work, action: CleanAttachment) -> tuple[bool, list[FollowUp]]:
    """Remove an attachment whose host is provably gone.

    :raises diskyard.errors.ImageInUse: a guest writes to the disk, because it was started again or is another
        one; or another program has left an overlay of the disk, and ``force`` is not given.
    """
    before = work.newest()
    attachment = before.attachments.get(action.attachment_id)
    if attachment is None:
        return False, []
    if not provably_gone_host(attachment.host, work.engine.host.identity):
        return False, []
    require_writer_gone(
        work.repo,
        before,
        attachment,
        advice="Tear the attachment down and prepare the image for the guest that runs, or end that first.",
    )
    if not work.force:
        _require_no_overlay(work.repo, before, attachment)
    if attachment.switching is not None:  # its host has started again since, so the guest has ended
        before = settle_guest(work.engine, work.repo, action.attachment_id, work.author, ended=True)
    growth = growth_of_writer(work.repo, before, attachment.image_id)

    def plan(draft: Draft) -> bool:
        ended = remove_attachment(draft, action.attachment_id)
        if ended and growth is not None:
            adopt(draft, attachment.image_id, growth)
        return ended

    ended = work.repo.commit(plan, work.author)
    return ended.result, cleaning(work.repo, before, ended.state)


def clean_switch(work: Work, action: CleanSwitch) -> bool:
    """End an interrupted switch of a running guest, as the guest has followed or not."""
    before = work.newest().attachments.get(action.attachment_id)
    if before is None or before.switching is None:
        return False
    settle_guest(work.engine, work.repo, action.attachment_id, work.author)
    return True


def clean_changed(work: Work, action: CleanChanged) -> bool:
    """Accept, by force, what another program did to a volume.

    :raises diskyard.errors.ImageInUse: force is not given.
    """
    if not work.force:
        raise errors.ImageInUse(
            f"Another program has changed volume {action.volume_id}: only a person can decide what its bytes "
            "are worth.",
            advice="Force accepts them as they are now.",
        )
    return work.repo.commit(lambda draft: accept_changed(draft, action.volume_id), work.author).result


def _require_no_overlay(repo: Repository, state: State, attachment: Attachment) -> None:
    """Refuse to end the attachment of a disk whose newest bytes may be in another program's overlay."""
    overlays = overlays_of(repo, state, attachment.volume_ids) if attachment.mode == "read_write" else []
    if overlays:
        raise errors.ImageInUse(
            f"Another program made {overlays[0]} as an overlay of image {attachment.image_id}: what the "
            "guest wrote last may be in it.",
            advice="Commit it into the image (qemu-img commit) or move it away, and then run the fix again; "
            "force ends the attachment without that.",
        )


def clean_size(work: Work, action: CleanSize) -> bool:
    """Settle the size of a disk's volume; with force, cut off what another program added to a frozen one."""
    repo = work.repo
    state = newest_known(repo.log)  # tells whose lease to take; the log is read once it is taken
    disk = _disk_on(state, action.volume_id)
    if disk is None:
        state = work.newest()
        disk = _disk_on(state, action.volume_id)
    if disk is not None:
        with repo.work_on([size_lease(disk.id)]) as leases:
            work.hold(leases)
            state, changed = settle_size(repo, disk.id, work.author, list(work.inherit_fds))
        if changed or _disk_on(state, action.volume_id) is not None:
            return changed
    volume = state.volumes.get(action.volume_id)
    if volume is None or volume.state != "ready":
        return False
    images = sorted(state.images_on(volume.id))
    if not work.force or not images or state.attachments_naming(volume.id):
        return False
    with repo.work_on(images) as leases:
        work.hold(leases)
        state = work.newest()
        newest = state.volumes.get(volume.id)
        if (
            newest != volume
            or set(images) != state.images_on(volume.id)
            or state.attachments_naming(volume.id)
        ):
            return False
        if repo.longer_bytes(volume, repo.stored(volume)) is None:
            return False
        repo.log.require_writable()
        require_no_stranger_in(repo, volume)
        with opening_chain(repo, state, state.volume_chain(volume)) as chain, work.writing(volume):
            grow(
                work.engine.host, chain, volume.size_bytes, volume.preallocated, inherit_fds=work.inherit_fds
            )
        return True


def _disk_on(state: State, volume_id: str) -> Image | None:
    """The disk that continues in a ready volume, if there is one."""
    volume = state.volumes.get(volume_id)
    return None if volume is None or volume.state != "ready" else disk_of(state, volume)


def clean_hold(work: Work, action: CleanHold) -> tuple[bool, list[FollowUp]]:
    """Release an image that is held for a copy that is over. What it kept can then be merged or deleted.

    With force, also release it if this host cannot know whether the copy is over; but never while the copy is
    known to go on.
    """
    before = work.newest()
    image = before.images.get(action.image_id)
    if image is None or action.hold not in image.held_for:
        return False, []
    over, why_unknown = hold_is_over(work.engine.connections, before, action.hold)
    if not (over or (work.force and why_unknown is not None)):
        return False, []
    released = work.repo.commit(lambda draft: release(draft, action.image_id, action.hold), work.author)
    merge = FollowUp(work.repo, Merge(image_id=action.image_id))
    return released.result, [merge, *cleaning(work.repo, before, released.state)]


def clean_replica(work: Work, action: CleanReplica) -> bool:
    """Write a missing or damaged replica again from the one that is whole."""
    work.newest()
    return rewrite_replica(work.repo.storage, work.repo.log, action.kind, action.number)


def clean_stray(work: Work, action: CleanStray) -> bool:
    """With force, remove the entry that follows nothing. The log continues from what can be read."""
    work.repo.state()
    work.repo.log.require_writable_place()
    return work.force and work.repo.log.remove_stray(action.entry)
