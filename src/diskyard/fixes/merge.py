"""merge: joins the volume of a removed image with the only volume that still reads it."""

from __future__ import annotations

import contextlib
from typing import Literal

from diskyard import errors
from diskyard.fixes.work import Work, require_free_space
from diskyard.host.identity import new_uuid
from diskyard.model.fix import CleanVolume, Merge
from diskyard.model.records import Volume
from diskyard.model.state import State
from diskyard.mover.qemu.merge import commit_down, stream_up
from diskyard.operations.engine import FollowUp
from diskyard.operations.sizes import settle_disk
from diskyard.operations.writers import require_no_stranger_in
from diskyard.planner import merge as planner
from diskyard.planner.common import Superseded
from diskyard.planner.merge import MergePlan
from diskyard.repository.commit import newest_known
from diskyard.repository.foreign import snapshots_wait_for
from diskyard.repository.repository import Repository
from diskyard.repository.settled import Finder, Opening, look_at, open_chains

_MOVE = "Move the repository to a file system that can hold longer files (as XFS)."


def merge(work: Work, action: Merge) -> tuple[bool, list[FollowUp]]:
    """Merge a weak image with the one volume that reads it.

    :returns: whether anything changed, and the clean of the volume that is left over, if one is.
    :raises diskyard.errors.ImageInUse: an attachment, internal snapshots or a running QEMU are in the way.
    :raises diskyard.errors.ImageBroken: a volume that the merge would read cannot be read.
    :raises diskyard.errors.Unsupported: no raw volume here can be as long as the merged one.
    """
    repo = work.repo

    def images_of(state: State) -> list[str]:
        plan = _plan(repo, state, action.image_id)
        return [] if plan is None else planner.merge_lease_images(state, plan)

    while True:
        with repo.work_as_known(images_of) as (image_ids, held):
            work.hold(held)
            state = work.newest()
            plan = _plan(repo, state, action.image_id)
            if plan is None:
                return False, []
            if planner.merge_lease_images(state, plan) != image_ids:
                continue  # a Snapshot was taken meanwhile: the merge needs the leases of other images
            if _settled(work, state, plan) is not state:
                continue
            _require_free(repo, state, plan)
            too_long = planner.merge_too_long(plan, repo.storage.capabilities)
            if too_long is not None:
                raise errors.Unsupported(f"The merge waits: {too_long}.", advice=_MOVE)
            try:
                _require_whole(repo, state, plan)
                _require_no_stranger(work, plan)
                return True, _merge(work, state, plan)
            except Superseded:
                return False, []


def _settled(work: Work, state: State, plan: MergePlan) -> State:
    """Settle the sizes of disks on the dependent. Return the state after it, which is mostly the same one."""
    for image_id in sorted(state.images_on(plan.dependent.id)):
        state = settle_disk(work.repo, state, image_id, work.author)
    return state


def _plan(repo: Repository, state: State, image_id: str) -> MergePlan | None:
    image = state.images.get(image_id)
    if image is None or image.volume_id is None:
        return None
    allocated: dict[str, int] = {}
    for volume_id in (image.volume_id, *state.dependents(image_id)):
        stored = repo.stored(state.volumes[volume_id])
        allocated[volume_id] = 0 if stored is None else stored.allocated_bytes
    return planner.plan_merge(state, image_id, allocated, repo.storage.capabilities)


def merge_is_free(repo: Repository, image_id: str) -> bool:
    """Whether a merge can be done now by dropping an empty volume, without moving data."""
    state = newest_known(repo.log)  # the merge itself decides on the newest
    plan = _plan(repo, state, image_id)
    if plan is None or planner.merge_in_the_way(state, plan) is not None:
        return False
    if _snapshots_in_the_way(repo, plan) is not None:
        return False
    return plan.image.consumed_by is None and _free_direction(repo, plan) is not None


def _snapshots_in_the_way(repo: Repository, plan: MergePlan) -> str | None:
    """What a merge waits for if it would change, or delete, a volume with a user's internal snapshots."""
    for volume in (plan.parent, plan.dependent):
        if not repo.is_unreadable(volume, repo.stored(volume)) and repo.has_snapshots(volume):
            return snapshots_wait_for(repo, volume)
    return None


def _require_free(repo: Repository, state: State, plan: MergePlan) -> None:
    in_the_way = planner.merge_in_the_way(state, plan) or _snapshots_in_the_way(repo, plan)
    if in_the_way is not None:
        raise errors.ImageInUse(f"The merge waits: {in_the_way}.")


