"""A log: reading it forward, and publishing its next entry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diskyard import errors
from diskyard.host import Host
from diskyard.host.publishing import UncertainError
from diskyard.log.checkpoints import ENTRY_AGE_KEPT_S, checkpoint_of, nonces_kept
from diskyard.log.codec import Damaged, encode
from diskyard.log.entries import as_read, follow
from diskyard.log.index.keeper import IndexKeeper
from diskyard.log.reading import LogReader
from diskyard.log.store import LogStore
from diskyard.log.turns import Turns
from diskyard.model.records import EntryId, entry_id, split_entry_id
from diskyard.model.state import State
from diskyard.model.transaction import Changes, Entry, Frees, Part


@dataclass(frozen=True, slots=True)
class Author:
    """Who publishes an entry. Each entry keeps it, for the audit trail."""

    verb: str
    actor: str
    request_digest: str | None = None

    def part(self, changes: Changes) -> Part:
        """This author's part of an entry."""
        digest = self.request_digest
        return Part(verb=self.verb, actor=self.actor, request_digest=digest, changes=changes)


def unknown_outcome(why: str, what: str = "the change") -> errors.UnknownOutcome:
    """The StorageError for a change that may have been made."""
    return errors.unknown_outcome(errors.StorageError)(
        f"It is not known whether {what} was made: {why}.",
        advice="Look at the image before you repeat the call; newImageId makes repeating safe.",
    )


@contextmanager
def _not_made() -> Iterator[None]:
    """A context that turns an OSError into an error saying that nothing was published."""
    try:
        yield
    except UncertainError:
        raise
    except OSError as error:
        raise errors.from_os_error(error, "publishing the change; it was not made") from error


