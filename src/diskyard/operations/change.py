"""removeImage, revertVirtualDisk, setUserData, setStrategy, untrackChanges."""

from __future__ import annotations

from diskyard import errors
from diskyard.model.fix import AnyAction, CleanHold, CleanProgress, CleanVolume, Merge
from diskyard.model.records import FileSource, Image, ImageSource
from diskyard.model.requests import (
    RemoveImage,
    RevertVirtualDisk,
    SetStrategy,
    SetUserData,
    UntrackChanges,
)
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.operations.building import make_volume, new_ids, others_may_win
from diskyard.operations.engine import (
    Engine,
    FollowUp,
    Outcome,
    require_user_data,
)
from diskyard.operations.freeze import is_hold_of
from diskyard.operations.writers import require_no_stranger, unasked_is_unwritten
from diskyard.planner import change as planner
from diskyard.planner.common import virtual_disk
from diskyard.repository.repository import Repository
from diskyard.repository.settled import commit_looking


def remove_image(engine: Engine, request: RemoveImage) -> Outcome:
    """Remove an image; durable on return. The follow-ups free its space."""
    repo = engine.connections.get(request.repository_id)
    author = engine.author("removeImage")
    before = repo.state()
    with unasked_is_unwritten():
        require_no_stranger(repo, before, request.image_id)
    committed = repo.commit(lambda draft: planner.remove(draft, request.image_id), author)
    removed = committed.result
    if removed.pending is not None and isinstance(removed.pending.source, FileSource):
        engine.asked_imports.forget_if_over(repo, removed.id)
    follow_ups = cleaning(repo, before, committed.state)
    follow_ups += holds_of_cancelled(engine, repo, removed)
    if repo.progress(request.image_id) is not None:
        follow_ups.append(FollowUp(repo, CleanProgress(image_id=request.image_id)))
    return Outcome(request.image_id, follow_ups)


def cleaning(repo: Repository, before: State, after: State) -> list[FollowUp]:
    """The cleans that an operation made due: of volumes that were doomed or abandoned between two states."""
    found: list[AnyAction] = []
    for volume_id in after.unready:
        volume = after.volumes[volume_id]
        old = before.volumes.get(volume_id)
        if (volume.state == "doomed" and (old is None or old.state != "doomed")) or (
            volume.state == "building" and not after.images_on(volume_id) and before.images_on(volume_id)
        ):
            found.append(CleanVolume(volume_id=volume_id))
    return [FollowUp(repo, action) for action in found]


def holds_of_cancelled(engine: Engine, repo: Repository, removed: Image) -> list[FollowUp]:
    """The fixes that release the source of a cancelled copy, if the source's repository is connected here."""
    if removed.pending is None or not isinstance(removed.pending.source, ImageSource):
        return []
    source = removed.pending.source
    home_repo = engine.connections.by_marker(source.marker)
    if home_repo is None:
        return []
    try:
        image = home_repo.state().images.get(source.image_id)
    except errors.DiskyardError:
        return []  # the image is removed all the same, and that repository's check lists the hold
    holds = () if image is None else image.held_for
    follow_ups = []
    for hold in holds:
        if is_hold_of(hold, repo, removed.id):
            clean = CleanHold(image_id=source.image_id, hold=hold)
            follow_ups += [FollowUp(home_repo, clean), FollowUp(home_repo, Merge(image_id=source.image_id))]
    return follow_ups


def revert_virtual_disk(engine: Engine, request: RevertVirtualDisk) -> Outcome:
    """Give a disk a Snapshot's bytes and size; durable on return."""
    repo = engine.connections.get(request.repository_id)
    author = engine.author("revertVirtualDisk")
    disk_id, ids = request.image_id, new_ids()
    before = repo.state()
    virtual_disk(before, disk_id)
    with repo.work_on([disk_id], wait_s=1.0):
        # If the disk is on another volume by now, that volume is checked before the seal.
        require_no_stranger(repo, before, disk_id)
        begun = commit_looking(
            repo,
            request.snapshot_id,
            lambda draft: planner.begin_revert(
                draft, disk_id, request.snapshot_id, ids, repo.storage.capabilities
            ),
            author,
        )
        with others_may_win():
            make_volume(repo, begun.result, request.snapshot_id)
            require_no_stranger(repo, begun.state, disk_id)
            sealed = repo.commit(lambda draft: planner.seal_revert(draft, disk_id, begun.result), author)
    return Outcome(disk_id, cleaning(repo, before, sealed.state))


def set_user_data(engine: Engine, request: SetUserData) -> Outcome:
    """Replace an image's userData; durable on return."""
    require_user_data(request.user_data)
    repo = engine.connections.get(request.repository_id)
    repo.commit(
        lambda draft: planner.set_user_data(
            draft, request.image_id, request.user_data, request.options.if_revision
        ),
        engine.author("setUserData"),
    )
    return Outcome(request.image_id)


def set_strategy(engine: Engine, request: SetStrategy) -> Outcome:
    """Change what an image is optimized for; durable on return. Check lists the fixes that follow from it."""
    repo = engine.connections.get(request.repository_id)
    repo.commit(
        lambda draft: planner.set_strategy(draft, request.image_id, request.strategy),
        engine.author("setStrategy"),
    )
    return Outcome(request.image_id)


def untrack_changes(engine: Engine, request: UntrackChanges) -> Outcome:
    """Stop tracking a disk's changes; durable on return. What was kept for that can then be merged."""
    repo = engine.connections.get(request.repository_id)

    def plan(draft: Draft) -> None:
        virtual_disk(draft.state, request.image_id)
        planner.end_trackers(draft, request.image_id, request.copy_image_id)

    ended = repo.commit(plan, engine.author("untrackChanges"))
    return Outcome(request.image_id, cleaning(repo, ended.before, ended.state))
