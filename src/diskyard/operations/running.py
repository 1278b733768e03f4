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
from diskyard.model.records import Attachment, Image, Switching
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.mover.durable import os_errors
from diskyard.operations.building import others_may_win
from diskyard.operations.engine import Engine
from diskyard.operations.guests import (
    RunningGuest,
    asked_guest,
    guest_words,
    require_as_recorded,
    require_own_chain,
)
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
    attachment = _attachment(state, attachment_id, asked.disk_id)
    with asked_guest(engine, repo, attachment) as guest:
        guest = require_as_recorded(repo, state, attachment, guest, author)
        asked = replace(asked, attachment_id=attachment_id)
        begun = commit_looking(repo, asked.disk_id, lambda draft: switch.begin(draft, asked), author)
        if begun.result is None:
            return None, begun.state
        new = begun.result
        repo.make_empty(new.volume)
        top = state.volumes[attachment.volume_ids[0]]
        with os_errors("letting the guest open its new volume"):
            repo.storage.share_access(volume_name(top), volume_name(new.volume))
        with others_may_win():
            published = commit_looking(
                repo, asked.disk_id, lambda draft: switch.seal(draft, asked, new), author
            )
        _move_or_undo(repo, published.state, guest, new, author)
        return _complete(repo, attachment_id, new.work_id, author, also)


def _attachment(state: State, attachment_id: str, disk_id: str) -> Attachment:
    found = state.attachments.get(attachment_id)
    if found is None:
        raise errors.LeaseHeld(f"Image {disk_id} was torn down meanwhile.", imageId=disk_id)
    return found


def _move_or_undo(
    repo: Repository, state: State, guest: RunningGuest, new: NewVolume, author: Author
) -> None:
    """Move the guest to the overlay on which the log has its disk; if it refuses, take that back."""
    try:
        guest.move(repo, state, new.volume.id)
    except errors.UnknownOutcome:
        raise  # whoever comes next asks the guest
    except errors.DiskyardError:
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
    engine: Engine, repo: Repository, attachment_id: str, author: Author, *, leased: str | None = None
) -> State:
    """End a switch that was interrupted: ask the guest where it is, then complete or undo. Mostly only look.

    :param leased: an image whose lease the caller has: that of a Snapshot which is asked for once more.
    :returns: the newest state. The attachment is not switching in it.
    :raises diskyard.errors.LeaseHeld: the verb that switches is at it.
    :raises diskyard.errors.ImageInUse: only another host, or another state directory, can ask the guest.
    :raises diskyard.errors.StorageError: the guest does not answer: nothing is decided then.
    """
    state = repo.state()
    found = state.attachments.get(attachment_id)
    if found is None or found.switching is None:
        return state
    needed = [] if found.switching.image_id == leased else [found.switching.image_id]
    with repo.work_on(needed, wait_s=_SETTLE_WAIT_S):
        state = repo.state()
        found = state.attachments.get(attachment_id)
        if found is None or found.switching is None:
            return state
        with asked_guest(engine, repo, found) as guest, others_may_win():
            return _end_switch(repo, state, found, found.switching, guest, author)


def _end_switch(
    repo: Repository,
    state: State,
    attachment: Attachment,
    switching: Switching,
    guest: RunningGuest | None,
    author: Author,
) -> State:
    """Complete or undo a switch, as the guest has followed or not.

    A guest that has ended may have followed before. The overlay has what it wrote since, if anything, so that
    is right in both cases.
    """
    work_id = switching.work_id
    followed = guest is None or switching.to_volume_id in guest.seen.chain
    if guest is None or followed:
        return repo.commit(lambda draft: planner.complete(draft, attachment.id, work_id), author).state
    if guest.process_is_known or repo.is_unwritten(state.volumes[switching.to_volume_id]):
        guest.graph.forget(attachment.id, switching.to_volume_id)
        return repo.commit(lambda draft: planner.undo(draft, attachment.id, work_id), author).state
    # It followed, wrote to the overlay, ended, and was started again with the graph from before.
    state = repo.commit(lambda draft: planner.complete(draft, attachment.id, work_id), author).state
    require_own_chain(repo, state, guest, author)
    return state


def make_live(engine: Engine, repo: Repository, attachment: Attachment, address: str, author: Author) -> None:
    """Make known how a running guest can be talked to; durable on return.

    If another program had changed the guest's chain, and it is the log's again, the disk is whole again.

    :param address: the path of the socket on which the monitor of its QEMU listens.
    :raises diskyard.errors.InvalidParameter: that QEMU does not have the image open as prepareImage gave it.
    :raises diskyard.errors.ImageInUse: the guest that was known before still runs, or this one is not where
        the log has its disk.
    """
    state = settle_guest(engine, repo, attachment.id, author)
    attachment = _attachment(state, attachment.id, attachment.image_id)
    with Monitor(engine.host, address) as monitor:
        graph = QmpGraph(monitor)
        seen = graph.look(Disk(attachment.id, attachment.volume_ids))
        if not seen.chain:
            raise errors.InvalidParameter(
                f"The QEMU at {address} has no node of image {attachment.image_id}.",
                advice="Start it with the blockdev that prepareImage returned, names of nodes included; then "
                "call prepareImage for this owner again, with live.",
                imageId=attachment.image_id,
            )
        known = engine.known_guests.recall(repo, attachment.id)
        if known is not None and known.process != monitor.process and is_alive(engine.host, known.process):
            raise errors.ImageInUse(
                f"The {guest_words(attachment)} still runs as process {known.pid}, and "
                f" {address} belongs to process {monitor.process.pid}.",
                advice="End one of the two.",
                imageId=attachment.image_id,
                owner=attachment.owner,
            )
        guest = RunningGuest(graph, attachment, seen, process_is_known=True)
        require_own_chain(repo, state, guest, author)
        engine.known_guests.remember(repo, attachment.id, address, monitor.process)

        def plan(draft: Draft) -> None:
            live = attach.make_live(draft, attachment.id)
            planner.clear_changed(draft, live.volume_ids[0])

        repo.commit(plan, author)
