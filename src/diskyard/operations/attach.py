"""prepareImage and teardownImage."""

from __future__ import annotations

import os

from diskyard import errors
from diskyard.attachments.libvirt import disk_xml
from diskyard.attachments.serve import nobody_serves
from diskyard.host.identity import new_uuid, uuid_of
from diskyard.model.options import TeardownOptions
from diskyard.model.records import Attachment, Image
from diskyard.model.requests import PrepareImage, TeardownImage
from diskyard.model.results import Attached
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.mover.interface import Chain
from diskyard.mover.qemu.graphs import guest_graph
from diskyard.operations.change import cleaning
from diskyard.operations.engine import Engine, Outcome
from diskyard.operations.guests import require_ended
from diskyard.operations.running import make_live, settle_guest
from diskyard.operations.sizes import growth_of_writer, settle_size
from diskyard.operations.transfer import require_transfer_folder
from diskyard.operations.writers import require_no_stranger, require_writer_gone
from diskyard.planner import attach as planner
from diskyard.planner.common import strong_image
from diskyard.planner.sizes import adopt, size_lease
from diskyard.repository.commit import Committed
from diskyard.repository.foreign import overlays_of
from diskyard.repository.repository import Repository
from diskyard.repository.settled import commit_looking

DEFAULT_OWNER = "diskyard"
_MERGE_WAIT_S = 2.0


def prepare_image(engine: Engine, request: PrepareImage) -> Attached:
    """Attach an image for an owner on this host, and serve it if the request says so; durable on return.

    In a repository that cannot be written to, nothing is recorded. An image that cannot be served is not
    left attached, unless it was attached before.

    :raises diskyard.errors.TooManyRequests: the limit of served images is reached.
    :raises diskyard.errors.DiskyardError: see :func:`_attach_for`.
    """
    repo = engine.connections.get(request.repository_id)
    _meet_guest(engine, repo, request)
    attached, chain, is_new = _attach_for(engine, repo, request)
    if request.options.serve is None:
        return attached
    try:
        return engine.servers.serve(repo, attached, chain)
    except BaseException:
        if is_new:
            again = TeardownImage(
                repository_id=request.repository_id,
                image_id=request.image_id,
                options=TeardownOptions(owner=attached.owner),
            )
            _detach(engine, repo, again)
        raise


def _meet_guest(engine: Engine, repo: Repository, request: PrepareImage) -> None:
    """Note how the guest of an attachment is reached, if the request says that.

    :raises diskyard.errors.InvalidParameter: ``live`` is given for what no running guest writes to.
    :raises diskyard.errors.DiskyardError: see ``operations/running.py``.
    """
    live, owner = request.options.live, request.options.owner or DEFAULT_OWNER
    if live is None:
        return
    if request.options.serve or not _is_address(live.qmp):
        raise errors.InvalidParameter(
            "options.live.qmp must be the absolute path of a socket, in printable characters, and cannot be "
            "given with serve.",
        )
    for found in repo.state().attachments_of(request.image_id):
        if _is_own_writer(engine, found, owner):
            require_transfer_folder(engine.host, os.path.dirname(live.qmp), live.qmp)
            make_live(engine, repo, found.id, live.qmp, engine.author("prepareImage"))
            return
    raise errors.InvalidParameter(
        f"No guest {owner} has image {request.image_id} attached for writing on this host.",
        advice="Prepare the image without live, start the guest with the blockdev that is returned, and "
        "then call prepareImage again with live.",
        imageId=request.image_id,
    )


def _is_own_writer(engine: Engine, attachment: Attachment, owner: str) -> bool:
    known = (attachment.host, attachment.owner, attachment.mode)
    return known == (engine.host.identity, owner, "read_write")


def _is_address(path: str) -> bool:
    return os.path.isabs(path) and path.isprintable()


