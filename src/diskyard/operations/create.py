"""createVirtualDisk and createSnapshot."""

from __future__ import annotations

from diskyard.host.identity import new_uuid
from diskyard.model.fix import Mend, Optimize
from diskyard.model.requests import CreateSnapshot, CreateVirtualDisk
from diskyard.model.state import State
from diskyard.operations.building import make_volume, new_ids, others_may_win
from diskyard.operations.engine import (
    Engine,
    FollowUp,
    Outcome,
    request_digest,
    require_new_id,
    require_user_data,
)
from diskyard.operations.freeze import (
    copy_hold,
    hold_snapshot,
    release_hold,
    release_if_refused,
    require_hold,
    switch_disk,
)
from diskyard.planner import copy as copy_planner
from diskyard.planner import create_disk
from diskyard.planner.common import already_made, require_openable, snapshot
from diskyard.planner.copy import PendingImage
from diskyard.planner.create_disk import CreateDisk
from diskyard.planner.same import source_of
from diskyard.planner.switch import Switch
from diskyard.repository.repository import Repository
from diskyard.repository.settled import commit_looking


def create_virtual_disk(engine: Engine, request: CreateVirtualDisk) -> Outcome:
    """Create a VirtualDisk; durable on return. It is usable too, unless its base is in another repository.

    :raises diskyard.errors.ImageNotFound: no searched repository has the base.
    """
    require_user_data(request.user_data)
    target_repo = engine.connections.get(request.target_repo_id)
    image_id = request.options.new_image_id or new_uuid()
    digest = request_digest("createVirtualDisk", request)
    follow_ups: list[FollowUp] = []
    state = target_repo.state()
    if not already_made(state, image_id, digest):
        known = {target_repo.marker: state}
        require_new_id(engine, target_repo, request.options.new_image_id, known)
        home_repo, home_state = target_repo, state
        if request.base_snapshot_id is not None:
            home_repo, home_state, _ = engine.connections.find(
                request.base_snapshot_id, request.options, target_repo, known
            )
        if home_repo.marker == target_repo.marker:
            _create_here(engine, request, target_repo, image_id, digest)
        else:
            follow_ups += _create_from_elsewhere(
                engine, request, target_repo, home_repo, home_state, image_id, digest
            )
    if request.options.optimize_now:
        rate_limit = request.options.rate_limit
        follow_ups.append(FollowUp(target_repo, Optimize(image_id=image_id), image_id, rate_limit))
    return Outcome(image_id, follow_ups)


def _create_here(
    engine: Engine, request: CreateVirtualDisk, repo: Repository, image_id: str, digest: str
) -> None:
    asked = CreateDisk(
        image_id=image_id,
        ids=new_ids(),
        size_bytes=request.size,
        base_snapshot_id=request.base_snapshot_id,
        strategy=request.options.strategy or "space",
        user_data=request.user_data,
        request_digest=digest,
        now=engine.host.clock.now(),
    )
    author = engine.author("createVirtualDisk", digest)
    capabilities = repo.storage.capabilities
    with repo.work_on([image_id]):
        new = commit_looking(
            repo,
            request.base_snapshot_id,
            lambda draft: create_disk.begin(draft, asked, capabilities),
            author,
        ).result
        if new is not None:
            with others_may_win():
                make_volume(repo, new, request.base_snapshot_id)
                repo.commit(lambda draft: create_disk.seal(draft, asked, new), author)


def _create_from_elsewhere(
    engine: Engine,
    request: CreateVirtualDisk,
    target_repo: Repository,
    home_repo: Repository,
    home_state: State,
    image_id: str,
    digest: str,
) -> list[FollowUp]:
    """Create a disk from a Snapshot of another repository: commit it now, and copy its bytes later."""
    assert request.base_snapshot_id is not None
    author = engine.author("createVirtualDisk", digest)
    base = snapshot(home_state, request.base_snapshot_id)
    require_openable(home_state, base)
    create_disk.require_not_smaller(request.size, base)
    now = engine.host.clock.now()
    asked = PendingImage(
        image_id=image_id,
        ids=new_ids(),
        kind="virtual_disk",
        size_bytes=request.size,
        source=source_of(home_repo.marker, base),
        base_image_id=None,
        strategy=request.options.strategy or "space",
        user_data=request.user_data,
        request_digest=digest,
        now=now,
        captured_at=now,
        rate_limit_bytes_per_s=request.options.rate_limit,
    )
    with target_repo.work_on([image_id]):
        hold = copy_hold(target_repo, image_id, asked.ids.work_id)
        hold_snapshot(home_repo, base, hold, author)
        with release_if_refused(home_repo, base.id, hold, author):
            begun = target_repo.commit(
                lambda draft: copy_planner.begin(draft, asked, target_repo.storage.capabilities), author
            )
        if not begun.result:  # whoever had the lease before has made the disk
            release_hold(home_repo, base.id, hold, author)
            return []
        require_hold(home_repo, base.id, hold, target_repo, begun.state, image_id, author)
    return [FollowUp(target_repo, Mend(image_id=image_id), image_id, request.options.rate_limit)]


def create_snapshot(engine: Engine, request: CreateSnapshot) -> Outcome:
    """Keep a disk's bytes as a Snapshot. Both images are durable and usable on return."""
    require_user_data(request.user_data)
    repo = engine.connections.get(request.target_repo_id)
    image_id = request.options.new_image_id or new_uuid()
    digest = request_digest("createSnapshot", request)
    asked = Switch(
        disk_id=request.base_virtual_disk_id,
        image_id=image_id,
        ids=new_ids(),
        now=engine.host.clock.now(),
        user_data=request.user_data,
        request_digest=digest,
        strategy=request.options.strategy,
    )
    state = repo.state()
    if image_id not in state.images:
        require_new_id(engine, repo, request.options.new_image_id, {})
    with repo.work_on([image_id]):
        switch_disk(engine, repo, state, asked, engine.author("createSnapshot", digest))
    return Outcome(image_id)
