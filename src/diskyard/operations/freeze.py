"""Freezing: a copy reads its source as it was at one moment, however often the copy is resumed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeGuard

from diskyard import errors
from diskyard.host.identity import new_uuid
from diskyard.log.log import Author
from diskyard.model.records import AnyHold, CopyHold, Image, entry_id
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.operations.building import forget_volume, make_volume, new_ids, others_may_win
from diskyard.operations.engine import Engine
from diskyard.operations.running import switch_running
from diskyard.operations.sizes import settle_disk
from diskyard.operations.writers import require_no_stranger
from diskyard.planner import change, switch
from diskyard.planner.common import Superseded, virtual_disk
from diskyard.planner.switch import Switch, SwitchAgain
from diskyard.repository.commit import Committed
from diskyard.repository.repository import Repository
from diskyard.repository.settled import commit_looking

_CLONES, _SWITCHES = 3, 100  # how often each is tried if others change the disk meanwhile


def switch_disk(
    engine: Engine,
    repo: Repository,
    state: State,
    asked: Switch,
    author: Author,
    also: Callable[[Draft], object] | None = None,
) -> tuple[Image | None, State]:
    """Freeze a disk's bytes as an image, durable on return; those of a running guest's disk at one moment.

    The caller has the lease of the new image. The disk itself is not leased.

    A crash between the intent and the seal leaves a weak image, and an overlay that is building. The disk is
    as it was. Check lists the overlay's clean, which removes the image too.

    :param state: the state that the caller read last, possibly before it took the lease.
    :param also: makes further changes in the entry of the seal.
    :returns: the frozen image, or None if this very request was fulfilled before; and the state after it.
    :raises diskyard.errors.LeaseHeld: the disk was extended or switched at each attempt, or other work has
        taken over.
    :raises diskyard.errors.DiskyardError: see :func:`diskyard.operations.running.switch_running`.
    """
    for _ in range(_SWITCHES):
        writer = state.writer_of(asked.disk_id)
        if writer is not None:
            return switch_running(engine, repo, writer.id, asked, author, also)
        made = state.images.get(asked.image_id)
        if made is None or not made.is_strong:  # a caller that only repeats its request need not wait
            state = settle_disk(repo, state, asked.disk_id, author)
        try:
            frozen = _switch_once(repo, state, asked, author, also)
            return frozen.result, frozen.state
        except SwitchAgain:
            # The disk was extended, or moved to another volume, meanwhile. The next intent discards this one.
            state = repo.state()
            asked = replace(asked, ids=new_ids())
    raise errors.LeaseHeld(
        f"Disk {asked.disk_id} was extended or switched at each attempt.", imageId=asked.disk_id
    )


def _switch_once(
    repo: Repository, state: State, asked: Switch, author: Author, also: Callable[[Draft], object] | None
) -> Committed[Image | None]:
    # Checked again before the seal, because a writer may come meanwhile.
    require_no_stranger(repo, state, asked.disk_id)
    begun = commit_looking(repo, asked.disk_id, lambda draft: switch.begin(draft, asked), author)
    if begun.result is None:
        return Committed(None, begun.before, begun.state)
    looked_at = state.images.get(asked.disk_id)
    if looked_at is None or looked_at.volume_id != begun.state.images[asked.disk_id].volume_id:
        raise SwitchAgain  # nobody has checked whether this volume is as long as its record says
    new = begun.result
    repo.make_empty(new.volume)
    require_no_stranger(repo, begun.state, asked.disk_id)

    def seal(draft: Draft) -> Image | None:
        frozen = switch.seal(draft, asked, new)
        if also is not None:
            also(draft)
        return frozen

    with others_may_win():
        return commit_looking(repo, asked.disk_id, seal, author)


def freeze_disk(
    engine: Engine, repo: Repository, state: State, disk_id: str, hold: AnyHold, author: Author
) -> tuple[Image, State]:
    """Freeze a disk's current bytes as a held image. The disk can be used at once.

    The cheapest possible way is taken. First, an existing freeze point, if nothing was written since. Second,
    a clone, if the disk is one raw volume and the storage can share its bytes. Last, a switch. Each way is
    decided anew on the state that its entry is built on.

    :param state: the state that the caller read last.
    :returns: the image, and the state after it.
    """
    state = settle_disk(repo, state, disk_id, author)
    require_no_stranger(repo, state, disk_id)  # the overlay's tables may still be in that program's memory
    held = _hold_unwritten(repo, state, disk_id, hold, author)
    if held is not None and held.result is not None:
        return held.result, held.state
    asked = Switch(
        disk_id=disk_id,
        image_id=new_uuid(),
        ids=new_ids(),
        now=repo.host.clock.now(),
        hold=hold,
    )
    with repo.work_on([asked.image_id]):
        # Sharing the bytes of a file that a guest writes to would not show those of one moment.
        cloned = None if state.writer_of(disk_id) else _freeze_by_clone(repo, asked, author)
        if cloned is not None and cloned.result is not None:
            return cloned.result, cloned.state
        frozen, state = switch_disk(engine, repo, state, asked, author)
    assert frozen is not None  # only a request with a digest can have been fulfilled before
    return frozen, state


def _hold_unwritten(
    repo: Repository, state: State, disk_id: str, hold: AnyHold, author: Author
) -> Committed[Image | None] | None:
    disk = virtual_disk(state, disk_id)
    found = switch.reusable_freeze_point(state, disk)
    if found is None or not repo.is_unwritten(found[1]):
        return None
    frozen, overlay = found
    return commit_looking(
        repo,
        disk_id,
        lambda draft: switch.hold_again(draft, disk, frozen.id, overlay.id, hold),
        author,
    )


def _freeze_by_clone(repo: Repository, asked: Switch, author: Author) -> Committed[Image] | None:
    """Freeze a disk that is one raw volume; None if it is not, or if others change it at each attempt."""
    if not repo.storage.capabilities.reflink:
        return None
    for _ in range(_CLONES):
        tried = replace(asked, ids=new_ids())
        try:
            return _clone_once(repo, tried, author)
        except Superseded:
            forget_volume(repo, tried.ids.volume_id, author)
    return None


def _clone_once(repo: Repository, asked: Switch, author: Author) -> Committed[Image] | None:
    """Try :func:`_freeze_by_clone` once.

    :raises Superseded: the disk has changed meanwhile. The volume that was begun is left; nobody needs it.
    """
    disk_id = asked.disk_id
    clone = commit_looking(
        repo,
        disk_id,
        lambda draft: switch.begin_clone(draft, asked, repo.storage.capabilities),
        author,
    ).result
    if clone is None:
        return None
    make_volume(repo, clone.new, disk_id)
    return commit_looking(repo, disk_id, lambda draft: switch.seal_clone(draft, asked, clone), author)


def copy_hold(target_repo: Repository, copy_id: str, work_id: str) -> CopyHold:
    """The hold for a copy. It names the exact location and the history that the copy is in.

    A marker is not enough: a byte copy of the target's repository has the same marker, and knows nothing of
    the copy.
    """
    known = target_repo.log.newest_known()
    return CopyHold(
        target_marker=target_repo.marker,
        copy_id=copy_id,
        work_id=work_id,
        target_place=target_repo.storage.place_identity,
        target_entry=entry_id(known.version, known.nonce),
    )


def is_hold_of(hold: AnyHold, target_repo: Repository, copy_id: str) -> TypeGuard[CopyHold]:
    """Whether a hold is for this copy, at this very location."""
    return (
        isinstance(hold, CopyHold)
        and (hold.target_marker, hold.copy_id) == (target_repo.marker, copy_id)
        and in_place(hold, target_repo)
    )


def in_place(hold: CopyHold, target_repo: Repository) -> bool:
    """Whether the copy of a hold is at the target's location. True if either does not say where it is."""
    own = target_repo.storage.place_identity
    return hold.target_place == own or "" in (hold.target_place, own)


