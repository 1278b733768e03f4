"""Asking a running guest of this host where its disk is, and judging what it says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from diskyard import errors
from diskyard.known_guests import KnownGuest
from diskyard.live.graph import Disk, LiveGraph, Move, Seen
from diskyard.live.monitor import Monitor, NobodyAnswers
from diskyard.live.process import is_alive
from diskyard.live.qmp_graph import QmpGraph
from diskyard.log.log import Author
from diskyard.model.records import Attachment
from diskyard.model.state import State
from diskyard.operations.engine import Engine
from diskyard.operations.writers import is_written
from diskyard.planner import running as planner
from diskyard.repository.repository import Repository, volume_name

AGAIN = "Call prepareImage for this owner again, with live, while the guest runs."


@dataclass(frozen=True, slots=True)
class RunningGuest:
    """A guest that was asked where its disk is.

    :param process_is_known: it is the process that was made known; else another one, as after a restart.
    """

    graph: LiveGraph
    attachment: Attachment
    seen: Seen
    process_is_known: bool

    def move(self, repo: Repository, state: State, overlay_id: str) -> None:
        """Let the guest write to an overlay of what it writes to now.

        :raises diskyard.errors.UnknownOutcome: it may do so now, or may not.
        :raises diskyard.errors.DiskyardError: it does not, and has not opened the overlay.
        """
        (overlay,) = repo.layers(state, [state.volumes[overlay_id]])
        self.graph.switch([Move(self.attachment.id, self.seen.chain[0], overlay)])


def guest_words(attachment: Attachment) -> str:
    """A guest, for messages."""
    return f"guest {attachment.owner} of image {attachment.image_id}"


@dataclass(frozen=True, slots=True)
class Asked:
    """A guest, and the state while nobody else can move it.

    :param guest: None if it has certainly ended, or does not have the disk.
    """

    state: State
    attachment: Attachment
    guest: RunningGuest | None


@contextmanager
def asked_guest(engine: Engine, repo: Repository, attachment_id: str) -> Iterator[Asked]:
    """A context with the guest of an attachment, and the newest state.

    Nobody else can talk to the guest in the context: a monitor has one client at a time. So the state is read
    when QEMU has greeted. What was read before may lack a volume that somebody else has moved the guest to.

    :raises diskyard.errors.ImageInUse: it cannot be talked to from here.
    :raises diskyard.errors.LeaseHeld: somebody else talks to it, or it was torn down meanwhile.
    :raises diskyard.errors.StorageError: it does not answer, or as no QEMU does. Nothing is known of it then.
    """
    known = _require_reachable(engine, repo, require_attached(repo.state(), attachment_id))
    with contextlib.ExitStack() as stack:
        try:
            monitor = stack.enter_context(Monitor(engine.host, known.address))
        except NobodyAnswers:
            if is_alive(engine.host, known.process):
                raise
            monitor = None
        state = repo.state()
        attachment = require_attached(state, attachment_id)
        guest = None if monitor is None else _look(monitor, known, attachment)
        yield Asked(state, attachment, guest)


def require_attached(state: State, attachment_id: str) -> Attachment:
    """The attachment with this id.

    :raises diskyard.errors.LeaseHeld: it has ended.
    """
    found = state.attachments.get(attachment_id)
    if found is None:
        raise errors.LeaseHeld("The image was torn down meanwhile.", advice="Try again.")
    return found


def _look(monitor: Monitor, known: KnownGuest, attachment: Attachment) -> RunningGuest | None:
    graph = QmpGraph(monitor)
    seen = graph.look(Disk(attachment.id, attachment.volume_ids))
    is_known = monitor.process == known.process
    if not is_known and is_alive(monitor.host, known.process):
        raise errors.StorageError(
            f"The monitor at {known.address} belongs to another process ({monitor.process.pid}) than "
            f"{guest_words(attachment)} ({known.pid}), which runs.",
            advice=AGAIN,
        )
    has_disk = seen.chain or seen.foreign or seen.idle
    return RunningGuest(graph, attachment, seen, is_known) if is_known or has_disk else None


def _require_reachable(engine: Engine, repo: Repository, attachment: Attachment) -> KnownGuest:
    known = engine.known_guests.recall(repo, attachment.id)
    why = why_not_reachable(engine, repo, attachment)
    if why is not None or known is None:
        raise errors.ImageInUse(
            f"Image {attachment.image_id} is attached on host {attachment.host.host_id} for "
            f"{attachment.owner}: {why}.",
            advice="Tear it down once the guest has ended. To do it while the guest runs, on that host: "
            f"{AGAIN}",
            imageId=attachment.image_id,
            hostID=attachment.host.host_id,
            owner=attachment.owner,
        )
    return known


def why_not_reachable(engine: Engine, repo: Repository, attachment: Attachment) -> str | None:
    """Why the guest of an attachment cannot be talked to from here, for messages; None if it can."""
    here, there = engine.host.identity, attachment.host
    if attachment.live is None:
        return "nobody has said how to talk to that guest"
    if (there.machine_id, there.host_id) != (here.machine_id, here.host_id):
        return f"only host {there.host_id} can talk to that guest"
    if engine.known_guests.recall(repo, attachment.id) is None:
        return "this state directory does not know where that guest answers"
    return None


def require_as_recorded(repo: Repository, asked: Asked, author: Author) -> RunningGuest:
    """Refuse a guest that is not where the log has its disk, and record what that has done to the bytes.

    :raises diskyard.errors.ImageInUse: it has ended, was started again, or was changed by another program.
    :raises diskyard.errors.LeaseHeld: its QEMU is at work on the disk.
    """
    state, attachment, guest = asked.state, asked.attachment, asked.guest
    of = guest_words(attachment)
    details = {"imageId": attachment.image_id, "owner": attachment.owner}
    if guest is None:
        raise errors.ImageInUse(
            f"The {of} has ended, and its attachment has not.",
            advice="Tear the image down, or start the guest again from what prepareImage returns now.",
            **details,
        )
    require_own_chain(repo, state, guest, author)
    require_own_file(repo, state, attachment)
    if not guest.process_is_known:
        raise errors.ImageInUse(f"The {of} was started again.", advice=AGAIN, **details)
    if guest.seen.job is not None:
        raise errors.LeaseHeld(
            f"The QEMU of {of} is at work on the disk: {guest.seen.job}.",
            advice="Wait until that has ended, or end it (virsh blockjob --abort), then try again.",
            **details,
        )
    volume = state.volumes[attachment.volume_ids[0]]
    if repo.longer_bytes(volume, repo.stored(volume)) is not None:
        raise errors.ImageInUse(
            f"The {of} has made it larger, and its record does not have that size yet.",
            advice="The size is taken over when the image is torn down, after the guest has ended.",
            **details,
        )
    return guest


def require_own_chain(repo: Repository, state: State, guest: RunningGuest, author: Author) -> None:
    """Refuse a guest whose chain is not the log's, and mark the volumes that can no longer be trusted."""
    seen, attachment = guest.seen, guest.attachment
    of = guest_words(attachment)
    top_id = state.images[attachment.image_id].volume_id
    if not seen.foreign and seen.chain[:1] == (top_id,):
        return
    details = {"imageId": attachment.image_id, "owner": attachment.owner}
    if seen.foreign:
        words = f"changed the chain of the {of}: it has the nodes {', '.join(seen.foreign)}"
        repo.commit(lambda draft: planner.mark_changed(draft, str(top_id), words), author)
        raise errors.ImageInUse(
            f"Another program {words}.",
            advice="What the guest wrote last may be in them. Commit them into the disk (virsh blockcommit), "
            f"then: {AGAIN}",
            **details,
        )
    if not seen.chain:
        raise errors.ImageInUse(
            f"The QEMU of {of} does not have the disk open.",
            advice="Tear the image down, or give the disk to the guest again.",
            **details,
        )
    with contextlib.suppress(errors.DiskyardError):  # it cannot do more harm while it stands still
        guest.graph.stop()
    words = f"wrote to it, frozen as it was: the {of} was started with a graph from before"
    repo.commit(lambda draft: planner.mark_changed(draft, seen.chain[0], words), author)
    raise errors.ImageInUse(
        f"The {of} was started with a graph from before: it writes to the frozen volume {seen.chain[0]}. It "
        "was stopped, and what reads that volume is marked as damaged.",
        advice="End the guest, tear the image down, and start it only from what prepareImage returns then.",
        **details,
    )


