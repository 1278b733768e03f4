"""optimize: builds the better volume beside the old one, then switches to it."""

from __future__ import annotations

from diskyard import errors
from diskyard.fixes.work import Work, require_room
from diskyard.host.identity import new_uuid
from diskyard.model.fix import CleanVolume, Optimize
from diskyard.model.records import Volume
from diskyard.model.state import State
from diskyard.mover.copy import copy_view
from diskyard.opened import volume_name
from diskyard.operations.engine import FollowUp
from diskyard.planner import optimize as planner
from diskyard.planner.common import Superseded
from diskyard.planner.optimize import OptimizePlan
from diskyard.settled import (
    Opening,
    commit_looking,
    look_at,
    open_chains,
    volumes_being_built,
    volumes_below,
)


def optimize(work: Work, action: Optimize) -> tuple[bool, list[FollowUp]]:
    """Build the better representation of a degraded image.

    What is built is of the moment at which it began: attaching the image for writing, or
    any other change of its bytes, makes the seal fail and the fix stay listed.

    :raises diskyard.errors.ImageInUse: the image is attached for writing.
    """
    opened = work.opened
    with opened.work_on([action.image_id]) as leases:
        work.hold(leases)
        work.image_id = action.image_id
        sight = look_at(opened, volumes_below(action.image_id))
        plan = planner.plan_optimize(sight.state, action.image_id, opened.storage.capabilities)
        if plan is None or sight.missing:
            return False, []
        waits_for = planner.optimize_waits_for(sight.state, plan)
        if waits_for is not None:
            raise errors.ImageInUse(f"The optimization waits: {waits_for}.", imageId=plan.image.id)
        if plan.kind == "reserve":
            return _reserve(work, plan), []
        return _build(work, plan)


def _reserve(work: Work, plan: OptimizePlan) -> bool:
    stored = work.opened.stored(plan.volume)
    allocated = 0 if stored is None else stored.allocated_bytes
    require_room(work.opened, plan.volume.size_bytes - allocated, "Reserving the image's blocks")
    try:
        try:
            work.opened.storage.grow_volume(
                volume_name(plan.volume), length_bytes=plan.volume.size_bytes, preallocate=True
            )
        except (errors.StorageError, FileNotFoundError):
            planner.require_unchanged(work.opened.state(), plan)  # or it was removed with its image
            raise
        work.opened.commit(lambda draft: planner.seal_reserve(draft, plan), work.author)
    except Superseded:
        return False
    return True


def _build(work: Work, plan: OptimizePlan) -> tuple[bool, list[FollowUp]]:
    opened, volume_id, work_id = work.opened, new_uuid(), new_uuid()
    image_id, capabilities = plan.image.id, opened.storage.capabilities
    if plan.kind == "flatten":
        require_room(opened, plan.image.size_bytes, "The optimization")
    try:
        volume = commit_looking(
            opened,
            image_id,
            lambda draft, missing: planner.begin_optimize(
                draft,
                plan,
                volume_id=volume_id,
                work_id=work_id,
                capabilities=capabilities,
                missing=missing,
            ),
            work.author,
        )
    except Superseded:
        return False, []
    work.volume_id, work.work_id = volume.id, work_id
    try:
        opened.make_empty(volume)
        _fill(work, plan, volume.id, work_id)
        commit_looking(
            opened,
            image_id,
            lambda draft, missing: planner.seal_optimize(
                draft, plan, volume_id=volume_id, work_id=work_id, missing=missing
            ),
            work.author,
        )
    except Superseded:
        return False, [FollowUp(opened, CleanVolume(volume_id=volume_id))]
    return True, [FollowUp(opened, CleanVolume(volume_id=plan.volume.id))]


def _fill(work: Work, plan: OptimizePlan, volume_id: str, work_id: str) -> None:
    opened = work.opened

    def image_volumes(state: State) -> list[Volume]:
        return [volume for _, volume in state.chain(planner.require_unchanged(state, plan))]

    def fill(source: Opening, target: Opening) -> None:
        copy_view(
            work.engine.host,
            source.chain,
            target.chain,
            plan.image.size_bytes,
            start_bytes=0,
            monitor=work,
            target_zeroed=opened.storage.capabilities.zeroed,
        )

    open_chains([(opened, image_volumes), (opened, volumes_being_built(volume_id, work_id))], fill)
