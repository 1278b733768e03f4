"""A marker of its own for a copy of a repository, so that the copy can be used beside its original.

Each step can be repeated, and a later call finds where an earlier one was interrupted (docs/format.md, A
marker of its own).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime

from msgspec.structs import replace as replace_fields

from diskyard import errors
from diskyard.host import Host
from diskyard.host.identity import new_nonce
from diskyard.log.checkpoints import checkpoint_of, nonces_kept
from diskyard.log.codec import Damaged, NewerMajor, decode, encode
from diskyard.log.entries import NEW_MARKER, as_read, follow, place_digest
from diskyard.log.log import Log
from diskyard.log.store import LogKind
from diskyard.model.records import Attachment, CopyHold
from diskyard.model.state import State
from diskyard.model.transaction import Draft, Entry
from diskyard.operations.writers import WRITER_WORDS
from diskyard.planner.normalise import normalise, verify
from diskyard.repository.repository import lease_name, volume_name
from diskyard.storage.interface import Storage

_KINDS: tuple[LogKind, LogKind] = ("checkpoint", "entry")

SetMarker = Callable[[Storage, str, str, Host], None]


def is_done(storage: Storage) -> bool:
    """Whether a repository was given its marker, and nothing is left from the marker before."""
    return storage.marker_origin == "given" and not _has_leftovers(storage, _switch(storage))


def give_new_marker(storage: Storage, set_marker: SetMarker, actor: str, host: Host, *, cloned: bool) -> None:
    """Give a copied repository a marker of its own, or continue an interrupted attempt; durable on return.

    Holds, trackers and attachments belong to the original: the copy keeps none of them. If somebody works in
    the copy itself, it is refused.

    The original may have been copied while it was being given a marker. Then that is completed first, and
    the repository is a copy of the new original after it: the caller must check, and call this again.

    :param storage: the storage of the copy.
    :param set_marker: writes the marker into the repository's own record.
    :param cloned: another connected repository is the same except for its device. So this one is in a copy
        of a whole file system, although nothing in it says so.
    :raises diskyard.errors.RepositoryInUse: somebody is at work in the repository.
    :raises diskyard.errors.InvalidParameter: the repository is not a copy, as far as can be known.
    :raises diskyard.errors.CorruptRecord: the newest state cannot be read.
    """
    lease = storage.try_lock("create")
    if lease is None:
        raise errors.RepositoryInUse(f"Another process creates, connects or removes {storage.place}.")
    try:
        entry = None if cloned else _given(storage)
        if entry is None:
            log = Log(storage, host)
            state = log.refresh()
            entry = _begun(storage, state)
            if entry is None:
                _require_copy(storage, cloned=cloned)
                log.require_writable()
                _require_idle(storage, state, host, cloned=cloned)
                entry = _begin(storage, state, actor, host)
            _complete(storage, state, log.nonces(), entry)
        set_marker(storage, entry.marker, entry.request_digest or "", host)
        for kind in _KINDS:
            for old in sorted(storage.numbers(kind)):
                if old < entry.number:
                    storage.delete(kind, old)
    finally:
        lease.release()


def _switch(storage: Storage) -> Entry | None:
    """The entry by which the repository got its marker, if it is the oldest entry with this marker.

    Entries before it are no longer read. Once they are deleted, this entry itself may be trimmed.
    """
    for number in sorted(storage.numbers("entry")):
        for entry in _entries(storage, number):
            if entry.marker == storage.marker:
                return entry if entry.verb == NEW_MARKER else None
    return None


def _has_leftovers(storage: Storage, switch: Entry | None) -> bool:
    if switch is None:
        return False
    return any(number < switch.number for kind in _KINDS for number in storage.numbers(kind))


def _given(storage: Storage) -> Entry | None:
    """The entry by which the repository at this very location got its marker, if it is still there."""
    switch = _switch(storage)
    if switch is None or switch.request_digest != place_digest(storage.place_identity):
        return None
    return switch


def _require_copy(storage: Storage, *, cloned: bool) -> None:
    """Refuse a repository whose record says that its marker was made for it.

    :raises diskyard.errors.InvalidParameter: the record says so, and ``cloned`` is false.
    """
    if storage.marker_origin in ("created", "given") and not cloned:
        raise errors.InvalidParameter(
            f"{storage.place} is not a copy of a repository: its marker was made for this location.",
            advice="Connect it without newMarker (diskyard repo connect without --new-identity). If it is in "
            "a copy of a whole file system, connect its original on this host first.",
        )


def _begun(storage: Storage, state: State) -> Entry | None:
    """The entry after the newest one, if it gives the repository a new marker."""
    for entry in _entries(storage, state.version + 1):
        if (entry.verb, entry.previous) == (NEW_MARKER, state.nonce) and entry.marker != state.marker:
            return entry
    return None


def _begin(storage: Storage, state: State, actor: str, host: Host) -> Entry:
    """Publish the entry. From here on, the repository can only continue to its new marker."""
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
        request_digest=place_digest(storage.place_identity),
        changes=draft.changes(),
    )
    data = encode(entry)
    as_read(state, data)
    if not storage.put("entry", entry.number, data):
        raise errors.RepositoryInUse(f"Another process changes {storage.place}; no marker was changed.")
    return entry


def _complete(storage: Storage, state: State, nonces: list[str], entry: Entry) -> None:
    """Write both replicas of the entry, and its checkpoint: then nobody reads anything before it."""
    after = replace(follow(state, entry), marker=entry.marker)
    checkpoint = encode(checkpoint_of(after, nonces_kept([*nonces, entry.nonce])))
    objects: tuple[tuple[LogKind, bytes], ...] = (("entry", encode(entry)), ("checkpoint", checkpoint))
    for kind, data in objects:
        if not storage.put(kind, entry.number, data):
            for index, copy in enumerate(storage.get(kind, entry.number)):
                if copy != data:
                    storage.rewrite(kind, entry.number, index, data)


def _require_idle(storage: Storage, state: State, host: Host, *, cloned: bool) -> None:
    """Refuse a repository in which somebody works, or from which somebody uses or keeps something.

    Anything older than the repository itself came with the copy, and belongs to the original. The kernel's
    clock for files is some milliseconds late, so that rather too much than too little counts as newer. In a
    copy of a whole file system these ages tell nothing: there only work in progress is found.

    :raises diskyard.errors.RepositoryInUse: names what is in use.
    """
    used = [
        f"volume {volume.id}: {WRITER_WORDS}"
        for volume in state.volumes.values()
        if storage.volume_is_written(volume_name(volume))
    ]
    names = {lease_name(key) for key in (*state.images, *state.unready)}
    used += ["images are worked on"] if storage.locked_among(names) else []
    if not cloned:
        since_s = 0.0 if storage.made_s is None else storage.made_s
        used += [
            f"image {found.image_id} is attached for {found.owner}"
            for found in state.attachments.values()
            if _is_of_this_boot(found, host) and _wall_s(found.attached_at) > since_s
        ]
        used += [f"copy {key} elsewhere is made from it" for key in _copies_since(storage, state, since_s)]
    if used:
        raise errors.RepositoryInUse(
            f"{storage.place} is in use: {'; '.join(sorted(used))}.",
            advice="Connect it without newMarker, alone; complete the copies, end the guests, and tear down "
            "what is attached. Then disconnect it and try again.",
        )


def _is_of_this_boot(attachment: Attachment, host: Host) -> bool:
    by, here = attachment.host, host.identity
    return (by.machine_id, by.boot_id) == (here.machine_id, here.boot_id)


def _copies_since(storage: Storage, state: State, since_s: float) -> set[str]:
    """The copies that a state has holds for, if an entry newer than ``since_s`` put the hold."""
    held = {hold for key in state.held for hold in state.images[key].held_for if isinstance(hold, CopyHold)}
    found = set[str]()
    for number in sorted(storage.numbers("entry"), reverse=True) if held else ():
        for entry in _entries(storage, number):
            if entry.marker != storage.marker:
                continue
            if _wall_s(entry.time) <= since_s:
                return found
            for image in entry.all_changes().put_images:
                found |= {hold.copy_id for hold in held.intersection(image.held_for)}
    return found


def _wall_s(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _entries(storage: Storage, number: int) -> Iterator[Entry]:
    """The replicas of an entry that can be read, and were written for this number."""
    for copy in storage.get("entry", number):
        if copy:
            with contextlib.suppress(Damaged, NewerMajor):
                entry, _ = decode(copy, Entry)
                if entry.number == number:
                    yield entry
