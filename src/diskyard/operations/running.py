"""Verbs on the disk of a running guest: the log first, then the guest, then the log again.

Between its two entries a verb holds the guest's monitor and the lease of the image that it freezes. Whoever
finds an attachment that is switching, and gets both, knows that the verb was interrupted: it asks the guest
where it is, and completes or undoes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from diskyard import errors
from diskyard.live.graph import Disk
from diskyard.live.monitor import Monitor
from diskyard.live.process import is_alive
from diskyard.live.qmp_graph import QmpGraph
from diskyard.log.log import Author
from diskyard.model.records import Attachment, Image, Switching, Volume
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.mover.durable import os_errors
from diskyard.operations.building import others_may_win
from diskyard.operations.engine import Engine
from diskyard.operations.guests import (
    Asked,
    RunningGuest,
    asked_guest,
    guest_words,
    require_as_recorded,
    require_attached,
    require_own_chain,
    require_own_file,
)
from diskyard.operations.writers import is_written
from diskyard.planner import attach, switch
from diskyard.planner import running as planner
from diskyard.planner.building import NewVolume
from diskyard.planner.switch import Switch
from diskyard.repository.repository import Repository, volume_name
from diskyard.repository.settled import commit_looking

_SETTLE_WAIT_S = 2.0


def switch_running(
    engine: Engine,
    repo: Repository,
    attachment_id: str,
    asked: Switch,
    author: Author,
    also: Callable[[Draft], object] | None = None,
) -> tuple[Image | None, State]:
    """Freeze the bytes that a running guest's disk has at one moment; durable on return.

    The caller has the lease of the new image.

    :param also: makes further changes in the entry after which the frozen image can be used.
    :returns: the frozen image, or None if this very request was fulfilled before; and the state after it.
    :raises diskyard.errors.ImageInUse: the guest cannot be talked to from here, or is not where the log says.
    :raises diskyard.errors.LeaseHeld: somebody else talks to the guest, or works on the disk.
    :raises diskyard.errors.StorageError: the guest's QEMU refuses it, or does not answer. If it is not known
        whether the guest follows, the next verb on the disk asks it.
    """
    state = settle_guest(engine, repo, attachment_id, author, leased=asked.image_id)
    made = state.images.get(asked.image_id)
    if made is not None and made.is_strong and made.request_digest == asked.request_digest:
        return None, state  # whatever has become of the guest since
    with asked_guest(engine, repo, attachment_id) as found:
        planner.require_not_switching(found.attachment)
        guest = require_as_recorded(repo, found, author)
        asked = replace(asked, attachment_id=attachment_id)
        begun = commit_looking(repo, asked.disk_id, lambda draft: switch.begin(draft, asked), author)
        if begun.result is None:
            return None, begun.state
        new = begun.result
        repo.make_empty(new.volume)
        top = found.state.volumes[found.attachment.volume_ids[0]]
        with os_errors("letting the guest open its new volume"):
            repo.storage.share_access(volume_name(top), volume_name(new.volume))
        with others_may_win():
            published = commit_looking(
                repo, asked.disk_id, lambda draft: switch.seal(draft, asked, new), author
            )
        _move_or_undo(repo, published.state, guest, new, author)
        return _complete(repo, attachment_id, new.work_id, author, also)


def _move_or_undo(
    repo: Repository, state: State, guest: RunningGuest, new: NewVolume, author: Author
) -> None:
    """Move the guest to the overlay on which the log has its disk; if it refuses, take that back."""
    try:
        guest.move(repo, state, new.volume.id)
    except errors.UnknownOutcome:
        raise  # whoever comes next asks the guest
    except errors.DiskyardError:
        with others_may_win():
            repo.commit(lambda draft: planner.undo(draft, guest.attachment.id, new.work_id), author)
        raise


def _complete(
    repo: Repository,
    attachment_id: str,
    work_id: str,
    author: Author,
    also: Callable[[Draft], object] | None,
) -> tuple[Image, State]:
    def plan(draft: Draft) -> Image:
        return planner.complete(draft, attachment_id, work_id)

    def plan_all(draft: Draft) -> Image:
        frozen = plan(draft)
        if also is not None:
            also(draft)
        return frozen

    with others_may_win():
        try:
            done = repo.commit(plan_all, author)
        except errors.UnknownOutcome:
            raise
        except errors.DiskyardError:
            if also is not None:  # the guest has followed, whatever was to come with it
                repo.commit(plan, author)
            raise
    return done.result, done.state


def settle_guest(
    engine: Engine,
    repo: Repository,
    attachment_id: str,
    author: Author,
    *,
    leased: str | None = None,
    ended: bool = False,
) -> State:
    """End a switch that was interrupted: ask the guest where it is, then complete or undo. Mostly only look.

    :param leased: an image whose lease the caller has: that of a Snapshot which is asked for once more.
    :param ended: the guest has ended, so nobody need be asked: its host has started again since, or the
        caller of the verb vouches for it.
    :returns: the newest state. The attachment is not switching in it.
    :raises diskyard.errors.LeaseHeld: the verb that switches is at it.
    :raises diskyard.errors.ImageInUse: only another host, or another state directory, can ask the guest; or
        some QEMU writes to what the guest is to have left, although it has followed.
    :raises diskyard.errors.StorageError: the guest does not answer: nothing is decided then.
    """
    state = repo.state()
    found = state.attachments.get(attachment_id)
    if found is None or found.switching is None:
        return state
    needed = [] if found.switching.image_id == leased else [found.switching.image_id]
    with repo.work_on(needed, wait_s=_SETTLE_WAIT_S), others_may_win():
        if ended:
            state = repo.state()
            return _end_switch(repo, Asked(state, require_attached(state, attachment_id), None), author)
        with asked_guest(engine, repo, attachment_id) as asked:
            return _end_switch(repo, asked, author)


def _end_switch(repo: Repository, asked: Asked, author: Author) -> State:
    """Complete or undo a switch, as the guest has followed or not.

    If the guest does not tell, as it has ended or does not have the disk any more, the overlay does: it is
    empty unless the guest has followed, and nobody has it open. An overlay that is empty and closed holds
    nothing that could be lost.
    """
    attachment, guest, switching = asked.attachment, asked.guest, asked.attachment.switching
    if switching is None:
        return asked.state
    overlay = asked.state.volumes[switching.to_volume_id]
    seen = () if guest is None else guest.seen.chain
    if guest is not None and overlay.id not in seen:
        guest.graph.forget(attachment.id, overlay.id)  # what it may still have in memory is written then
    has_followed = overlay.id in seen or _is_used(repo, overlay)
    if not has_followed:
        return repo.commit(lambda draft: planner.undo(draft, attachment.id, switching.work_id), author).state
    if overlay.id not in seen and not seen:
        _require_left(repo, asked, switching)
    done = repo.commit(lambda draft: planner.complete(draft, attachment.id, switching.work_id), author).state
    if guest is not None and seen and overlay.id not in seen:
        # It followed, wrote to the overlay, ended, and was started again with the graph from before.
        require_own_chain(repo, done, guest, author)
    return done


def _is_used(repo: Repository, overlay: Volume) -> bool:
    """Whether a guest has written to an overlay, or has it open to do so."""
    with os_errors("looking who writes to an overlay"):
        return is_written(repo, volume_name(overlay)) or not repo.is_unwritten(overlay)


def _require_left(repo: Repository, asked: Asked, switching: Switching) -> None:
    """Refuse to call what a guest has left frozen while some QEMU, which cannot be asked, writes to it."""
    left = asked.state.volumes[switching.from_volume_id]
    with os_errors("looking who writes to what a guest has left"):
        if not is_written(repo, volume_name(left)):
            return
    raise errors.ImageInUse(
        f"A running QEMU writes to volume {left.id}, which the {guest_words(asked.attachment)} had left.",
        advice="It was started with a graph from before. End it, then try again.",
        imageId=asked.attachment.image_id,
        owner=asked.attachment.owner,
    )


def make_live(engine: Engine, repo: Repository, attachment_id: str, address: str, author: Author) -> None:
    """Make known how a running guest can be talked to; durable on return.

    If another program had changed the guest's chain, and it is the log's again, the disk is whole again.

    :param address: the path of the socket on which the monitor of its QEMU listens.
    :raises diskyard.errors.InvalidParameter: that QEMU does not have the image open as prepareImage gave it.
    :raises diskyard.errors.ImageInUse: the guest that was known before still runs, or this one is not where
        the log has its disk.
    """
    if engine.known_guests.recall(repo, attachment_id) is None:
        _introduce(engine, repo, attachment_id, address)
    settle_guest(engine, repo, attachment_id, author)
    with Monitor(engine.host, address) as monitor:
        state = repo.state()  # only now nobody else moves the guest
        attachment = require_attached(state, attachment_id)
        planner.require_not_switching(attachment)
        graph = QmpGraph(monitor)
        seen = graph.look(Disk(attachment.id, attachment.volume_ids))
        if not seen.chain:
            raise _without_disk(address, attachment)
        known = engine.known_guests.recall(repo, attachment.id)
        if known is not None and known.process != monitor.process and is_alive(engine.host, known.process):
            raise errors.ImageInUse(
                f"The {guest_words(attachment)} still runs as process {known.pid}, and "
                f"{address} belongs to process {monitor.process.pid}.",
                advice="End one of the two.",
                imageId=attachment.image_id,
                owner=attachment.owner,
            )
        guest = RunningGuest(graph, attachment, seen, process_is_known=True)
        require_own_chain(repo, state, guest, author)
        require_own_file(repo, state, attachment)
        engine.known_guests.remember(repo, attachment.id, address, monitor.process)

        def plan(draft: Draft) -> None:
            live = attach.make_live(draft, attachment.id)
            planner.clear_changed(draft, live.volume_ids[0])

        repo.commit(plan, author)


def _introduce(engine: Engine, repo: Repository, attachment_id: str, address: str) -> None:
    """Note where a guest is that this state directory knows nothing of: only then it can be asked."""
    with Monitor(engine.host, address) as monitor:
        attachment = require_attached(repo.state(), attachment_id)
        if not QmpGraph(monitor).look(Disk(attachment.id, attachment.volume_ids)).chain:
            raise _without_disk(address, attachment)
        engine.known_guests.remember(repo, attachment.id, address, monitor.process)


def _without_disk(address: str, attachment: Attachment) -> errors.InvalidParameter:
    return errors.InvalidParameter(
        f"The QEMU at {address} has no node of image {attachment.image_id}.",
        advice="Start it with the blockdev that prepareImage returned, names of nodes included; then call "
        "prepareImage for this owner again, with live.",
        imageId=attachment.image_id,
    )
