"""The base of a pending image: waiting for it, or doing without."""

from __future__ import annotations

from diskyard import errors
from diskyard.fixes.work import Work
from diskyard.model.records import Image
from diskyard.model.state import State
from diskyard.model.status import why_broken
from diskyard.planner.common import base_image
from diskyard.planner.mend import forget_base
from diskyard.repository.repository import Repository
from diskyard.repository.settled import look_at, volumes_below

_STARTS_WITHIN_S, _QUEUED_MOST_S = 1.0, 60.0
_POLL_S = 0.1


def waits_for_base(repo: Repository, state: State, image: Image) -> str | None:
    """Why a pending image must wait for its base; None if the base is whole or not needed."""
    if image.pending is None or image.pending.base_image_id is None:
        return None
    try:
        sight = look_at(repo, volumes_below(image.pending.base_image_id), state)
    except errors.LeaseHeld as error:
        return error.message
    base = base_image(sight.state, image.pending.base_image_id)
    if base is None:
        return f"its base {image.pending.base_image_id} is not in this repository"
    why = why_broken(sight.state, base, sight.missing)
    return None if why is None else f"its base {base.id} cannot be read: {why}"


def prepare_base(work: Work, state: State, image: Image) -> tuple[Image, State]:
    """Make sure that a pending image's base, if it has one, can be read. By force, let it have none.

    :returns: the image as it is then, and the state.
    :raises diskyard.errors.ImageBroken: the base cannot be read.
    :raises diskyard.planner.common.Superseded: other work has the image.
    """
    assert image.pending is not None
    state = _await_base(work, state, image.pending.base_image_id)
    waits_for = waits_for_base(work.repo, state, image)
    if waits_for is None:
        return image, state
    if not work.force:
        raise errors.ImageBroken(
            f"Image {image.id} cannot be mended yet: {waits_for}.",
            imageId=image.id,
            advice="Copy the base to this repository, or mend it there; then run the fix again. With force, "
            "the fix stores the whole image, without a base.",
        )
    done = work.repo.commit(lambda draft: forget_base(draft, image), work.author)
    return done.result, done.state


def _await_base(work: Work, state: State, base_id: str | None) -> State:
    """Wait while the base is being completed, or may be soon, and return the state after it.

    Copies are often made in a row, each with the one before as its base. A task of this host that is queued
    for the base is waited for longer, but not for ever: it may be queued for the thread that this one has.
    """
    clock, repo = work.engine.host.clock, work.repo
    begin_s = clock.monotonic_s()
    while base_id is not None:
        base = state.images.get(base_id)
        if base is None or base.pending is None:
            return state
        waited_s = clock.monotonic_s() - begin_s
        is_late = waited_s > _STARTS_WITHIN_S and not repo.is_locked(base_id)
        if is_late and (waited_s > _QUEUED_MOST_S or not _has_task(work, base_id)):
            break
        work.advance(0, 0)
        clock.sleep(_POLL_S)
        state = repo.state()
    return state


def _has_task(work: Work, image_id: str) -> bool:
    """Whether a task of this host works on an image, or will."""
    return any(task.image_id == image_id for task in work.engine.records.unended())
