"""copyImage: freeze the source, commit the copy, and leave its bytes to a mend."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from diskyard import errors
from diskyard.host.identity import new_uuid
from diskyard.log.log import Author
from diskyard.model.fix import Mend, Optimize
from diskyard.model.records import CopyHold, Image
from diskyard.model.requests import CopyImage
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.operations.building import new_ids
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
    freeze_disk,
    hold_snapshot,
    release_hold,
    release_if_refused,
    require_hold,
    require_holdable,
    switch_disk,
)
from diskyard.operations.sizes import settle_disk
from diskyard.operations.writers import require_no_stranger
from diskyard.planner import copy as planner
from diskyard.planner import switch
from diskyard.planner.building import WorkIds
from diskyard.planner.common import already_made
from diskyard.planner.copy import PendingImage
from diskyard.planner.same import source_of, why_another
from diskyard.planner.switch import Switch
from diskyard.repository.repository import Repository
from diskyard.repository.settled import commit_looking, look_at, volumes_below


@dataclass(frozen=True, slots=True)
class _Copy:
    """A request for a copy, with the source found and the copy's id chosen.

    :param home_repo: the repository of the source.
    :param home_state: its state when the source was found.
    :param target_state: the target's state at the beginning, before the copy's lease was taken.
    """

    engine: Engine
    request: CopyImage
    home_repo: Repository
    home_state: State
    source: Image
    target_repo: Repository
    target_state: State
    image_id: str
    digest: str

    @property
    def keeps_id(self) -> bool:
        """Whether the copy has the source's id: a Snapshot is the same image in every repository."""
        return self.source.kind == "snapshot"

    @property
    def author(self) -> Author:
        """The author of the entries."""
        return self.engine.author("copyImage", self.digest)


def copy_image(engine: Engine, request: CopyImage) -> Outcome:
    """Copy an image. On return the copy is recorded durably, and the source can be used at once.

    A mend fills the copy. It stores what differs from the base, and reads the rest from the base. A Snapshot
    keeps its id. If the target has it already, nothing is copied. If the target has it broken, the source is
    held until the mend has restored it.

    :raises diskyard.errors.ImageInUse: the source or the base is a VirtualDisk that is attached, and nothing
        can be said to its guest from here.
    """
    require_user_data(request.user_data)
    target_repo = engine.connections.get(request.target_repo_id)
    digest = request_digest("copyImage", request)
    target_state = target_repo.state()
    if _was_made(target_state, request, digest):
        # The source may be gone by now. A caller whose answer was lost can ask again all the same.
        image_id = request.options.new_image_id or request.image_id
        return Outcome(image_id, _follow_ups(request, target_repo, image_id))
    known = {target_repo.marker: target_state}
    home_repo, home_state, source = engine.connections.find(
        request.image_id, request.options, target_repo, known
    )
    known[home_repo.marker] = home_state
    if source.kind == "virtual_disk" or home_repo.marker == target_repo.marker:
        _require_same_elsewhere(engine, request, home_repo, source, known)
    if source.kind == "snapshot":
        _require_snapshot_options(request)
        image_id = source.id
    else:
        image_id = request.options.new_image_id or new_uuid()
    if request.base_image_id == image_id:
        raise errors.InvalidParameter("An image cannot be its own base.", imageId=image_id)
    asked = _Copy(engine, request, home_repo, home_state, source, target_repo, target_state, image_id, digest)
    if not _is_here(asked):
        if not asked.keeps_id:
            require_new_id(engine, target_repo, image_id, known)
        with target_repo.work_on([image_id]):
            _commit_copy(asked)
    return Outcome(image_id, _follow_ups(request, target_repo, image_id))


def _was_made(state: State, request: CopyImage, digest: str) -> bool:
    """Whether this very request has made its image before, under the id that the caller chose.

    A Snapshot that keeps its id is looked at instead.
    """
    if request.options.new_image_id == request.image_id:
        return False
    image = state.images.get(request.options.new_image_id or "")
    return image is not None and image.is_strong and image.request_digest == digest