class Log(LogReader):
    """The log of one connected repository, and the newest state that was read from it.

    Safe to use from several threads.

    :param entry_age_kept_s: entries younger than this are never trimmed.
    :param keeper: keeps this host's index of the log; by default there is none.
    :ivar writers: the threads of this process that publish. One at a time publishes for all that wait.
    """

    def __init__(
        self,
        store: LogStore,
        host: Host,
        *,
        entry_age_kept_s: float = ENTRY_AGE_KEPT_S,
        keeper: IndexKeeper | None = None,
    ) -> None:
        super().__init__(store, entry_age_kept_s=entry_age_kept_s, keeper=keeper)
        self._host = host
        self.writers: Turns[Any] = Turns(must_stay=True)

    # -- publishing -------------------------------------------------------------------

    def publish(
        self, parts: Sequence[Part], state: State, nonce: str, *, frees: Frees = Frees.NOTHING
    ) -> State | None:
        """Publish changes that were planned on ``state`` as one entry.

        :param parts: one or more; no two of them may name the same record.
        :param nonce: a fresh one for each attempt; the changes may refer to it.
        :param frees: how much space the changes free, which decides how much of the reserve they may use. Of
            several parts, the one that frees least counts.
        :returns: the state after the entry, durable. None if another writer was first: plan again on what it
            wrote.
        :raises diskyard.errors.CorruptRecord: something cannot be read, so nothing is written.
        :raises diskyard.errors.StorageError: if its outcome is unknown, nothing made for the changes may be
            removed, and they must not be published again before the log was read. Any other error means
            that nothing was published.
        """
        published = self._publish(parts, state, nonce, frees=frees)
        self._watching.tell()
        return published

    def _publish(self, parts: Sequence[Part], state: State, nonce: str, *, frees: Frees) -> State | None:
        with self._lock:
            if self._state is not state:
                return None  # another thread of this process was quicker
            self.require_writable()
            with _not_made():
                self._complete_replica(state)
            entry = self._entry(parts, state, nonce)
            data = encode(entry)
            after = as_read(state, data)
            if not self._put(entry.number, data, frees=frees):
                return None
            if not self._require_stands(entry):
                return after
            self._state, self._newest = after, data
            self._replica_missing = bool(frees)  # on a full storage one copy is enough
            self._nonces = nonces_kept([*self._nonces, entry.nonce])
            self._watching.note(entry, state, after)
            after = self._stands()
            self._checkpoints.fold_if_due(after, self._nonces)
            return after

    def _entry(self, parts: Sequence[Part], state: State, nonce: str) -> Entry:
        first = parts[0]
        return Entry(
            marker=state.marker,
            number=state.version + 1,
            nonce=nonce,
            previous=state.nonce,
            time=self._host.clock.now(),
            verb=first.verb,
            host=self._host.identity,
            actor=first.actor,
            request_digest=first.request_digest,
            changes=first.changes,
            also=tuple(parts[1:]),
        )

    def _put(self, number: int, data: bytes, *, frees: Frees) -> bool:
        try:
            with _not_made():
                return self._store.put("entry", number, data, frees=frees)
        except UncertainError as error:
            self._state = None  # the next reading finds out whether the entry stands
            raise self._unknown(number, str(error)) from error

    def _require_stands(self, entry: Entry) -> bool:
        """The check after publishing: no false loss, and no number used twice.

        A writer that was suspended may publish where the log has been trimmed meanwhile.

        :returns: whether the entry is the newest. If not, it stands, and others came after it.
        """
        try:
            if self._still_follows(entry):
                return True
            listed = self._checkpoints.lists(entry.number, entry.nonce)
            follows_nothing = not listed and self._take_back(entry)
        except (OSError, errors.DiskyardError) as error:
            self._state = None
            raise self._unknown(entry.number, f"it could not be checked: {error}") from error
        self._state = None
        if listed:
            return False
        if follows_nothing:
            raise errors.CorruptRecord(
                f"The history of {self._store.place} was replaced while this change was published; "
                "it was not made.",
                advice="It was restored, or its storage went back to an older state: look at what it holds.",
            )
        raise self._unknown(entry.number, "the log was trimmed while this process was suspended")

    def _still_follows(self, entry: Entry) -> bool:
        """Whether the entry before a published one is still there, unchanged."""
        there = self._is_entry(entry.number - 1, entry.previous)
        return there and not self._checkpoints.trimmed_past(entry.number - 1)

    def _take_back(self, entry: Entry) -> bool:
        """Remove an entry of this process that follows no other; return whether it did.

        No checkpoint is at or above the entry before it, so that entry was not trimmed; and all other
        entries are below that one. So the log was put back to an older state meanwhile. Nobody can have
        built on this process's entry, and nobody can publish while it exists.
        """
        others = set(self._store.numbers("entry")) - {entry.number}
        checkpoints = self._store.numbers("checkpoint")
        if max(others, default=0) >= entry.number - 1 or max(checkpoints, default=0) >= entry.number - 1:
            return False
        if not self._is_entry(entry.number, entry.nonce):
            return False
        self._store.delete("entry", entry.number)
        return True

    def _unknown(self, number: int, why: str) -> errors.UnknownOutcome:
        return unknown_outcome(why, f"the change (entry {number} of {self._store.place})")

    def _complete_replica(self, state: State) -> None:
        """Write the missing replica of entry N before N+1 is written (docs/format.md, Replicas)."""
        if not self._replica_missing:
            return
        copies = self._store.get("entry", state.version)
        whole = next((c for c in copies if c and self._nonce_of(c, state.version) == state.nonce), None)
        if whole is not None:
            for index, copy in enumerate(copies):
                if copy != whole:
                    self._store.rewrite("entry", state.version, index, whole)
        self._replica_missing = False

    # -- mending ------------------------------------------------------------------

    def stray(self) -> EntryId | None:
        """The one entry above the newest readable one, if there is a gap between them.

        Either a process published it onto a log that had just been put back to an older state, and ended
        before it could take the entry back; or the entries between are lost. None if there is more above
        the newest entry than this one, or if this one cannot be read.
        """
        with self._lock:
            if self.damage is None or self._state is None or self.replaced is not None:
                return None
            newest = self._state.version
            above = [number for number in self._store.numbers("entry") if number > newest]
            is_alone = len(above) == 1 and self._store.newest_number("checkpoint") <= newest
            if not is_alone or above[0] == newest + 1:
                return None
            nonces = self._nonces_there(above[0])
            nonce = nonces.pop() if len(nonces) == 1 else None
            return None if nonce is None else entry_id(above[0], nonce)

    def remove_stray(self, entry: EntryId) -> bool:
        """Remove the entry that :meth:`stray` returns; False if it returns another. Durable on return."""
        with self._lock:
            if self.stray() != entry:
                return False
            self._store.delete("entry", split_entry_id(entry)[0])
            self._state = None
            return True

    def rewrite_checkpoint(self, number: int) -> bool:
        """Write both replicas of a checkpoint again, if neither can be read.

        It is rebuilt from an older checkpoint and the entries after that. If those are gone, but a newer
        checkpoint can be read, no reader needs this one: it is removed, as trimming would have done.

        :returns: False if it is not there, or if it is the newest and cannot be rebuilt.
        """
        with self._lock:
            if self._store.get("checkpoint", number) == (None, None):
                return False
            rebuilt = self._rebuild(number)
            if rebuilt is not None:
                for copy in (0, 1):
                    self._store.rewrite("checkpoint", number, copy, rebuilt)
                return True
            try:
                newest = self._checkpoints.newest()
            except errors.CorruptRecord:
                return False
            if newest.checkpoint.version <= number:
                return False
            self._store.delete("checkpoint", number)
            return True

    def _rebuild(self, number: int) -> bytes | None:
        """Rebuild the bytes of a checkpoint; None if something that this needs cannot be read."""
        for older in sorted(self._store.numbers("checkpoint"), reverse=True):
            if older >= number:
                continue
            try:
                found = self._checkpoints.read(older)
                state, newer, nonces = found.state, found.newer, list(found.checkpoint.nonces)
                while state.version < number and not newer:
                    copies = self._store.get("entry", state.version + 1)
                    entry, newer, _ = self._valid_entry(state, copies)
                    state = follow(state, entry)
                    nonces.append(entry.nonce)
            except Damaged:
                continue
            # A newer program's fields would be lost in what this program writes.
            return None if newer else encode(checkpoint_of(state, nonces_kept(nonces)))
        return None
