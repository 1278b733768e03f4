"""mend: sets up the data of a pending image, or restores a Snapshot from another repository."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from diskyard import errors
from diskyard.fixes.importing import copy_file, require_room_to_import
from diskyard.fixes.judge import FoundSource, NoSource, find_source, waits_for_base
from diskyard.fixes.work import Work, filled_bytes, require_room
from diskyard.host import provably_gone_host
from diskyard.host.identity import new_uuid
from diskyard.log.codec import Progress
from diskyard.model.fix import CleanVolume, Mend, Merge
from diskyard.model.records import CopyHold, FileSource, Image, Pending, Volume
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.mover.copy import copy_view
from diskyard.mover.durable import resize
from diskyard.mover.interface import Chain
from diskyard.mover.merge import repair_leaks
from diskyard.mover.reflink import clone_layer
from diskyard.opened import Opened, volume_name
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
from diskyard.planner.common import Superseded
from diskyard.planner.switch import release
from diskyard.settled import (
    Opening,
    commit_looking,
    look_at,
    open_chains,
    volumes_being_built,
    volumes_below,
    volumes_of,
)
from diskyard.volume_files import opening

_BASE_STARTS_WITHIN_S = 1.0
_BASE_POLL_S = 0.1


def mend(work: Work, action: Mend, participating: list[Opened] | None) -> tuple[bool, list[FollowUp]]:
    """Complete or restore an image.

    :param participating: where a source is looked for; None for all that are connected.
    :raises diskyard.errors.ImageBroken: it cannot run now; says what it waits for.
    """
    opened = work.opened
    with opened.work_on([action.image_id]) as leases:
        work.hold(leases)
        work.image_id = action.image_id
        sight = look_at(opened, volumes_below(action.image_id), work.newest())
        image = sight.state.images.get(action.image_id)
        if image is None:
            return False, []
        try:
            if image.pending is not None and image.is_strong:
                return _complete(work, sight.state, image, participating)
            if planner.needs_restore(sight.state, image, sight.missing):
                return _restore(work, image, participating)
        except Superseded:
            # Cancelled or taken over: what was made is left without anybody who wants it.
            return False, _left_behind(work, image)
        return False, []


def _left_behind(work: Work, image: Image) -> list[FollowUp]:
    """What a mend that was cancelled leaves for others: its volume, and the hold on its source."""
    opened, volume_id = work.opened, work.volume_id
    follow_ups = [] if volume_id is None else [FollowUp(opened, CleanVolume(volume_id=volume_id))]
    if image.id not in opened.state().images:
        follow_ups += holds_of_cancelled(work.engine, opened, image)
    return follow_ups


def _require_source(work: Work, image: Image, participating: list[Opened] | None) -> FoundSource:
    found = find_source(work.engine.connections, work.opened, image, participating)
    if isinstance(found, NoSource):
        raise errors.ImageBroken(
            f"Image {image.id} cannot be mended yet: {found.kept()}.",
            imageId=image.id,
            advice="Connect a repository that has it, then run the fix again; check says what it waits for.",
        )
    return found


def _complete(
    work: Work, state: State, image: Image, participating: list[Opened] | None
) -> tuple[bool, list[FollowUp]]:
    opened = work.opened
    assert image.pending is not None
    state = _await_base(work, state, image.pending.base_image_id)
    work.rate_limit_bytes_per_s = work.rate_limit_bytes_per_s or image.pending.rate_limit_bytes_per_s
    waits_for = waits_for_base(opened, state, image)
    if waits_for is not None:
        raise errors.ImageBroken(
            f"Image {image.id} cannot be mended yet: {waits_for}.",
            imageId=image.id,
            advice="Copy the base to this repository, then run the fix again.",
        )
    source = image.pending.source
    if isinstance(source, FileSource):
        require_room_to_import(work, state, source, image)
        volume, start_bytes = _take_over(work, state, image, source.fingerprint)
        target = volumes_being_built(volume.id, work.work_id or "")
        open_chains(
            [(opened, target)],
            lambda being: copy_file(work, source, image, being.chain, start_bytes),
        )
        _seal(work, image.id, volume)
        work.engine.asked_imports.forget(opened, image.id)
        return True, []
    found = _require_source(work, image, participating)
    require_room(opened, _least_needed(found, image.pending) - filled_bytes(opened, state, image), "The copy")
    with _reading(work, found, image.id) as (held, fingerprint):
        volume, start_bytes = _take_over(work, state, image, fingerprint)
        _copy(work, held, volume, start_bytes)
    _seal(work, image.id, volume)
    return True, _release_source(work, image.pending, image.id)


def _await_base(work: Work, state: State, base_id: str | None) -> State:
    """The state once nobody completes the base, nor may be about to: copies are often made in a row."""
    clock, opened = work.engine.host.clock, work.opened
    begin_s = clock.monotonic_s()
    while base_id is not None:
        base = state.images.get(base_id)
        if base is None or base.pending is None:
            return state
        if not opened.is_locked(base_id) and clock.monotonic_s() - begin_s > _BASE_STARTS_WITHIN_S:
            break
        work.advance(0, 0)
        clock.sleep(_BASE_POLL_S)
        state = opened.state()
    return state


def _seal(work: Work, image_id: str, volume: Volume) -> None:
    work_id = work.work_id
    assert work_id is not None
    work.opened.commit(
        lambda draft: planner.seal_pending(draft, image_id, volume_id=volume.id, work_id=work_id),
        work.author,
    )


def _take_over(work: Work, state: State, image: Image, fingerprint: str) -> tuple[Volume, int]:
    """Become the one work that may seal the image; its volume, and where to go on in it.

    Another worker's volume is used again only if that worker can no longer write into it.
    What it wrote came from the same source, which cannot change: it is overwritten with
    the same bytes from the last checkpoint on. The first checkpoint says that the volume
    was made; one without any is made again.
    """
    opened = work.opened
    progress = opened.progress(image.id)
    safe = opened.storage.capabilities.enforced_leases or (
        progress is not None and provably_gone_host(progress.host, work.engine.host.identity)
    )
    before = state.volumes.get(image.volume_id or "")
    exists = before is not None and opened.stored(before) is not None
    work_id, volume_id = new_uuid(), new_uuid()
    volume, old = commit_looking(
        opened,
        None if image.pending is None else image.pending.base_image_id,
        lambda draft, missing: planner.take_over(
            draft,
            image,
            work_id=work_id,
            volume_id=volume_id,
            keep=safe or not exists,
            missing=missing,
            capabilities=opened.storage.capabilities,
        ),
        work.author,
    ).result
    kept = exists and volume.id != volume_id
    start_bytes = _resume_at(progress, old, fingerprint) if kept else None
    if start_bytes is None:
        # Without a checkpoint it is not known that the volume was ever made whole.
        opened.storage.delete_volume(volume_name(volume))
        opened.make_empty(volume)
    else:
        with opening(opened, [volume]) as (layer,):
            repair_leaks(work.engine.host, layer, inherit_fds=work.inherit_fds)
    work.volume_id, work.work_id, work.fingerprint = volume.id, work_id, fingerprint
    work.checkpoint(start_bytes or 0)
    return volume, work.durable_bytes


def _resume_at(progress: Progress | None, old: Volume | None, fingerprint: str) -> int | None:
    """The last checkpoint, if it is of this volume, of the work that last had it, and source."""
    if progress is None or old is None or old.building is None:
        return None
    same = (progress.volume_id, progress.work_id, progress.fingerprint) == (
        old.id,
        old.building.work_id,
        fingerprint,
    )
    return progress.durable_bytes if same else None


def _least_needed(found: FoundSource, pending: Pending) -> int:
    """Room that a full copy needs at least; a difference may need next to nothing."""
    if pending.base_image_id is not None:
        return 0
    return min(found.image.size_bytes, _allocated(found))


def _allocated(found: FoundSource) -> int:
    volume_id = found.image.volume_id
    stored = None if volume_id is None else found.opened.stored(found.state.volumes[volume_id])
    return 0 if stored is None else stored.allocated_bytes


@contextmanager
def _reading(work: Work, found: FoundSource, image_id: str) -> Iterator[tuple[FoundSource, str]]:
    """The source, held for as long as it is read: its bytes stay though it be removed.

    The hold of the copy's commit does that already; but a Snapshot may be found whole in
    another repository than that, and one that is restored has no commit. A crash leaves the
    hold, which is over as soon as this work's lease is free.

    With it comes its fingerprint: of these very bytes, read under this very hold.

    :raises diskyard.errors.LeaseHeld: the hold did not stand until the end.
    """
    place = found.opened
    hold = next((hold for hold in found.image.held_for if is_hold_of(hold, work.opened, image_id)), None)
    if hold is not None:
        yield found, _fingerprint(found.image, hold)
        _require_held(work, found, hold)
        return
    if place.is_read_only:
        yield found, new_uuid()  # what an interrupted reading has brought is not relied on
        require_unchanged(place, found.image)
        return
    own = copy_hold(work.opened, image_id, new_uuid())
    image = hold_snapshot(place, found.image, own, work.author).result
    try:
        yield FoundSource(place, found.state, image), _fingerprint(image, own)
        _require_held(work, found, own)
    finally:
        release_hold(place, found.image.id, own, work.author)


def _fingerprint(image: Image, hold: CopyHold) -> str:
    captured = image.captured
    bytes_of = "" if captured is None else f"{captured.marker}/{captured.image_id}/{captured.data_generation}"
    return f"{image.id}/{image.size_bytes}/{bytes_of}/{hold.work_id}"


def _require_held(work: Work, found: FoundSource, hold: CopyHold) -> None:
    try:
        require_held(found.opened, found.image.id, hold)
    except errors.LeaseHeld:
        work.fingerprint = ""  # nothing of what was written is to be used again
        work.checkpoint(0)
        raise


def _copy(work: Work, found: FoundSource, volume: Volume, start_bytes: int) -> None:
    """Move the bytes: a clone where storage can, else what differs, extent by extent.

    Source and base are opened as they are now: merges below them may move their bytes meanwhile.
    """
    opened, size_bytes = work.opened, volume.size_bytes

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
            target_zeroed=opened.storage.capabilities.zeroed,
            changed_layers=None if base is None else planner.changed_layers(source.state, image, base),
        )

    def move_unwritten(source: Opening, target: Opening) -> None:
        with (
            nobody_writes(found.opened, source.volumes, found.image.id),
            nobody_writes(opened, target.volumes[1:], volume.parent_image_id or ""),
        ):
            move(source, target)

    wanted = volumes_of(found.image), volumes_being_built(volume.id, work.work_id or "")
    open_chains([(found.opened, wanted[0]), (opened, wanted[1])], move_unwritten)


def _require_still_on(found: FoundSource, chain: Chain) -> None:
    """What was cloned by its name must be the source's volume still: a restored one was damaged.

    :raises diskyard.errors.LeaseHeld: it is not.
    """
    now = volumes_of(found.image)(found.opened.state())
    if [volume.id for volume in now] != [layer.name for layer in chain]:
        raise errors.LeaseHeld(
            f"The volumes of image {found.image.id} were replaced while they were cloned.",
            imageId=found.image.id,
        )


def _share(work: Work, source: Chain, target: Chain, size_bytes: int) -> bool:
    """Clone one raw file into another of one reflink file system; False if that cannot be."""
    single = len(source) == 1 == len(target) and source[0].format == "raw" == target[0].format
    can = work.opened.storage.capabilities.reflink and None not in (source[0].fd, target[0].fd)
    if not (single and can and clone_layer(work.engine.host, source[0], target[0])):
        return False
    if source[0].bound_bytes is not None:
        resize(target[0], min(source[0].bound_bytes, size_bytes))
    if source[0].size_bytes != size_bytes:
        resize(target[0], size_bytes)
    return True


def _release_source(work: Work, pending: Pending, image_id: str) -> list[FollowUp]:
    """Let go of what the copy has read, or keep it as the tracker; then it can be merged."""
    source = pending.source
    assert not isinstance(source, FileSource)
    home = work.engine.connections.by_marker(source.marker)
    if home is None or home.is_read_only:
        return []  # check lists the hold, if there is one, when it can be released

    def let_go(draft: Draft) -> None:
        frozen = draft.state.images.get(source.image_id)
        holds = () if frozen is None else frozen.held_for
        for hold in (found for found in holds if is_hold_of(found, work.opened, image_id)):
            if pending.track_changes and pending.tracked_disk_id is not None:
                planner.keep_tracker(draft, source.image_id, hold, pending.tracked_disk_id)
            else:
                release(draft, source.image_id, hold)

    with suppress(errors.NotARepository):  # it is being removed
        done = home.commit(let_go, work.author)
        merges = [FollowUp(home, Merge(image_id=key)) for key in sorted(_freed(done.before, done.state))]
        return [*merges, *cleaning(home, done.before, done.state)]
    return []


def _freed(before: State, after: State) -> set[str]:
    """Weak images that nothing holds any more."""
    return {
        key
        for key in before.held
        if key not in after.held and key in after.images and not after.images[key].is_strong
    }


def _restore(work: Work, image: Image, participating: list[Opened] | None) -> tuple[bool, list[FollowUp]]:
    """A Snapshot's volume is missing or damaged here, and the Snapshot whole elsewhere."""
    opened = work.opened
    found = _require_source(work, image, participating)
    require_room(opened, min(image.size_bytes, _allocated(found)), "The restoration")
    volume_id, work_id = new_uuid(), new_uuid()
    image, volume = commit_looking(
        opened,
        image.id,
        lambda draft, missing: planner.begin_restore(
            draft,
            image,
            volume_id=volume_id,
            work_id=work_id,
            missing=missing,
            capabilities=opened.storage.capabilities,
        ),
        work.author,
    ).result
    work.volume_id, work.work_id = volume.id, work_id
    opened.make_empty(volume)
    with _reading(work, found, image.id) as (held, _):
        _copy(work, held, volume, 0)
    old_volume_id = image.volume_id
    assert old_volume_id is not None
    opened.commit(
        lambda draft: planner.seal_restore(
            draft, image.id, old_volume_id=old_volume_id, volume_id=volume_id, work_id=work_id
        ),
        work.author,
    )
    return True, [FollowUp(opened, CleanVolume(volume_id=old_volume_id))]