def _attach_for(engine: Engine, repo: Repository, request: PrepareImage) -> tuple[Attached, Chain, bool]:
    """Attach an image for an owner on this host; durable on return, if the repository can be written to.

    The leases of the weak images below it are held meanwhile. A merge holds the leases of the images that it
    works on, and no volume may be merged while a guest uses it.

    :returns: the answer to the caller; the chain, for serving it; and whether the attachment is new.
    :raises diskyard.errors.LeaseHeld: a merge works on the image's chain.
    :raises diskyard.errors.ImageInUse: the image is attached, or a guest without an attachment writes to it.
    :raises diskyard.errors.InvalidParameter: the owner has characters that people cannot see.
    """
    image_id, owner = request.image_id, request.options.owner or DEFAULT_OWNER
    if not owner.isprintable():
        raise errors.InvalidParameter(
            "options.owner has control characters, or marks of the direction of text.",
            advice="Name the owner in letters, digits, punctuation and spaces.",
        )
    author = engine.author("prepareImage")
    if repo.is_read_only:
        state = repo.state()
        return *_answer(repo, state, _not_recorded(engine, repo, state, request, owner)), False
    while True:
        # Which leases to take is a guess. The state that is read once they are taken, and the plan, check it.
        with repo.work_as_known(lambda known: _leased(known, image_id), wait_s=_MERGE_WAIT_S) as (
            (_, *weak),
            leases,
        ):
            fds = [fd for lease in leases for fd in lease.descriptors()]
            state, _ = settle_size(repo, image_id, author, fds)
            if _weak_below(state, image_id) != weak:
                continue
            if (found := _own_switching(engine, state, image_id, owner)) is not None:
                frozen_id, attachment_id = found
                settle_guest(engine, repo, attachment_id, author, leased=frozen_id)
                continue
            require_no_stranger(repo, state, image_id)
            _require_bounded(repo, state, image_id)
            committed = _attach(engine, repo, request, owner, weak)
        if (attachment := committed.result) is not None:
            is_new = attachment.id not in committed.before.attachments
            return *_given_out(repo, committed.state, attachment), is_new


def _own_switching(engine: Engine, state: State, image_id: str, owner: str) -> tuple[str, str] | None:
    """What an interrupted switch of this very guest freezes, and its attachment; None if there is none.

    The frozen image is weak, so its lease is held: no verb is at it.
    """
    for found in state.attachments_of(image_id):
        if found.switching is not None and _is_own_writer(engine, found, owner):
            return found.switching.image_id, found.id
    return None


def _given_out(repo: Repository, state: State, attachment: Attachment) -> tuple[Attached, Chain]:
    """The answer to the caller. Another call of the same owner may have torn the attachment down by now."""
    try:
        return _answer(repo, state, attachment)
    except (errors.StorageError, errors.ImageBroken):
        _require_recorded(repo.state(), attachment)
        raise


def _not_recorded(
    engine: Engine, repo: Repository, state: State, request: PrepareImage, owner: str
) -> Attachment:
    """An attachment for reading in a repository that cannot be written to: nobody else learns of it.

    Others may be able to write there, as another user, or once it is mounted for writing. They can merge or
    remove what the guest reads: the caller must prevent that (docs/operating.md).

    :raises diskyard.errors.StorageError: the request is for writing or serving, which needs a record.
    """
    image = strong_image(state, request.image_id)
    if request.options.serve or (image.kind == "virtual_disk" and not request.options.read_only):
        repo.log.require_writable_place()
    missing = repo.missing_below(state, image.id)
    _require_bounded(repo, state, image.id)
    _require_not_half_extended(repo, state, image)
    return _planned(Draft(state, missing=missing), engine, request, owner, unsettled=True)


def _require_not_half_extended(repo: Repository, state: State, image: Image) -> None:
    """Refuse a disk that would be seen too long because of an interrupted extend.

    Nobody can take the extend back here. A raw volume is no problem: only as much of it is shown as its
    record says.
    """
    volume = state.volumes.get(image.volume_id or "")
    if volume is None or volume.extending is None or volume.format != "qcow2":
        return
    longer_bytes = repo.virtual_bytes(volume)
    if longer_bytes > volume.size_bytes:
        raise errors.ImageBroken(
            f"The volume of disk {image.id} has {longer_bytes} bytes, and its record says "
            f"{volume.size_bytes}: an extend of it was interrupted, and {repo.storage.place} cannot be "
            "written to, so the extend cannot be taken back now.",
            advice="Mount the file system so that it can be written to, then prepare the image again; or "
            "export the image, which works without that.",
            imageId=image.id,
        )