def _require_same_elsewhere(
    engine: Engine, request: CopyImage, home_repo: Repository, image: Image, known: dict[str, State]
) -> None:
    """Refuse to copy an image, or to call it copied, if a searched repository has another one under its id.

    Nothing is refused if the caller has selected the repository by a hint.

    :param home_repo: the repository in which the image was found, before some of the others were searched.
    :param known: the states that the verb has read, by the markers of their repositories. The states that
        this reads are added.
    :raises diskyard.errors.ImageIdInUse: a repository that is searched has other bytes under the id.
    """
    if image.id in request.options.image_hints:
        return
    named = request.options.participating_repositories
    searched = map(engine.connections.get, named) if named is not None else engine.connections.repositories()
    for other_repo in searched:
        if other_repo.marker == home_repo.marker:
            continue
        try:
            state = known[other_repo.marker] = known.get(other_repo.marker) or other_repo.state()
        except errors.DiskyardError:
            continue  # what counts is the repository that has the image
        other = state.images.get(image.id)
        if other is not None and other.is_strong and (why := why_another(image, other)) is not None:
            raise errors.ImageIdInUse(
                f"Repository {other_repo.repo_id} has another image under the id {image.id} than "
                f"{home_repo.repo_id}: {why}.",
                advice="Select the one that is meant with imageHints, or remove the other.",
                imageId=image.id,
            )


def _require_snapshot_options(request: CopyImage) -> None:
    """Refuse options that a copy of a Snapshot cannot have."""
    options = request.options
    if options.new_image_id not in (None, request.image_id):
        raise errors.InvalidParameter(
            "A copy of a Snapshot keeps its id: newImageId is for copies of VirtualDisks.",
            imageId=request.image_id,
        )
    if options.as_ == "virtual_disk":
        raise errors.InvalidParameter(
            "A copy of a Snapshot is that Snapshot: it cannot be a VirtualDisk.",
            advice="Create a VirtualDisk from the Snapshot (createVirtualDisk with baseSnapshotId).",
            imageId=request.image_id,
        )
    if options.track_changes:
        raise errors.InvalidParameter(
            "A Snapshot does not change: trackChanges is for copies of VirtualDisks.",
            imageId=request.image_id,
        )


def _follow_ups(request: CopyImage, repo: Repository, image_id: str) -> list[FollowUp]:
    rate_limit = request.options.rate_limit
    found = [FollowUp(repo, Mend(image_id=image_id), image_id, rate_limit)]
    if request.options.optimize_now:
        found.append(FollowUp(repo, Optimize(image_id=image_id), image_id, rate_limit))
    return found


def _is_here(asked: _Copy) -> bool:
    """Whether the target has the Snapshot, or this request has made its copy before."""
    if not asked.keeps_id:
        return already_made(asked.target_state, asked.image_id, asked.digest)
    if asked.image_id not in asked.target_state.images:
        return False
    here = commit_looking(asked.target_repo, asked.image_id, partial(_snapshot_is_here, asked), asked.author)
    return here.result


def _snapshot_is_here(asked: _Copy, draft: Draft) -> bool:
    return planner.snapshot_is_here(draft, asked.source, asked.request.user_data, asked.digest)


def _begin(asked: _Copy, pending: PendingImage, draft: Draft) -> bool:
    """Plan the copy; False if whoever had the lease before has made this very copy.

    If the target has the Snapshot broken, there is nothing to plan: what is held is for its mend.
    """
    if asked.keeps_id:
        if _snapshot_is_here(asked, draft):
            return False
        if planner.ask_to_restore(draft, asked.source, asked.request.user_data, asked.digest):
            return True
    return planner.begin(draft, pending, asked.target_repo.storage.capabilities)


def _commit_copy(asked: _Copy) -> None:
    """Hold the source, then publish the copy, then check that the hold still stands."""
    base_id = asked.request.base_image_id
    is_lost = asked.image_id in asked.target_state.images  # it is to be restored, with the base that it had
    base = None if base_id is None or is_lost else _base_here(asked, base_id)
    freezes_base = base is not None and base.kind == "virtual_disk"
    if freezes_base or not asked.keeps_id:
        # Freezing needs an unattached disk, and leaves an overlay. Avoid it if whoever had the lease before
        # has made this copy.
        asked = replace(asked, target_state=asked.target_repo.state())
        if _is_here(asked):
            return
    ids = new_ids()
    hold = copy_hold(asked.target_repo, asked.image_id, ids.work_id)
    frozen = _hold_source(asked, hold)
    with release_if_refused(asked.home_repo, frozen.id, hold, asked.author):
        published = _publish(asked, frozen, ids, base)
    if published is None:
        release_hold(asked.home_repo, frozen.id, hold, asked.author)
        return
    require_hold(asked.home_repo, frozen.id, hold, asked.target_repo, published, asked.image_id, asked.author)


