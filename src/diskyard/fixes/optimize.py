"""optimize: builds the better volume beside the old one, then switches to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from diskyard import errors
from diskyard.fixes.work import Work, require_free_space
from diskyard.model.fix import CleanVolume, Optimize
from diskyard.model.records import Volume
from diskyard.model.state import State
from diskyard.model.status import NONE_MISSING
from diskyard.mover.copying.copy import copy_view
from diskyard.operations.building import new_ids
from diskyard.operations.engine import FollowUp
from diskyard.operations.sizes import settle_disk
from diskyard.operations.writers import nobody_writes
from diskyard.planner import optimize as planner
from diskyard.planner.building import NewVolume
from diskyard.planner.common import Superseded
from diskyard.planner.optimize import OptimizePlan
from diskyard.repository.foreign import snapshots_wait_for
from diskyard.repository.repository import Repository, volume_name
from diskyard.repository.settled import (
    Opening,
    commit_looking,
    look_at,
    open_chains,
    volumes_being_built,
    volumes_below,
)


def optimize(work: Work, action: Optimize) -> tuple[bool, list[FollowUp]]:
    """Build the better representation of a degraded image.

    The new volume has the bytes that the image had when this began. If the image is attached for writing
    meanwhile, or its bytes change otherwise, the seal fails and the fix stays listed.

    :raises diskyard.errors.ImageInUse: the image is attached for writing, or has a user's internal snapshots.
    :raises diskyard.errors.Unsupported: no raw volume here can be so long.
    """
    repo = work.repo
    with repo.work_on([action.image_id]) as leases:
        work.hold(leases)
        state = settle_disk(repo, work.newest(), action.image_id, work.author)
        with work.of_image(action.image_id):  # not earlier: the progress may be an extend's
            sight = look_at(repo, volumes_below(action.image_id), state)
            plan = planner.plan_optimize(sight.state, action.image_id, repo.storage.capabilities)
            if plan is None or sight.missing:
                return False, []
            _require_possible(repo, sight.state, plan)
            if plan.kind == "reserve":
                return _reserve(work, plan), []
            return _build(work, plan)


def _require_possible(repo: Repository, state: State, plan: OptimizePlan) -> None:
    """Refuse a plan that must wait for something."""
    too_long = repo.storage.capabilities.why_not_raw(plan.image.size_bytes)
    if plan.kind == "flatten" and too_long is not None:
        raise errors.Unsupported(
            f"The optimization waits: {too_long}.",
            advice="Copy the image to a repository whose file system can hold longer files (such as XFS).",
            imageId=plan.image.id,
        )
    waits_for = planner.optimize_waits_for(state, plan, repo.storage.capabilities)
    if waits_for is None and repo.has_snapshots(plan.volume):
        waits_for = snapshots_wait_for(repo, plan.volume)  # they would be lost with the volume
    if waits_for is not None:
        raise errors.ImageInUse(f"The optimization waits: {waits_for}.", imageId=plan.image.id)


def _reserve(work: Work, plan: OptimizePlan) -> bool:
    stored = work.repo.stored(plan.volume)
    allocated = 0 if stored is None else stored.allocated_bytes
    require_free_space(work.repo, plan.volume.size_bytes - allocated, "Reserving the image's blocks")
    try:
        try:
            work.repo.storage.grow_volume(
                volume_name(plan.volume), length_bytes=plan.volume.size_bytes, preallocate=True
            )
        except (errors.StorageError, FileNotFoundError):
            # The volume may have been removed with its image.
            planner.require_unchanged(work.repo.state(), plan, NONE_MISSING)
            raise
        work.repo.commit(lambda draft: planner.seal_reserve(draft, plan), work.author)
    except Superseded:
        return False
    return True


def _build(work: Work, plan: OptimizePlan) -> tuple[bool, list[FollowUp]]:
    repo, image_id, ids = work.repo, plan.image.id, new_ids()
    if plan.kind == "flatten":
        require_free_space(repo, plan.image.size_bytes, "The optimization")
    try:
        new = commit_looking(
            repo,
            image_id,
            lambda draft: planner.begin_optimize(draft, plan, ids, repo.storage.capabilities),
            work.author,
        ).result
    except Superseded:
        return False, []
    work.builds(new)
    try:
        repo.make_empty(new.volume)
        _fill(work, plan, new)
        commit_looking(repo, image_id, lambda draft: planner.seal_optimize(draft, plan, new), work.author)
    except Superseded:
        return False, [FollowUp(repo, CleanVolume(volume_id=new.volume.id))]
    return True, [FollowUp(repo, CleanVolume(volume_id=plan.volume.id))]


def _fill(work: Work, plan: OptimizePlan, new: NewVolume) -> None:
    repo = work.repo

    def image_volumes(state: State) -> list[Volume]:
        return [volume for _, volume in state.chain(planner.require_unchanged(state, plan, NONE_MISSING))]

    def fill(source: Opening, target: Opening) -> None:
        with nobody_writes(repo, source.volumes, plan.image.id):
            copy_view(
                work.engine.host,
                # Shared: a guest that is given the disk meanwhile meets no lock of ours. Then the seal fails.
                (replace(source.chain[0], shared=True), *source.chain[1:]),
                target.chain,
                plan.image.size_bytes,
                start_bytes=0,
                monitor=work,
                target_zeroed=repo.storage.capabilities.zeroed,
            )

    with _superseded_if_given_out(repo, plan):
        open_chains([(repo, image_volumes), (repo, volumes_being_built(new))], fill)


@contextmanager
def _superseded_if_given_out(repo: Repository, plan: OptimizePlan) -> Iterator[None]:
    """Do not report a failed read as the storage's failure if a guest was changing the image meanwhile."""
    try:
        yield
    except errors.StorageError as error:
        waits_for = planner.optimize_waits_for(repo.state(), plan, repo.storage.capabilities)
        if waits_for is None:
            raise
        raise Superseded(waits_for) from error
