"""Running a fix of any type, and the fixes that it makes due."""

from __future__ import annotations

import contextlib

from diskyard import errors
from diskyard.fixes import clean
from diskyard.fixes.mend import mend
from diskyard.fixes.merge import merge, merge_is_free
from diskyard.fixes.optimize import optimize
from diskyard.fixes.work import NobodyWatches, Watcher, Work, why_ended
from diskyard.model.fix import (
    AnyAction,
    CleanAttachment,
    CleanChanged,
    CleanGarbage,
    CleanHold,
    CleanLeftover,
    CleanProgress,
    CleanReplica,
    CleanSize,
    CleanStray,
    CleanSwitch,
    CleanVolume,
    Mend,
    Merge,
    NameForeign,
    NameSnapshots,
    Optimize,
    fix_type,
)
from diskyard.mover.durable import os_errors
from diskyard.mover.interface import Stopped
from diskyard.operations.engine import Engine, FollowUp
from diskyard.planner.mend import set_last_error
from diskyard.repository.repository import Repository

_FOLLOW_UP_LIMIT = 10_000
SmallAction = (
    CleanVolume
    | CleanGarbage
    | CleanLeftover
    | CleanProgress
    | CleanSwitch
    | CleanChanged
    | CleanReplica
    | CleanStray
    | CleanSize
)


def run_fix(
    engine: Engine,
    repo: Repository,
    action: AnyAction,
    *,
    watcher: Watcher | None = None,
    rate_limit_bytes_per_s: int = 0,
    participating: list[Repository] | None = None,
    force: bool = False,
) -> bool:
    """Run a fix to its end, and then the small fixes that it makes due.

    :param force: the caller vouches for what this host cannot know. With it, a clean also ends a hold whose
        copy cannot be checked; deletes a volume that no entry of this history is known to have named; cuts
        off what another program added to a Snapshot's volume; removes an attachment whose disk has a foreign
        overlay; and removes an entry of the log that follows nothing. A mend stores a whole image if its base
        cannot be read.

    :returns: whether anything was changed; also False if the fix was done already.
    :raises diskyard.errors.LeaseHeld: another host or task works on it.
    :raises diskyard.mover.interface.Stopped: the watcher asked to stop; what is done stays.
    """
    work = Work(
        engine,
        repo,
        engine.author(fix_type(action)),
        watcher or NobodyWatches(),
        rate_limit_bytes_per_s,
        fix=fix_type(action),
        force=force,
    )
    try:
        changed, follow_ups = _begin(work, action, participating)
    except Exception as error:
        _keep_why(work, action, error)
        if isinstance(error, Stopped | errors.DiskyardError):
            raise
        if isinstance(error, OSError):
            raise errors.from_os_error(error, f"running a {fix_type(action)} fix") from error
        raise errors.unexpected(error) from error
    run_follow_ups(engine, follow_ups, watcher)
    return changed


def _begin(
    work: Work, action: AnyAction, participating: list[Repository] | None
) -> tuple[bool, list[FollowUp]]:
    if work.watcher.stop_asked():
        raise Stopped
    return _run(work, action, participating)


def _keep_why(work: Work, action: AnyAction, error: Exception) -> None:
    """Record why work on an image ended early. getImageStatus shows it."""
    why = why_ended(error)
    if why is None or not isinstance(action, Mend | Optimize):
        return
    with contextlib.suppress(errors.DiskyardError):  # the caller is told the first error
        work.repo.commit(lambda draft: set_last_error(draft, action.image_id, why), work.author)


def _run(
    work: Work, action: AnyAction, participating: list[Repository] | None
) -> tuple[bool, list[FollowUp]]:
    match action:
        case Mend():
            return mend(work, action, participating)
        case Merge():
            return merge(work, action)
        case Optimize():
            return optimize(work, action)
        case CleanAttachment():
            return clean.clean_attachment(work, action)
        case CleanHold():
            return clean.clean_hold(work, action)
        case NameForeign() | NameSnapshots():
            raise errors.Unsupported(
                "Only people can decide this: no fix changes what another program has left.",
                advice="Do what checkStorageRepository says that it waits for.",
            )
        case _:
            return _run_small(work, action), []


def _run_small(work: Work, action: SmallAction) -> bool:
    """Run a clean that makes no other fix due."""
    match action:
        case CleanVolume():
            return clean.clean_volume(work, action)
        case CleanGarbage():
            return clean.clean_garbage(work, action)
        case CleanLeftover():
            return clean.clean_leftover(work, action)
        case CleanProgress():
            return clean.clean_progress(work, action)
        case CleanChanged():
            return clean.clean_changed(work, action)
        case CleanSwitch():
            return clean.clean_switch(work, action)
        case CleanReplica():
            return clean.clean_replica(work, action)
        case CleanStray():
            return clean.clean_stray(work, action)
        case CleanSize():
            return clean.clean_size(work, action)


def run_follow_ups(engine: Engine, follow_ups: list[FollowUp], watcher: Watcher | None = None) -> None:
    """Run the fixes that a fix made due, if they can be run now. Check lists those that are left.

    Of merges, only those that move no data are run. The caller decides whether to start the others.
    """
    for follow_up in follow_ups[:_FOLLOW_UP_LIMIT]:
        with os_errors("looking at what a fix made due"):
            if isinstance(follow_up.action, Merge) and not _is_free(follow_up.repo, follow_up.action):
                continue
        try:
            run_fix(engine, follow_up.repo, follow_up.action, watcher=watcher)
        except (errors.LeaseHeld, errors.ImageInUse):
            continue  # other work is in the way: check lists the fix


def _is_free(repo: Repository, action: Merge) -> bool:
    """Whether a merge moves no data; also False if somebody else is doing it at this moment."""
    try:
        return merge_is_free(repo, action.image_id)
    except FileNotFoundError:  # one of its volumes was there a moment ago, and is gone
        return False
