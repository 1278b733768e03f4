"""Reading the log forward, and publishing the next entry of it.

The rules that make this safe with any number of readers, writers and trimmers, some of
them suspended for hours, are in ``docs/format.md`` under the names used here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from diskyard import errors
from diskyard.host import Host
from diskyard.host.calls import PatientLock
from diskyard.host.files import UncertainError
from diskyard.host.identity import new_nonce
from diskyard.log.checkpoints import ENTRY_AGE_KEPT_S, Checkpoints, checkpoint_of, nonces_kept
from diskyard.log.codec import Damaged, NewerMajor, decode, encode
from diskyard.log.entries import as_read, check_link, check_place, follow, nonce_of
from diskyard.model.state import State
from diskyard.model.transaction import Changes, Entry
from diskyard.repositories.interface import Copies, Repository

_RELOAD_ATTEMPTS = 100


class Published(Enum):
    """What became of a transaction."""

    STANDS = "stands"
    LOST = "lost"  # another writer had the number: plan again on what it wrote


@dataclass(frozen=True, slots=True)
class Author:
    """Who publishes: kept in each entry, for the audit trail."""

    verb: str
    actor: str
    request_digest: str | None = None


class Log:
    """The log of one connected repository, and the newest state that was read from it.

    Safe to use from several threads.

    :param entry_age_kept_s: entries younger than this are never trimmed.
    :ivar damage: what could not be read from either copy; while it is not None the
        repository is read-only and stands at the last state that could be read.
    """

    def __init__(
        self, repository: Repository, host: Host, *, entry_age_kept_s: float = ENTRY_AGE_KEPT_S
    ) -> None:
        self._repository = repository
        self._host = host
        self._lock = PatientLock()
        self._checkpoints = Checkpoints(repository, entry_age_kept_s)
        self._state: State | None = None
        self._nonces: list[str] = []
        self._twin_missing = False
        self._synced = True
        self._end_known = False
        self.newer_minor = False
        self.damage: str | None = None

    # -- reading -------------------------------------------------------------------

    def refresh(self) -> State:
        """The newest state, durable: it may be answered from and acted on irreversibly.

        :raises diskyard.errors.CorruptRecord: no state at all can be read.
        :raises diskyard.errors.NotARepository: a newer major version wrote it.
        """
        with self._lock:
            begun_at: set[int] = set()
            for _ in range(_RELOAD_ATTEMPTS):
                if self._state is None:
                    loaded = self._load_newest_checkpoint()
                    if loaded.version in begun_at and self._is_gone(loaded.version):
                        return loaded
                    begun_at.add(loaded.version)
                if self._read_forward() and not self._checkpoint_leads_past_damage():
                    if not self._synced:
                        # Its writer may not have got so far; who acts on it must know.
                        self._repository.sync_log()
                        self._synced = True
                    assert self._state is not None
                    return self._state
                self._state = None
            raise errors.RepositoryUnavailable(
                f"The log of {self._repository.place} is trimmed faster than it can be read."
            )

    def _load_newest_checkpoint(self) -> State:
        found = self._checkpoints.newest()
        self.newer_minor = found.newer
        self._nonces = list(found.checkpoint.nonces)
        self._synced = False
        self._twin_missing = True  # not known, so looked at before the next entry
        self._end_known = False
        self._state = found.state
        return found.state

    def _read_forward(self) -> bool:
        """Read the entries after the state; False if what was read may be false news.

        Trimming goes from the lowest number up. So if the entry that we began at is still
        there afterwards, none of those read after it, and not the absence of the next
        either, was the work of trimming, or of a writer that published into the gap.
        """
        assert self._state is not None
        start = state = self._state
        nonces: list[str] = []
        damage, newer, twin_missing = None, False, self._twin_missing
        while damage is None:
            copies = self._repository.get("entry", state.version + 1)
            if copies == (None, None):
                damage = self._beyond_the_end(state.version)
                if damage is None or self._repository.get("entry", state.version + 1) == (None, None):
                    break
                damage = None  # published meanwhile
                continue
            try:
                entry, entry_newer = self._valid_entry(state, copies)
                state = follow(state, entry)
            except Damaged as error:
                damage = f"entry {state.version + 1}: {error}"
                break
            nonces.append(entry.nonce)
            newer = newer or entry_newer
            twin_missing = copies[0] != copies[1]
        if not self._still_there(start):
            return False
        self.damage = damage
        self._end_known = damage is None
        self.newer_minor = self.newer_minor or newer
        self._twin_missing = twin_missing
        self._synced = self._synced and state is start
        self._nonces = nonces_kept([*self._nonces, *nonces])
        self._state = state
        return True

    def _is_gone(self, version: int) -> bool:
        """Whether the entry of the newest checkpoint is lost: trimming never gets so far.

        What comes after it cannot be told from false news, so the repository is read-only.
        """
        if self._repository.get("entry", version) != (None, None):
            return False
        self.damage = f"entry {version} is missing, and checkpoint {version} is the newest"
        return True

    def _beyond_the_end(self, version: int) -> str | None:
        """What is there with a number above the last entry: that one is not the newest there was.

        Looked for once after loading, and again while something is wrong: to this process's own
        knowledge of the end nothing can be added but the next entry.
        """
        if self._end_known:
            return None
        for kind in ("entry", "checkpoint"):
            number = max(self._repository.numbers(kind), default=0)
            if number > version:
                return f"entry {version + 1} is missing, and {kind} {number} is there"
        return None

    def _checkpoint_leads_past_damage(self) -> bool:
        """Whether what cannot be read is only history: a checkpoint has what came of it."""
        assert self._state is not None
        if self.damage is None:
            return False
        return self._checkpoints.newest().checkpoint.version > self._state.version

    def _valid_entry(self, state: State, copies: Copies) -> tuple[Entry, bool]:
        """The entry after ``state`` from whichever copy holds it."""
        damage = Damaged("neither copy can be read")
        for copy in copies:
            if not copy:
                continue
            try:
                entry, newer = decode(copy, Entry)
                check_place(entry, state.marker, state.version + 1)
                check_link(entry, state)
                return entry, newer
            except Damaged as error:
                damage = error
            except NewerMajor as error:
                raise errors.NotARepository(
                    f"{self._repository.place} was written by a newer Diskyard (format {error})."
                ) from error
        raise damage

    def _still_there(self, state: State) -> bool:
        if self._checkpoints.trimmed_past(state.version):
            return False
        copies = self._repository.get("entry", state.version)
        for copy in copies:
            if copy:
                nonce = nonce_of(copy)
                if nonce is not None:
                    return nonce == state.nonce
        # There, but unreadable, is not trimmed: check names it, and the state stands.
        return copies != (None, None)

    # -- publishing -------------------------------------------------------------------

    def publish(
        self, changes: Changes, state: State, author: Author, *, use_reserve: bool = False
    ) -> Published:
        """Publish changes that were planned on ``state``; durable when it answers STANDS.

        :param use_reserve: the changes lead to less being stored.
        :raises diskyard.errors.CorruptRecord: something cannot be read, so nothing is written.
        :raises diskyard.errors.StorageError: the outcome is unknown; nothing made for the
            changes may be removed, and they must not be published again without looking.
        """
        with self._lock:
            if self._state is not state:
                return Published.LOST  # another thread of this process was quicker
            self.require_writable()
            self._complete_twin(state)
            entry = Entry(
                marker=state.marker,
                number=state.version + 1,
                nonce=new_nonce(),
                previous=state.nonce,
                time=self._host.clock.now(),
                verb=author.verb,
                host=self._host.identity,
                actor=author.actor,
                request_digest=author.request_digest,
                changes=changes,
            )
            data = encode(entry)
            after = as_read(state, data)
            if not self._put(entry.number, data, use_reserve=use_reserve):
                return Published.LOST
            self._require_stands(entry)
            self._state = after
            self._nonces = nonces_kept([*self._nonces, entry.nonce])
            self._checkpoints.fold_if_due(self._state, self._nonces)
            return Published.STANDS

    def require_writable(self) -> None:
        """Refuse while anything is unreadable, or a newer program's fields would be lost.

        :raises diskyard.errors.CorruptRecord: names what cannot be read.
        :raises diskyard.errors.Unsupported: a newer minor version wrote the log.
        """
        if self.damage is not None:
            raise errors.CorruptRecord(
                f"The log of {self._repository.place} cannot be read: {self.damage}. "
                "The repository is read-only until it can."
            )
        if self.newer_minor:
            raise errors.Unsupported(
                f"{self._repository.place} was written by a newer Diskyard and can only be read by this one.",
                advice="Upgrade Diskyard on this host.",
            )

    def _put(self, number: int, data: bytes, *, use_reserve: bool) -> bool:
        try:
            return self._repository.put("entry", number, data, use_reserve=use_reserve)
        except UncertainError as error:
            self._state = None  # whether it stands is for the next reading to tell
            raise self._unknown(number, str(error)) from error
        except OSError as error:
            raise errors.from_os_error(error, "publishing the change; it was not made") from error

    def _require_stands(self, entry: Entry) -> None:
        """The look after publishing: no false loss, and no number used twice.

        A writer that was suspended may publish into a place that was trimmed meanwhile.
        """
        before = self._repository.get("entry", entry.number - 1)
        nonces = [nonce_of(copy) for copy in before if copy is not None]
        # What is there and cannot be read was not trimmed either.
        there = bool(nonces) and set(nonces) <= {entry.previous, None}
        if there and not self._checkpoints.trimmed_past(entry.number - 1):
            return
        if self._checkpoints.lists(entry.number, entry.nonce):
            self._state = None
            return
        self._state = None
        raise self._unknown(entry.number, "the log was trimmed while this process was suspended")

    def _unknown(self, number: int, why: str) -> errors.StorageError:
        return errors.StorageError(
            f"Whether the change (entry {number} of {self._repository.place}) was made is not known: {why}.",
            advice="Look at the image before repeating the call; newImageId makes repeating safe.",
            outcome="unknown",
        )

    def _complete_twin(self, state: State) -> None:
        """Before N+1 is written, both copies of N must be there (docs/format.md, Twins)."""
        if not self._twin_missing:
            return
        copies = self._repository.get("entry", state.version)
        whole = next((c for c in copies if c and nonce_of(c) == state.nonce), None)
        if whole is not None:
            for index, copy in enumerate(copies):
                if copy != whole:
                    self._repository.rewrite("entry", state.version, index, whole)
        self._twin_missing = False

    def read_only_because(self) -> str | None:
        """Why :meth:`require_writable` would refuse, for people; None if it would not."""
        if self.damage is not None:
            return f"the log cannot be read: {self.damage}"
        return "a newer Diskyard wrote the log" if self.newer_minor else None

    # -- mending ------------------------------------------------------------------

    def rewrite_checkpoint(self, number: int) -> bool:
        """Write both copies of a checkpoint again that cannot be read from either.

        From an older checkpoint and the entries after it. Where those are gone too, but a
        newer checkpoint can be read, no reader needs this one: it is removed, as trimming
        would have done. False if it is not there, or only it could tell the state.
        """
        with self._lock:
            if self._repository.get("checkpoint", number) == (None, None):
                return False
            rebuilt = self._rebuild(number)
            if rebuilt is not None:
                for copy in (0, 1):
                    self._repository.rewrite("checkpoint", number, copy, rebuilt)
                return True
            try:
                newest = self._checkpoints.newest()
            except errors.CorruptRecord:
                return False
            if newest.checkpoint.version <= number:
                return False
            self._repository.delete("checkpoint", number)
            return True

    def _rebuild(self, number: int) -> bytes | None:
        """The bytes of a checkpoint, made anew; None if something it needs cannot be read."""
        for older in sorted(self._repository.numbers("checkpoint"), reverse=True):
            if older >= number:
                continue
            try:
                found = self._checkpoints.read(older)
                state, newer, nonces = found.state, found.newer, list(found.checkpoint.nonces)
                while state.version < number and not newer:
                    copies = self._repository.get("entry", state.version + 1)
                    entry, newer = self._valid_entry(state, copies)
                    state = follow(state, entry)
                    nonces.append(entry.nonce)
            except Damaged:
                continue
            # A newer program's fields would be lost in what this one writes.
            return None if newer else encode(checkpoint_of(state, nonces_kept(nonces)))
        return None

    # -- what is known ------------------------------------------------------------

    def newest_known(self) -> State:
        """The newest state read or published by this process, without looking for news."""
        with self._lock:
            return self._state if self._state is not None else self.refresh()

    def nonces(self) -> list[str]:
        """The nonces of the newest entries, the newest last."""
        with self._lock:
            return list(self._nonces)