def hold_snapshot(repo: Repository, found: Image, hold: AnyHold, author: Author) -> Committed[Image]:
    """Hold a Snapshot for a reader, before anything relies on its bytes.

    :param found: the Snapshot as it was when it was chosen.
    :returns: the Snapshot, with the hold, and the state after it.
    :raises diskyard.errors.Unsupported: nothing can be held there: see :func:`require_holdable`.
    """
    require_holdable(repo, found)
    return commit_looking(repo, found.id, lambda draft: switch.hold(draft, found, hold), author)


def require_holdable(repo: Repository, source: Image) -> None:
    """Refuse to promise a copy of an image that nothing would keep for it.

    Nothing can be held in a repository that this host cannot write to. Others may be able to write there:
    another user, or a host that has it mounted otherwise. They could remove the source after the caller was
    given the copy's id, and before the copy is made.

    :raises diskyard.errors.Unsupported: the source's repository is read-only.
    """
    why = repo.storage.read_only_because()
    if why is not None:
        raise errors.Unsupported(
            f"Image {source.id} cannot be copied: nothing would keep its bytes until the copy is made, as "
            f"{repo.storage.place} is read-only ({why}).",
            advice="Export it and import the file, make its repository writable for this user, or name "
            "another one that has it with imageHints.",
            imageId=source.id,
        )