def _attach(
    engine: Engine, repo: Repository, request: PrepareImage, owner: str, weak: list[str]
) -> Committed[Attachment | None]:
    """Attach; the result is None if the chain has other weak images than those whose leases are held."""

    def plan(draft: Draft) -> Attachment | None:
        if _weak_below(draft.state, request.image_id) != weak:
            return None
        return _planned(draft, engine, request, owner)

    return commit_looking(repo, request.image_id, plan, engine.author("prepareImage"))


def _planned(
    draft: Draft, engine: Engine, request: PrepareImage, owner: str, *, unsettled: bool = False
) -> Attachment:
    return planner.attach(
        draft,
        request.image_id,
        # What is not recorded cannot be found again: the same owner gets the same id, and names of nodes.
        attachment_id=uuid_of(request.image_id, engine.host.identity.host_id, owner)
        if unsettled
        else new_uuid(),
        host=engine.host.identity,
        owner=owner,
        read_only=request.options.read_only,
        now=engine.host.clock.now(),
        unsettled=unsettled,
    )


def _require_bounded(repo: Repository, state: State, image_id: str) -> None:
    """Refuse an image that would show more than its record says, before it is attached."""
    image = strong_image(state, image_id)
    if repo.missing_of(state, image):
        return  # the plan refuses it, because volumes are missing
    chain = [volume for _, volume in state.chain(image)]
    repo.require_bounded(state, chain)
    if image.kind == "snapshot" and chain and chain[0].format == "qcow2":
        repo.require_as_recorded(chain[0])


def _leased(state: State, image_id: str) -> list[str]:
    """The leases to take while an image is attached: its size, and the weak images below it, if any."""
    image = state.images.get(image_id)
    weak = [] if image is None or not image.is_strong else _weak_below(state, image_id)
    return [size_lease(image_id), *weak]


def _weak_below(state: State, image_id: str) -> list[str]:
    image = strong_image(state, image_id)
    return [link.id for link, _ in state.chain(image) if not link.is_strong]


def _require_recorded(state: State, attachment: Attachment) -> None:
    """Refuse to give out an attachment that another call of the same owner has torn down by now."""
    if attachment.id not in state.attachments:
        raise errors.ImageInUse(
            f"The attachment of image {attachment.image_id} was torn down meanwhile.",
            advice="Prepare the image again.",
            imageId=attachment.image_id,
            owner=attachment.owner,
        )


def _answer(repo: Repository, state: State, attachment: Attachment) -> tuple[Attached, Chain]:
    # As long as an attachment exists, the volumes that it names exist, and are not merged.
    read_only = attachment.mode == "read_only"
    if read_only or attachment.id not in state.attachments:  # its volumes may have been exchanged for better
        volumes = [state.volumes[key] for key in attachment.volume_ids]
    else:
        volumes = [volume for _, volume in state.chain(state.images[attachment.image_id])]
    chain = repo.layers(state, volumes)
    # A file's path is not enough if the guest may see only a part of the file.
    bounded = chain[0].end_bytes(writable=not read_only) is not None
    single = len(chain) == 1 and chain[0].path is not None and not bounded
    attached = Attached(
        image_id=attachment.image_id,
        host_id=attachment.host.host_id,
        owner=attachment.owner,
        mode=attachment.mode,
        blockdev=guest_graph(repo.host, chain, read_only=read_only, attachment_id=attachment.id),
        path=chain[0].path if single else None,
        format=chain[0].format if single else None,
        nbd_uri=None,
        libvirt_xml=disk_xml(repo.host, chain, read_only=read_only),
    )
    return attached, chain