def require_own_file(repo: Repository, state: State, attachment: Attachment) -> None:
    """Refuse a guest that has something else open than the file of its disk's volume in this repository.

    The names of its nodes say which volume it means, not which file: the repository may have been put back
    from a backup since, or a copy of it is in its place. QEMU's locks are on the very file that it has open.

    :raises diskyard.errors.ImageInUse: no QEMU has that file open for writing.
    """
    top_id = attachment.volume_ids[0]
    if is_written(repo, volume_name(state.volumes[top_id])):
        return
    raise errors.ImageInUse(
        f"The {guest_words(attachment)} does not have volume {top_id} of {repo.storage.place} open: the "
        "file was exchanged since the guest opened it, as when a repository is put back from a backup.",
        advice="What the guest writes goes to the file that was there before. End the guest, tear the image "
        "down, and start the guest from what prepareImage returns then.",
        imageId=attachment.image_id,
        owner=attachment.owner,
    )


def require_ended(engine: Engine, repo: Repository, attachment: Attachment) -> None:
    """Refuse to end the attachment of a guest that runs and has the disk open; no force overrules this.

    :raises diskyard.errors.ImageInUse: it runs.
    :raises diskyard.errors.DiskyardError: its process runs and cannot be asked: see :func:`asked_guest`.
    """
    known = engine.known_guests.recall(repo, attachment.id)
    if attachment.live is None or known is None or not is_alive(engine.host, known.process):
        return
    with asked_guest(engine, repo, attachment.id) as asked:
        seen = None if asked.guest is None else asked.guest.seen
        if seen is None or not (seen.chain or seen.foreign):
            return
    raise errors.ImageInUse(
        f"The {guest_words(attachment)} runs, as process {known.pid}, and has the disk open.",
        advice="End the guest, or take the disk from it; then try again.",
        imageId=attachment.image_id,
        owner=attachment.owner,
    )