def require_hold(
    home_repo: Repository,
    image_id: str,
    hold: AnyHold,
    target_repo: Repository,
    published: State,
    copy_id: str,
    author: Author,
) -> None:
    """Check, after publishing a copy and before the caller is told, that its hold still stands.

    A clean can have released the hold in between only if this process had lost its lease.

    :param published: the target's state after the entry that made the copy.
    :raises diskyard.errors.LeaseHeld: the hold was released; the copy is taken back, if it is pending.
    """
    # If both are in one repository, the state after the copy's entry is new enough. Else the log is read.
    state = published if home_repo.log is target_repo.log else home_repo.state()
    image = state.images.get(image_id)
    if image is not None and hold in image.held_for:
        return
    target_repo.commit(lambda draft: change.take_back(draft, copy_id), author)
    raise errors.LeaseHeld(
        f"The data that copy {copy_id} reads was released by another host meanwhile.",
        advice="Copy the image again.",
        imageId=copy_id,
    )


@contextlib.contextmanager
def release_if_refused(repo: Repository, image_id: str, hold: AnyHold, author: Author) -> Iterator[None]:
    """A context that releases a hold if it is certain that the image it is for was not made."""
    try:
        yield
    except errors.UnknownOutcome:
        raise
    except Exception:
        with contextlib.suppress(errors.DiskyardError):  # the caller is told the first error
            release_hold(repo, image_id, hold, author)
        raise


def require_held(repo: Repository, image_id: str, hold: AnyHold) -> None:
    """Check, after reading an image, that the hold stood all the time: only then are the bytes the image's.

    A hold that was released never comes back, because every hold names its own work.

    :raises diskyard.errors.LeaseHeld: the hold was released: the bytes that were read must not be used.
    """
    image = repo.state().images.get(image_id)
    repo.log.require_whole()
    if image is None or hold not in image.held_for:
        raise errors.LeaseHeld(
            f"The data of image {image_id} was released by another host while it was read.",
            advice="The bytes that were read are not used. Run the fix again, or copy the image again.",
            imageId=image_id,
        )


def require_unchanged(repo: Repository, seen: Image) -> None:
    """Check, after reading an image in a repository where nothing can be held, that it is unchanged.

    Its bytes could have changed if others can write there, or if it was mounted for writing in between. But
    then an entry of the log, which this check sees, came before.

    :param seen: the image before it was read.
    :raises diskyard.errors.LeaseHeld: the image has changed: the bytes that were read must not be used.
    """
    state = repo.state()
    repo.log.require_whole()
    image = state.images.get(seen.id)
    same = image is not None and (image.volume_id, image.data_generation, image.consumed_by) == (
        seen.volume_id,
        seen.data_generation,
        seen.consumed_by,
    )
    if not same or (image is not None and (not image.is_strong or state.writer_of(image.id) is not None)):
        raise errors.LeaseHeld(
            f"Image {seen.id} was changed while it was read from read-only storage.",
            advice="The bytes that were read are not used. Try again.",
            imageId=seen.id,
        )


def release_hold(repo: Repository, image_id: str, hold: AnyHold, author: Author) -> Committed[bool] | None:
    """End a hold, if it exists; None if the repository is read-only: then check lists the hold later."""
    if repo.is_read_only:
        return None
    return repo.commit(lambda draft: switch.release(draft, image_id, hold), author)