def teardown_image(engine: Engine, request: TeardownImage) -> Outcome:
    """End an attachment, and stop serving it; durable on return. Nothing happens if there is none.

    If the guest's QEMU has grown the disk, the disk keeps its new size.

    :raises diskyard.errors.ImageInUse: another process still serves the image, or the attachment belongs to
        another host, or a running QEMU writes to the image, or another program has left an overlay of it in
        the repository. ``force`` overrides all of these but the first.
    """
    repo = engine.connections.get(request.repository_id)
    # The server is stopped first, because it has the attachment's volumes open.
    if request.options.host_id in (None, engine.host.identity.host_id):
        owner = request.options.owner or DEFAULT_OWNER
        engine.servers.stop(repo.marker, request.image_id, owner)
    return _detach(engine, repo, request)


def _detach(engine: Engine, repo: Repository, request: TeardownImage) -> Outcome:
    options = request.options
    owner = options.owner or DEFAULT_OWNER
    host_id = options.host_id or engine.host.identity.host_id
    if repo.is_read_only:
        before = repo.state()
        strong_image(before, request.image_id)
        here = [(found.owner, found.host.host_id) for found in before.attachments_of(request.image_id)]
        if (owner, host_id) not in here:
            return Outcome(request.image_id)  # an attachment here was never recorded
        repo.log.require_writable_place()

    def plan(draft: Draft) -> None:
        ended = planner.detach(
            draft,
            request.image_id,
            host=engine.host.identity,
            owner=owner,
            of_host_id=options.host_id,
            force=options.force,
        )
        if ended and growth is not None:
            adopt(draft, request.image_id, growth)

    with nobody_serves(repo, request.image_id, host_id, owner):
        first = repo.state()
        before = _settled_before_end(engine, repo, request, first, host_id, owner)
        if not options.force:
            _require_no_overlay(repo, before, request.image_id, host_id, owner)
            _require_writer_gone(repo, before, request.image_id, host_id, owner)
        growth = growth_of_writer(repo, before, request.image_id)
        ended = repo.commit(plan, engine.author("teardownImage"))
    return Outcome(request.image_id, cleaning(repo, first, ended.state))


def _settled_before_end(
    engine: Engine, repo: Repository, request: TeardownImage, state: State, host_id: str, owner: str
) -> State:
    """End what a guest was in the midst of, and refuse while it runs.

    :returns: the newest state.
    :raises diskyard.errors.ImageInUse: the guest runs, with or without ``force``; or ``force`` is not given,
        and it cannot be asked from here.
    """
    force, here = request.options.force, engine.host.identity
    for found in state.attachments_of(request.image_id):
        if (found.host.host_id, found.owner) != (host_id, owner):
            continue
        if found.host == here:
            require_ended(engine, repo, found)
            ended = force and engine.known_guests.recall(repo, found.id) is None
        else:
            has_restarted = found.host.machine_id == here.machine_id and found.host.boot_id != here.boot_id
            ended = force or has_restarted
        if found.switching is not None:
            state = settle_guest(engine, repo, found.id, engine.author("teardownImage"), ended=ended)
    return state


def _require_writer_gone(repo: Repository, state: State, image_id: str, host_id: str, owner: str) -> None:
    for attachment in state.attachments_of(image_id):
        if (attachment.host.host_id, attachment.owner) == (host_id, owner):
            require_writer_gone(
                repo,
                state,
                attachment,
                advice="End the guest first, or pass force when nobody wants what it still writes.",
            )


def _require_no_overlay(repo: Repository, state: State, image_id: str, host_id: str, owner: str) -> None:
    """Refuse to end the attachment of a disk whose newest bytes may be in another program's overlay."""
    for found in state.attachments_of(image_id):
        if (found.host.host_id, found.owner, found.mode) != (host_id, owner, "read_write"):
            continue
        overlays = overlays_of(repo, state, found.volume_ids)
        if overlays:
            raise errors.ImageInUse(
                f"Another program made {overlays[0]} in {repo.storage.place} as an overlay of image "
                f"{image_id}: what the guest wrote last may be in it.",
                advice="Commit it into the image (virsh blockcommit, or qemu-img commit) or move it away, "
                "then tear the image down; force tears it down without that.",
                imageId=image_id,
            )
