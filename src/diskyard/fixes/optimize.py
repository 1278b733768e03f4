"""optimize: builds the better volume beside the old one, then switches to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from diskyard import errors
from diskyard.fixes.work import Work, require_room
from diskyard.foreign import snapshots_wait_for
from diskyard.host.identity import new_uuid
from diskyard.model.fix import CleanVolume, Optimize
from diskyard.model.records import Volume
from diskyard.model.state import State
from diskyard.mover.copy import copy_view
from diskyard.opened import Opened, volume_name
from diskyard.operations.engine import FollowUp
from diskyard.operations.sizes import settle_disk
from diskyard.operations.writers import nobody_writes
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
        state = settle_disk(opened, work.newest(), action.image_id, work.author)
        work.image_id = action.image_id  # from here on: before, its progress may be that of an extend
        sight = look_at(opened, volumes_below(action.image_id), state)
        plan = planner.plan_optimize(sight.state, action.image_id, opened.storage.capabilities)
        if plan is None or sight.missing:
            return False, []
        too_long = opened.storage.capabilities.why_not_raw(plan.image.size_bytes)
        if plan.kind == "flatten" and too_long is not None:
            raise errors.Unsupported(
                f"The optimization waits: {too_long}.",
                advice="Copy the image to a repository whose file system can hold longer files (such as "
                "XFS).",
                imageId=plan.image.id,
            )
        waits_for = planner.optimize_waits_for(sight.state, plan, opened.storage.capabilities)
        if waits_for is None and opened.has_snapshots(plan.volume):
            waits_for = snapshots_wait_for(opened, plan.volume)  # it would be lost with its volume
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
        ).result
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
        with nobody_writes(opened, source.volumes, plan.image.id):
            copy_view(
                work.engine.host,
                # A guest that is given the disk meanwhile finds no lock of ours on it, and the seal fails.
                (replace(source.chain[0], shared=True), *source.chain[1:]),
                target.chain,
                plan.image.size_bytes,
                start_bytes=0,
                monitor=work,
                target_zeroed=opened.storage.capabilities.zeroed,
            )

    with _superseded_if_given_out(opened, plan):
        open_chains([(opened, image_volumes), (opened, volumes_being_built(volume_id, work_id))], fill)


@contextmanager
def _superseded_if_given_out(opened: Opened, plan: OptimizePlan) -> Iterator[None]:
    """What a guest was changing while it was read is no failure of the storage."""
    try:
        yield
    except errors.StorageError as error:
        waits_for = planner.optimize_waits_for(opened.state(), plan, opened.storage.capabilities)
        if waits_for is None:
            raise
        raise Superseded(waits_for) from error
