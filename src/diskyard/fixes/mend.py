"""mend: copies the data of a pending image, or restores a Snapshot from another repository."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from diskyard import errors
from diskyard.fixes.bases import prepare_base
from diskyard.fixes.importing import copy_file, require_free_space_to_import
from diskyard.fixes.judge import FoundSource, NoSource, find_source
from diskyard.fixes.work import Work, filled_bytes, require_free_space
from diskyard.host import provably_gone_host
from diskyard.host.identity import new_uuid
from diskyard.log.codec import Progress
from diskyard.model.fix import CleanVolume, Mend, Merge
from diskyard.model.records import CopyHold, FileSource, Image, Pending, Volume
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.mover.copying.copy import copy_view
from diskyard.mover.durable import resize
from diskyard.mover.interface import Chain
from diskyard.mover.qemu.merge import repair_leaks
from diskyard.mover.reflink import clone_layer
from diskyard.operations.building import new_ids
from diskyard.operations.change import cleaning, holds_of_cancelled
from diskyard.operations.engine import FollowUp
from diskyard.operations.freeze import (
    copy_hold,
    hold_snapshot,
    is_hold_of,
    release_hold,
    require_held,
    require_unchanged,
)
from diskyard.operations.writers import nobody_writes
from diskyard.planner import mend as planner
from diskyard.planner.building import NewVolume
from diskyard.planner.common import Superseded
from diskyard.planner.switch import release
from diskyard.repository.repository import Repository, volume_name
from diskyard.repository.settled import (
    Opening,
    commit_looking,
    look_at,
    open_chains,
    volumes_being_built,
    volumes_below,
    volumes_of,
)
from diskyard.repository.volume_files import opening


def mend(work: Work, action: Mend, participating: list[Repository] | None) -> tuple[bool, list[FollowUp]]:
    """Complete or restore an image.

    :param participating: the repositories in which a source is looked for; None for all that are connected.
    :raises diskyard.errors.ImageBroken: the mend cannot run now; says what it waits for.
    """
    repo = work.repo
    with repo.work_on([action.image_id]) as leases:
        work.hold(leases)
        sight = look_at(repo, volumes_below(action.image_id), work.newest())
        image = sight.state.images.get(action.image_id)
        if image is None:
            return False, []
        is_pending = image.pending is not None and image.is_strong
        if not is_pending and not planner.needs_restore(sight.state, image, sight.missing):
            return False, []
        with work.of_image(image.id):
            try:
                if is_pending:
                    return _complete(work, sight.state, image, participating)
                return _restore(work, image, participating)
            except Superseded:
                # Cancelled or taken over: nobody wants what was made.
                return False, _left_behind(work, image)


def _left_behind(work: Work, image: Image) -> list[FollowUp]:
    """The fixes for what a cancelled mend leaves behind: its volume, and the hold on its source."""
    repo, volume_id = work.repo, work.volume_id
    follow_ups = [] if volume_id is None else [FollowUp(repo, CleanVolume(volume_id=volume_id))]
    if image.id not in repo.state().images:
        follow_ups += holds_of_cancelled(work.engine, repo, image)
    return follow_ups


def _require_source(work: Work, image: Image, participating: list[Repository] | None) -> FoundSource:
    found = find_source(work.engine.connections, work.repo, image, participating)
    if isinstance(found, NoSource):
        raise errors.ImageBroken(
            f"Image {image.id} cannot be mended yet: {found.kept()}.",
            imageId=image.id,
            advice="Connect a repository that has it, then run the fix again; check says what it waits for.",
        )
    return found


def _complete(
    work: Work, state: State, image: Image, participating: list[Repository] | None
) -> tuple[bool, list[FollowUp]]:
    repo = work.repo
    assert image.pending is not None
    work.rate_limit_bytes_per_s = work.rate_limit_bytes_per_s or image.pending.rate_limit_bytes_per_s
    image, state = prepare_base(work, state, image)
    assert image.pending is not None
    source = image.pending.source
    if isinstance(source, FileSource):
        require_free_space_to_import(work, state, source, image)
        new, start_bytes = _take_over(work, state, image, source.fingerprint)
        open_chains(
            [(repo, volumes_being_built(new))],
            lambda being: copy_file(work, source, image, being.chain, start_bytes),
        )
        _seal(work, image.id, new)
        work.engine.asked_imports.forget(repo, image.id)
        return True, []
    found = _require_source(work, image, participating)
    require_free_space(
        repo, _least_needed(found, image.pending) - filled_bytes(repo, state, image), "The copy"
    )
    with _reading(work, found, image.id) as (held, fingerprint):
        new, start_bytes = _take_over(work, state, image, fingerprint)
        _copy(work, held, new, start_bytes)
    _seal(work, image.id, new)
    return True, _release_source(work, image.pending, image.id)


def _seal(work: Work, image_id: str, new: NewVolume) -> None:
    work.repo.commit(lambda draft: planner.seal_pending(draft, image_id, new), work.author)


def _take_over(work: Work, state: State, image: Image, fingerprint: str) -> tuple[NewVolume, int]:
    """Become the only work that may seal the image. Return its volume, and the offset from which to go on.

    Another worker's volume is used again only if that worker can no longer write to it. That worker copied
    from the same source, which cannot change, so everything after the last checkpoint is overwritten with
    the same bytes. The first checkpoint says that the volume was made. A volume without a checkpoint is made
    again.
    """
    repo = work.repo
    progress = repo.progress(image.id)
    safe = repo.storage.capabilities.enforced_leases or (
        progress is not None and provably_gone_host(progress.host, work.engine.host.identity)
    )
    before = state.volumes.get(image.volume_id or "")
    exists = before is not None and repo.stored(before) is not None
    ids = new_ids()
    new, old = commit_looking(
        repo,
        None if image.pending is None else image.pending.base_image_id,
        lambda draft: planner.take_over(
            draft, image, ids, keep=safe or not exists, capabilities=repo.storage.capabilities
        ),
        work.author,
    ).result
    kept = exists and new.volume.id != ids.volume_id
    start_bytes = _resume_at(progress, old, fingerprint) if kept else None
    if start_bytes is None:
        # Without a checkpoint nobody knows whether the volume was ever completely made.
        repo.storage.delete_volume(volume_name(new.volume))
        repo.make_empty(new.volume)
    else:
        with opening(repo, [new.volume]) as (layer,):
            repair_leaks(work.engine.host, layer, inherit_fds=work.inherit_fds)
    work.builds(new, fingerprint)
    work.checkpoint(start_bytes or 0)
    return new, work.durable_bytes


def _resume_at(progress: Progress | None, old: Volume | None, fingerprint: str) -> int | None:
    """The last checkpoint, if it is for this volume, for the work that last had it, and for this source."""
    if progress is None or old is None or old.building is None:
        return None
    wanted = (old.id, old.building.work_id, fingerprint)
    noted = (progress.volume_id, progress.work_id, progress.fingerprint)
    return progress.durable_bytes if noted == wanted else None


def _least_needed(found: FoundSource, pending: Pending) -> int:
    """The space that a copy needs at least. A copy that stores a difference may need next to nothing."""
    if pending.base_image_id is not None:
        return 0
    return min(found.image.size_bytes, _allocated(found))


def _allocated(found: FoundSource) -> int:
    volume_id = found.image.volume_id
    stored = None if volume_id is None else found.repo.stored(found.state.volumes[volume_id])
    return 0 if stored is None else stored.allocated_bytes


@contextmanager
def _reading(work: Work, found: FoundSource, image_id: str) -> Iterator[tuple[FoundSource, str]]:
    """Hold the source while it is read, so that its bytes stay even if it is removed.

    The copy's commit has made such a hold already. But a Snapshot may be found whole in another repository,
    and a Snapshot that is being restored has no such commit. A crash leaves the hold, which is over as soon
    as this work's lease is free.

    :yields: the source, and a fingerprint of its bytes as read under this hold.
    :raises diskyard.errors.LeaseHeld: the hold was released before the end.
    """
    source_repo = found.repo
    hold = next((hold for hold in found.image.held_for if is_hold_of(hold, work.repo, image_id)), None)
    if hold is not None:
        yield found, _fingerprint(found.image, hold)
        _require_held(work, found, hold)
        return
    if source_repo.is_read_only:
        yield found, new_uuid()  # a new fingerprint: nothing is reused of an interrupted copy
        require_unchanged(source_repo, found.image)
        return
    own = copy_hold(work.repo, image_id, new_uuid())
    image = hold_snapshot(source_repo, found.image, own, work.author).result
    try:
        yield FoundSource(source_repo, found.state, image), _fingerprint(image, own)
        _require_held(work, found, own)
    finally:
        release_hold(source_repo, found.image.id, own, work.author)


def _fingerprint(image: Image, hold: CopyHold) -> str:
    captured = image.captured
    bytes_of = "" if captured is None else f"{captured.marker}/{captured.image_id}/{captured.data_generation}"
    return f"{image.id}/{image.size_bytes}/{bytes_of}/{hold.work_id}"


def _require_held(work: Work, found: FoundSource, hold: CopyHold) -> None:
    try:
        require_held(found.repo, found.image.id, hold)
    except errors.LeaseHeld:
        work.fingerprint = ""  # nothing that was written may be used again
        work.checkpoint(0)
        raise


def _copy(work: Work, found: FoundSource, new: NewVolume, start_bytes: int) -> None:
    """Copy the bytes: by a clone if the storage can, else what differs, extent by extent.

    Source and base are opened as they are now: merges below them may move their bytes to other volumes.
    """
    repo, volume, size_bytes = work.repo, new.volume, new.volume.size_bytes

    def move(source: Opening, target: Opening) -> None:
        if _share(work, source.chain, target.chain, size_bytes):
            _require_still_on(found, source.chain)
            return
        base = target.state.images.get(volume.parent_image_id or "")
        image = source.state.images[found.image.id]
        copy_view(
            work.engine.host,
            source.chain,
            target.chain,
            size_bytes,
            start_bytes=max(start_bytes, work.durable_bytes),
            monitor=work,
            target_zeroed=repo.storage.capabilities.zeroed,
            changed_layers=None if base is None else planner.changed_layers(source.state, image, base),
        )

    def move_unwritten(source: Opening, target: Opening) -> None:
        with (
            nobody_writes(found.repo, source.volumes, found.image.id),
            nobody_writes(repo, target.volumes[1:], volume.parent_image_id or ""),
        ):
            move(source, target)

    wanted = volumes_of(found.image), volumes_being_built(new)
    open_chains([(found.repo, wanted[0]), (repo, wanted[1])], move_unwritten)


def _require_still_on(found: FoundSource, chain: Chain) -> None:
    """Refuse a clone of volumes that are no longer the source's.

    A Snapshot that was restored meanwhile is on another volume, because the one that was cloned was damaged.

    :raises diskyard.errors.LeaseHeld: the source has other volumes now.
    """
    now = volumes_of(found.image)(found.repo.state())
    if [volume.id for volume in now] != [layer.name for layer in chain]:
        raise errors.LeaseHeld(
            f"The volumes of image {found.image.id} were replaced while they were cloned.",
            imageId=found.image.id,
        )


def _share(work: Work, source: Chain, target: Chain, size_bytes: int) -> bool:
    """Clone a raw file into another one on the same file system with reflinks; False if it cannot be done."""
    single = len(source) == 1 == len(target) and source[0].format == "raw" == target[0].format
    can = work.repo.storage.capabilities.reflink and None not in (source[0].fd, target[0].fd)
    if not (single and can and clone_layer(work.engine.host, source[0], target[0])):
        return False
    if source[0].bound_bytes is not None:
        resize(target[0], min(source[0].bound_bytes, size_bytes))
    if source[0].size_bytes != size_bytes:
        resize(target[0], size_bytes)
    return True


def _release_source(work: Work, pending: Pending, image_id: str) -> list[FollowUp]:
    """Release what the copy has read, or keep it as the tracker. What is released can be merged."""
    source = pending.source
    assert not isinstance(source, FileSource)
    home_repo = work.engine.connections.by_marker(source.marker)
    tracked_disk_id = pending.tracked_disk_id if pending.track_changes else None
    return [] if home_repo is None else _let_go(work, home_repo, source.image_id, image_id, tracked_disk_id)


def _let_go(
    work: Work, home_repo: Repository, held_id: str, image_id: str, tracked_disk_id: str | None = None
) -> list[FollowUp]:
    if home_repo.is_read_only:
        return []  # if there is a hold, check lists it once it can be released

    def let_go(draft: Draft) -> None:
        frozen = draft.state.images.get(held_id)
        holds = () if frozen is None else frozen.held_for
        for hold in (found for found in holds if is_hold_of(found, work.repo, image_id)):
            if tracked_disk_id is not None:
                planner.keep_tracker(draft, held_id, hold, tracked_disk_id)
            else:
                release(draft, held_id, hold)

    with suppress(errors.NotARepository):  # that repository is being removed
        done = home_repo.commit(let_go, work.author)
        merges = [FollowUp(home_repo, Merge(image_id=key)) for key in sorted(_freed(done.before, done.state))]
        return [*merges, *cleaning(home_repo, done.before, done.state)]
    return []


def _freed(before: State, after: State) -> set[str]:
    """The weak images that lost their last hold between two states."""
    return {
        key
        for key in before.held
        if key not in after.held and key in after.images and not after.images[key].is_strong
    }


def _restore(work: Work, image: Image, participating: list[Repository] | None) -> tuple[bool, list[FollowUp]]:
    """Restore a Snapshot whose volume is missing or damaged from a repository that has it whole."""
    repo = work.repo
    found = _require_source(work, image, participating)
    require_free_space(repo, min(image.size_bytes, _allocated(found)), "The restoration")
    ids = new_ids()
    image, new = commit_looking(
        repo,
        image.id,
        lambda draft: planner.begin_restore(draft, image, ids, repo.storage.capabilities),
        work.author,
    ).result
    work.builds(new)
    repo.make_empty(new.volume)
    with _reading(work, found, image.id) as (held, _):
        _copy(work, held, new, 0)
    old_volume_id = image.volume_id
    assert old_volume_id is not None
    repo.commit(
        lambda draft: planner.seal_restore(draft, image.id, new, old_volume_id=old_volume_id), work.author
    )
    follow_ups = [FollowUp(repo, CleanVolume(volume_id=old_volume_id))]
    if any(is_hold_of(hold, repo, image.id) for hold in found.image.held_for):
        follow_ups += _let_go(work, found.repo, image.id, image.id)
    return True, follow_ups
