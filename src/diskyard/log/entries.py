"""What makes an entry trustworthy: it belongs to this repository, and its records fit together."""

from __future__ import annotations

import hashlib

from diskyard import errors
from diskyard.log.codec import ENTRY_LIMIT_BYTES, Damaged, NewerMajor, decode
from diskyard.model.soundness import flaw_after
from diskyard.model.state import State
from diskyard.model.transaction import Entry, apply

#: The verb of an entry that gives a copy of a repository a marker of its own.
NEW_MARKER = "newMarker"


def place_digest(place_identity: str) -> str:
    """The digest that distinguishes a location from every copy of it; the record and the log keep it."""
    return hashlib.blake2b(place_identity.encode(), digest_size=16).hexdigest()


def check_place(entry: Entry, marker: str, number: int) -> None:
    """Refuse an entry that was written for another repository or number.

    :raises Damaged: the entry was written for another one.
    """
    if entry.marker != marker:
        if entry.verb == NEW_MARKER:
            raise Damaged(
                "it gives this repository a marker of its own: disconnect it and connect it again, with "
                "newMarker if that was interrupted"
            )
        raise Damaged("it belongs to another repository")
    if entry.number != number:
        raise Damaged(f"it is entry {entry.number}")


def check_link(entry: Entry, state: State) -> None:
    """Refuse an entry whose predecessor is not the last entry.

    :raises Damaged: the last entry is another one.
    """
    if entry.previous != state.nonce:
        raise Damaged("it does not follow the entry before it")


def follow(state: State, entry: Entry) -> State:
    """The state after an entry that was read.

    :raises Damaged: the entry cannot be right: two of its authors change one record, it removes what is
        not there, or it leaves records that do not fit together.
    """
    changes = entry.all_changes()
    if entry.also:
        ids = changes.ids()
        if len(set(ids)) < len(ids):
            raise Damaged("two of its authors change one record")
    try:
        after = apply(state, entry)
    except KeyError as error:
        raise Damaged(f"it removes {error}, which does not exist") from error
    flaw = flaw_after(state, after, changes)
    if flaw is not None:
        raise Damaged(f"its records do not fit together: {flaw}")
    return after


def as_read(state: State, data: bytes) -> State:
    """The state after an entry that is about to be published, as every reader will see it.

    :raises diskyard.errors.InternalError: no reader would accept the entry.
    """
    try:
        if len(data) > ENTRY_LIMIT_BYTES:
            raise Damaged(f"it has {len(data)} bytes")
        return follow(state, decode(data, Entry)[0])
    except Damaged as error:
        raise errors.InternalError(f"A change that would be damage was not published: {error}.") from error


def nonce_of(copy: bytes, marker: str, number: int) -> str | None:
    """The nonce of an entry; None unless the bytes are a whole entry with this marker and number."""
    try:
        entry, _ = decode(copy, Entry)
        check_place(entry, marker, number)
    except (Damaged, NewerMajor):
        return None
    return entry.nonce