def _require_no_stranger(work: Work, plan: MergePlan) -> None:
    """Refuse to merge while a guest without an attachment writes.

    An overlay may seem to be empty because the guest's writes are still in QEMU's memory.
    """
    for volume in (plan.dependent, plan.parent):
        require_no_stranger_in(work.repo, volume)


def _volumes_from(volume_id: str) -> Finder:
    """Find a volume of the merge, and those that it reads. Other merges may run below the two volumes."""

    def find(state: State) -> list[Volume]:
        volume = state.volumes.get(volume_id)
        if volume is None:
            raise Superseded(f"volume {volume_id} is gone")
        return state.volume_chain(volume)

    return find


def _require_whole(repo: Repository, state: State, plan: MergePlan) -> None:
    """Refuse to write bytes that may be wrong into a sound volume."""
    sight = look_at(repo, _volumes_from(plan.dependent.id), state)
    for volume in sight.volumes:
        if volume.damage is not None or volume.state != "ready" or volume.id in sight.missing:
            raise errors.ImageBroken(
                f"The merge waits: volume {volume.id} cannot be read.",
                advice="First mend the images that read it; check lists the mends.",
            )


def _merge(work: Work, state: State, plan: MergePlan) -> list[FollowUp]:
    repo = work.repo
    with work.of_image(next(iter(sorted(state.images_on(plan.dependent.id))), None)):
        free = None if plan.image.consumed_by is not None else _free_direction(repo, plan)
        if free is not None:
            gone = _seal_down(work, plan.image.id, plan) if free == "down" else _seal_up(work, plan)
        else:
            require_free_space(repo, plan.moves_bytes, "The merge")
            gone = _merge_down(work, plan) if plan.direction == "down" else _merge_up(work, plan)
    return [FollowUp(repo, CleanVolume(volume_id=gone))]


def _free_direction(repo: Repository, plan: MergePlan) -> Literal["down", "up"] | None:
    """How to merge by dropping an empty volume, without moving data; None if that is not possible.

    The volume that stays must show the image's bytes and no more, so its actual size counts.
    """
    same_size = plan.parent.size_bytes == plan.dependent.size_bytes
    if same_size and repo.is_unwritten(plan.dependent):
        with contextlib.suppress(errors.ImageBroken):  # it is not known to be as long as its record says
            if repo.virtual_bytes(plan.parent) <= plan.parent.size_bytes:
                return "down"
    if plan.parent.size_bytes >= plan.dependent.size_bytes and repo.is_unwritten(plan.parent):
        return "up"
    return None


def _merge_down(work: Work, plan: MergePlan) -> str:
    """Move the dependent's bytes into the parent.

    From the first transaction on, the parent can be read only through the dependent. The second one gives
    the parent to the dependent's images.
    """
    repo, fresh_id = work.repo, new_uuid()
    # While an image above is prepared, the leases of weak images are held under the ids that they then have.
    with repo.work_on([fresh_id]) as lease:
        work.hold([*work.leases, *lease])
        consumed_id = repo.commit(lambda draft: planner.consume(draft, plan, fresh_id), work.author).result
        with work.writing(plan.dependent, plan.parent):
            open_chains(
                [(repo, _volumes_from(plan.dependent.id))],
                lambda found: commit_down(work.engine.host, found.chain[0], found.chain[1:], work),
                own=1,
            )
        return _seal_down(work, consumed_id, plan)


def _seal_down(work: Work, image_id: str, plan: MergePlan) -> str:
    _require_no_stranger(work, plan)
    work.repo.commit(lambda draft: planner.seal_merge_down(draft, image_id, plan), work.author)
    return plan.dependent.id


def _merge_up(work: Work, plan: MergePlan) -> str:
    """Move the parent's bytes into the dependent, which shows the same bytes all the time."""

    def stream(found: Opening) -> None:
        top, parent, *below = found.chain
        # As it is now: a merge further down may have given that image another id.
        parent_image_id = found.state.volumes[plan.parent.id].parent_image_id
        name = work.repo.name_in_header(plan.dependent, parent_image_id)
        stream_up(work.engine.host, top, (parent,), tuple(below), name, work)

    with work.writing(plan.dependent, plan.parent):
        open_chains([(work.repo, _volumes_from(plan.dependent.id))], stream, own=1)
    return _seal_up(work, plan)


def _seal_up(work: Work, plan: MergePlan) -> str:
    _require_no_stranger(work, plan)
    work.repo.commit(lambda draft: planner.seal_merge_up(draft, plan.image.id, plan), work.author)
    return plan.parent.id