def _base_here(asked: _Copy, base_id: str) -> Image | None:
    """The base, if the target has it: a Snapshot or a VirtualDisk. Else it is a Snapshot, and may come later.

    :raises diskyard.errors.NotASnapshot: the base is a VirtualDisk of another repository. It can never come
        to the target under this id.
    """
    sight = look_at(asked.target_repo, volumes_below(base_id), asked.target_state)
    image = sight.state.images.get(base_id)
    if image is not None and image.is_strong:
        if image.kind == "virtual_disk":
            require_no_stranger(asked.target_repo, sight.state, base_id)
            settle_disk(asked.target_repo, sight.state, base_id, asked.author)
            planner.copy_source(sight, base_id, but_live=True)
        return image
    known = {asked.home_repo.marker: asked.home_state, asked.target_repo.marker: sight.state}
    _, _, elsewhere = asked.engine.connections.find(base_id, asked.request.options, known=known)
    if elsewhere.kind != "snapshot":
        raise errors.NotASnapshot(
            f"The base {base_id} is a VirtualDisk of another repository.",
            advice="Use a base of the target repository, or a Snapshot.",
            imageId=base_id,
        )
    return None


def _hold_source(asked: _Copy, hold: CopyHold) -> Image:
    """Hold an image that has the source's bytes and cannot change, and return it with the hold."""
    home_repo, source = asked.home_repo, asked.source
    if source.kind == "snapshot":
        return hold_snapshot(home_repo, source, hold, asked.author).result
    require_holdable(home_repo, source)
    return freeze_disk(asked.engine, home_repo, asked.home_state, source.id, hold, asked.author)[0]


def _publish(asked: _Copy, frozen: Image, ids: WorkIds, base: Image | None) -> State | None:
    """Commit the copy in the target. A base that is a VirtualDisk is frozen in the same transaction.

    :param base: the base, if the target has it.
    :returns: the state after the commit; None if the copy was made before.
    """
    request, source = asked.request, asked.source
    now = asked.engine.host.clock.now()
    base_id = request.base_image_id
    freezes_base = base is not None and base.kind == "virtual_disk"
    pending = PendingImage(
        image_id=asked.image_id,
        ids=ids,
        kind="snapshot" if request.options.as_ == "snapshot" else source.kind,
        size_bytes=frozen.size_bytes,
        source=source_of(asked.home_repo.marker, frozen),
        base_image_id=new_uuid() if freezes_base else base_id,
        strategy=request.options.strategy or "space",
        user_data=request.user_data,
        request_digest=asked.digest,
        now=now,
        captured_at=frozen.captured_at,
        origin=planner.origin_of(asked.home_state, frozen),
        captured=frozen.captured,
        rate_limit_bytes_per_s=request.options.rate_limit,
        track_changes=request.options.track_changes,
        tracked_disk_id=source.id if source.kind == "virtual_disk" else None,
        base_was_here=base is not None and not freezes_base,
    )
    if base_id is not None and freezes_base:
        return _publish_on_disk(asked, pending, base_id)
    begun = commit_looking(asked.target_repo, asked.image_id, partial(_begin, asked, pending), asked.author)
    return begun.state if begun.result else None


def _publish_on_disk(asked: _Copy, pending: PendingImage, disk_id: str) -> State:
    """Freeze the base, and publish the copy in the same entry, so that the frozen base has a reader."""
    assert pending.base_image_id is not None
    target_repo = asked.target_repo
    hold = copy_hold(target_repo, pending.image_id, pending.ids.work_id)
    frozen = Switch(
        disk_id=disk_id,
        image_id=pending.base_image_id,
        ids=new_ids(),
        now=pending.now,
        hold=hold,
    )

    def publish(draft: Draft) -> None:
        planner.begin(draft, pending, target_repo.storage.capabilities)
        switch.release(draft, frozen.image_id, hold)

    with target_repo.work_on([frozen.image_id]):
        return switch_disk(asked.engine, target_repo, asked.target_state, frozen, asked.author, publish)[1]
