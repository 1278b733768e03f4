"""A marker of its own for a copy of a repository, so that it can be used beside its original.

Each step can be repeated, and a later call finds where an earlier one was cut short
(docs/format.md, A marker of its own).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from msgspec.structs import replace as replace_fields

from diskyard import errors
from diskyard.host import Host
from diskyard.host.identity import new_nonce
from diskyard.log.checkpoints import checkpoint_of, nonces_kept
from diskyard.log.codec import CheckpointWritten, Damaged, NewerMajor, decode, encode
from diskyard.log.entries import NEW_MARKER, as_read, follow
from diskyard.log.log import Log
from diskyard.model.state import State
from diskyard.model.transaction import Draft, Entry
from diskyard.opened import lease_name
from diskyard.planner.normalise import normalise, verify
from diskyard.repositories.interface import LogKind, Repository

_KINDS: tuple[LogKind, LogKind] = ("checkpoint", "entry")


def is_its_own(storage: Repository) -> bool:
    """Whether the log of a place begins with a marker that was given to this very place."""
    entry = _entry(storage, min(storage.numbers("entry"), default=0))
    return (
        entry is not None
        and (entry.marker, entry.verb) == (storage.marker, NEW_MARKER)
        and entry.request_digest == _digest(storage)
    )


def has_others_objects(storage: Repository) -> bool:
    """Whether the log has objects of another marker than the place's: what a change of it has left."""
    markers = {_marker_of(storage, kind, min(storage.numbers(kind), default=0)) for kind in _KINDS}
    return bool(markers - {None, storage.marker})


def give_new_marker(
    storage: Repository, set_marker: Callable[[Repository, str, Host], None], actor: str, host: Host
) -> None:
    """Give a place that was copied a marker of its own, or go on with that; durable on return.

    What others keep for the original, and what is attached, is the original's: no hold, no tracker
    and no attachment is left in the copy.

    :param set_marker: writes the marker into the place's own record.
    :raises diskyard.errors.RepositoryInUse: somebody is at work in it.
    :raises diskyard.errors.CorruptRecord: its newest state cannot be read.
    """
    lease = storage.try_lock("create")
    if lease is None:
        raise errors.RepositoryInUse(f"Another process creates, connects or removes {storage.place}.")
    try:
        log = Log(storage, host)
        state = log.refresh()
        entry = _begun(storage, state)
        if entry is None and not has_others_objects(storage):
            log.require_writable()
            _require_idle(storage, state)
            entry = _begin(storage, state, actor, host)
        if entry is not None:
            _complete(storage, state, log.nonces(), entry)
            number, marker = entry.number, entry.marker
        else:  # its record has the new marker: what is left is to remove what has the old one
            number, marker = max(storage.numbers("checkpoint")), storage.marker
        set_marker(storage, marker, host)
        for kind in _KINDS:
            for old in sorted(storage.numbers(kind)):
                if old < number and _marker_of(storage, kind, old) != marker:
                    storage.delete(kind, old)
    finally:
        lease.release()


def _begun(storage: Repository, state: State) -> Entry | None:
    """The entry after the newest, if it gives the place a new marker."""
    entry = _entry(storage, state.version + 1)
    if entry is None or entry.verb != NEW_MARKER or entry.previous != state.nonce:
        return None
    return None if entry.marker == state.marker else entry


def _begin(storage: Repository, state: State, actor: str, host: Host) -> Entry:
    """Publish the entry; from here on the place can only go on to its new marker."""
    nonce = new_nonce()
    draft = Draft(state, nonce)
    for image_id in state.held:
        draft.put_image(replace_fields(draft.state.images[image_id], held_for=()))
    for attachment_id in state.attachments:
        draft.remove_attachment(attachment_id)
    normalise(draft)
    verify(draft)
    entry = Entry(
        marker=new_nonce(),
        number=state.version + 1,
        nonce=nonce,
        previous=state.nonce,
        time=host.clock.now(),
        verb=NEW_MARKER,
        host=host.identity,
        actor=actor,
        request_digest=_digest(storage),
        changes=draft.changes(),
    )
    data = encode(entry)
    as_read(state, data)
    if not storage.put("entry", entry.number, data):
        raise errors.RepositoryInUse(f"Somebody else changes {storage.place}; no marker was changed.")
    return entry


def _complete(storage: Repository, state: State, nonces: list[str], entry: Entry) -> None:
    """Both copies of the entry, and its checkpoint: nobody reads what is before it any more."""
    after = replace(follow(state, entry), marker=entry.marker)
    checkpoint = encode(checkpoint_of(after, nonces_kept([*nonces, entry.nonce])))
    objects: tuple[tuple[LogKind, bytes], ...] = (("entry", encode(entry)), ("checkpoint", checkpoint))
    for kind, data in objects:
        if not storage.put(kind, entry.number, data):
            for index, copy in enumerate(storage.get(kind, entry.number)):
                if copy != data:
                    storage.rewrite(kind, entry.number, index, data)


def _require_idle(storage: Repository, state: State) -> None:
    names = {lease_name(key) for key in (*state.images, *state.unready)}
    if storage.locked_among(names):
        raise errors.RepositoryInUse(f"Somebody works on images in {storage.place}.")


def _marker_of(storage: Repository, kind: LogKind, number: int) -> str | None:
    for copy in _copies(storage, kind, number):
        try:
            if kind == "entry":
                return decode(copy, Entry)[0].marker
            return decode(copy, CheckpointWritten)[0].marker
        except (Damaged, NewerMajor):
            continue
    return None


def _entry(storage: Repository, number: int) -> Entry | None:
    for copy in _copies(storage, "entry", number):
        try:
            return decode(copy, Entry)[0]
        except (Damaged, NewerMajor):
            continue
    return None


def _copies(storage: Repository, kind: LogKind, number: int) -> Iterator[bytes]:
    return (copy for copy in storage.get(kind, number) if copy)


def _digest(storage: Repository) -> str:
    """What tells this place from every copy of it, as an entry can keep it."""
    return hashlib.blake2b(storage.place_identity.encode(), digest_size=16).hexdigest()
