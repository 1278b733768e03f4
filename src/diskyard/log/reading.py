"""Reading a log forward, to the newest state.

The rules that make this safe with any number of readers, writers and trimmers, some of
them suspended for hours, are in ``docs/format.md`` under the names used here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diskyard import errors
from diskyard.host.calls import PatientLock
from diskyard.log.checkpoints import ENTRY_AGE_KEPT_S, Checkpoints, nonces_kept, written_by_newer
from diskyard.log.codec import Damaged, NewerMajor, decode
from diskyard.log.entries import check_link, check_place, follow, nonce_of
from diskyard.log.history import has_entry, replaced_since
from diskyard.log.index.keeper import IndexKeeper
from diskyard.log.store import Copies, LogStore
from diskyard.log.turns import Turns, Waiter, fail_all
from diskyard.log.watching import Listener, Watching
from diskyard.model.records import EntryId
from diskyard.model.state import State
from diskyard.model.transaction import Entry

_RELOAD_ATTEMPTS = 100


class LogReader:
    """The newest state that was read from a log.

    Safe to use from several threads.

    :param entry_age_kept_s: entries younger than this are never trimmed.
    :param keeper: keeps this host's index of the log; by default there is none.
    :ivar damage: what cannot be read from either replica. While it is not None, the repository is
        read-only and stays at the last state that could be read.
    :ivar replaced: how the log differs from what this process knew of it, once it does: it was
        restored from a backup, or its storage failed over to an older state. What this process has
        answered may be undone, and volumes that the log does not name may be acknowledged images of
        others. So the repository is read-only here until it is connected again.
    """

    def __init__(
        self,
        store: LogStore,
        *,
        entry_age_kept_s: float = ENTRY_AGE_KEPT_S,
        keeper: IndexKeeper | None = None,
    ) -> None:
        self._store = store
        self._keeper = keeper or IndexKeeper(None)
        self._lock = PatientLock()
        self._checkpoints = Checkpoints(store, entry_age_kept_s)
        self._readers: Turns[Waiter[State]] = Turns(must_stay=False)
        self._watching = Watching()
        self._state: State | None = None
        self._newest = b""  # the bytes of the state's entry, if they are known
        self._nonces: list[str] = []
        self._replica_missing = False
        self._synced = True
        self._end_known = False
        self._known: State | None = None  # the newest state that this process has answered
        self.newer_minor = False
        self.damage: str | None = None
        self.replaced: str | None = None

    def refresh(self) -> State:
        """The newest state. It is durable: it can be answered, and irreversible actions can rest on it.

        Threads that call this during a read share the next read.

        :raises diskyard.errors.CorruptRecord: no state at all can be read.
        :raises diskyard.errors.NotARepository: a newer major version wrote the log.
        :raises diskyard.errors.RepositoryUnavailable: the storage does not answer, or the log is trimmed
            faster than it can be read.
        """
        wanted: Waiter[State] = Waiter()
        self._readers.take_part(wanted, self._refresh_for)
        self._watching.tell()
        return wanted.answer()

    def _refresh_for(self, readers: Sequence[Waiter[State]]) -> None:
        try:
            state = self._refresh()
        except Exception as error:  # noqa: BLE001 - raised again in the threads that wait
            fail_all(readers, error)
            return
        for reader in readers:
            reader.succeed(state)

    def _refresh(self) -> State:
        with self._lock:
            self._forget_if_bad()
            if self._state is None:
                self._load_index()
            begun_at: set[int] = set()
            for _ in range(_RELOAD_ATTEMPTS):
                if self._state is None:
                    loaded = self._load_newest_checkpoint()
                    if loaded.version in begun_at and self._is_gone(loaded.version):
                        self._watching.stands(loaded)
                        return loaded
                    begun_at.add(loaded.version)
                if self._went_forward() and not self._checkpoint_leads_past_damage():
                    if not self._synced:
                        # Its writer may not have made it durable yet, and callers act on it.
                        self._store.sync_log()
                        self._synced = True
                    return self._stands()
                self._state = None
            raise errors.RepositoryUnavailable(
                f"The log of {self._store.place} is trimmed faster than it can be read."
            )

    def _load_newest_checkpoint(self) -> State:
        found = self._checkpoints.newest()
        self._begin_at(found.state, found.checkpoint.nonces, newer=found.newer)
        return found.state

    def _begin_at(self, state: State, nonces: Sequence[str], *, newer: bool) -> None:
        self.newer_minor = newer
        self._nonces = list(nonces)
        self._synced = False
        self._replica_missing = True  # not known, so checked before the next entry
        self._end_known = False
        self._state, self._newest = state, b""
        self._watching.restart()

    def _load_index(self) -> None:
        """Begin at the state in this host's index, if the log still has that state's entry."""
        found = self._keeper.load()
        if found is None:
            return
        there = self._nonces_there(found.state.version) - {None}
        if there == {found.state.nonce} and self._checkpoints.is_near_to(found.state):
            self._begin_at(found.state, found.nonces, newer=False)
        else:
            self._keeper.reject()

    def _forget_if_bad(self) -> bool:
        """Drop a state that rests on an unreadable index. Return whether it was one."""
        if self._state is None or not self._keeper.give_up_if_bad(self._state):
            return False
        self._state = None
        return True

    def _went_forward(self) -> bool:
        """As :meth:`_read_forward`, but also False if the index that it began on cannot be read."""
        try:
            return self._read_forward()
        except errors.RepositoryUnavailable:
            if self._forget_if_bad():
                return False
            raise

    def _stands(self) -> State:
        """Record that what was read or published is durable; the state."""
        assert self._state is not None
        if self.damage is None:  # otherwise this may be an older state: the newest that can be read
            self.replaced = self.replaced or replaced_since(self._known, self._state, self._nonces)
            self._known = self._state
        if self._is_relied_on():
            self._state = self._keeper.stands(self._state, self._nonces)
        self._watching.stands(self._state)
        return self._state

    def close(self) -> None:
        """Leave this host's index of the log as it should be. The log can still be used.

        This neither uses the repository's storage, nor waits for threads that do.
        """
        state, nonces = self._state, list(self._nonces)
        in_step = state is not None and nonces[-1:] == [state.nonce]
        self._keeper.close(state if in_step and self._is_relied_on() else None, nonces)

    def _is_relied_on(self) -> bool:
        """Whether what was read may be kept in the index."""
        return self.damage is None and not self.newer_minor and self.replaced is None

    def has_entry(self, entry: EntryId) -> bool | None:
        """Whether an entry is in the history of the newest known state; None if that is not known."""
        state = self.newest_known()
        with self._lock:
            return has_entry(state, self._nonces, entry)

    def _read_forward(self) -> bool:
        """Read the entries after the state. False if what was read may be false news.

        Trimming removes the lowest numbers first. So if the entry that this began at is still there
        afterwards, neither the entries that were read after it, nor the absence of the next one, are the
        work of trimming, or of a writer that published into the gap.
        """
        assert self._state is not None
        start = state = self._state
        steps: list[tuple[Entry, State, State]] = []
        newest = self._newest
        damage, newer, replica_missing = None, False, self._replica_missing
        while damage is None:
            copies = self._store.get("entry", state.version + 1)
            if copies == (None, None):
                damage = self._beyond_the_end(state.version)
                if damage is None or self._store.get("entry", state.version + 1) == (None, None):
                    break
                damage = None  # published meanwhile
                continue
            try:
                entry, entry_newer, newest = self._valid_entry(state, copies)
                steps.append((entry, state, follow(state, entry)))
            except Damaged as error:
                damage = f"entry {state.version + 1}: {error}"
                break
            state = steps[-1][-1]
            newer = newer or entry_newer
            replica_missing = copies[0] != copies[1]
        if not self._still_there(start):
            return False
        self.damage = damage
        self._end_known = damage is None
        self.newer_minor = self.newer_minor or newer
        self._replica_missing = replica_missing
        self._synced = self._synced and state is start
        if steps:
            self._nonces = nonces_kept([*self._nonces, *(entry.nonce for entry, _, _ in steps)])
            self._state, self._newest = state, newest
            for step in steps:
                self._watching.note(*step)
        return True

    def _is_gone(self, version: int) -> bool:
        """Whether the newest checkpoint's own entry is lost; trimming never removes that one.

        The entries after it cannot be distinguished from false news, so the repository is read-only.
        """
        if self._store.get("entry", version) != (None, None):
            return False
        self.damage = f"entry {version} is missing, and checkpoint {version} is the newest"
        return True

    def _beyond_the_end(self, version: int) -> str | None:
        """An object with a number above the last entry: it shows that entries are missing.

        This checks once after loading, and again while something is wrong. After that this process knows
        the end of the log, to which only the next entry can be added.
        """
        if self._end_known:
            return None
        for kind in ("entry", "checkpoint"):
            number = self._store.newest_number(kind)
            if number > version:
                return f"entry {version + 1} is missing, and {kind} {number} is there"
        return None

    def _checkpoint_leads_past_damage(self) -> bool:
        """Whether only history cannot be read: a newer checkpoint has its outcome."""
        assert self._state is not None
        if self.damage is None:
            return False
        return self._checkpoints.newest().checkpoint.version > self._state.version

    def _valid_entry(self, state: State, copies: Copies) -> tuple[Entry, bool, bytes]:
        """The entry after ``state`` from whichever replica is valid, and that replica's bytes.

        If both are valid and differ, the second was there first: docs/format.md, Which replica.
        """
        damage: Damaged | NewerMajor = Damaged("neither replica can be read")
        for copy in reversed(copies):
            if not copy:
                continue
            try:
                entry, newer = decode(copy, Entry)
                check_place(entry, state.marker, state.version + 1)
                check_link(entry, state)
                return entry, newer, copy
            except (Damaged, NewerMajor) as error:
                damage = error
        if isinstance(damage, NewerMajor):
            raise written_by_newer(self._store.place, damage) from damage
        raise damage

    def _still_there(self, state: State) -> bool:
        if self._checkpoints.trimmed_past(state.version):
            return False
        return self._is_entry(state.version, state.nonce)

    def _is_entry(self, number: int, nonce: str) -> bool:
        """Whether a known entry is still there, unchanged, in one replica at least."""
        there = self._nonces_there(number)
        # An entry that is there but unreadable was not trimmed: check reports it, and the state stands.
        return nonce in there or there == {None}

    def _nonces_there(self, number: int) -> set[str | None]:
        """The nonces of an entry's replicas; None for a replica that is not of this marker and number."""
        copies = self._store.get("entry", number)
        return {self._nonce_of(copy, number) for copy in copies if copy is not None}

    def _nonce_of(self, copy: bytes, number: int) -> str | None:
        """The nonce of an entry; mostly it is the one that was read last."""
        newest = self._state if self._state is not None and self._state.version == number else None
        if newest is not None and copy == self._newest:
            return newest.nonce
        nonce = nonce_of(copy, self._store.marker, number)
        if newest is not None and nonce == newest.nonce:
            self._newest = copy
        return nonce

    # -- what is known ------------------------------------------------------------

    def newest_known(self) -> State:
        """The newest state that this process read or published; it reads the log only if there is none."""
        with self._lock:
            self._forget_if_bad()
            state = self._state
        return self.refresh() if state is None else state

    def watch(self, listener: Listener) -> Callable[[], None]:
        """Call a listener for every entry, read or published, that moves the state forward.

        It is called in the order of the log, once for each entry from now on, when that entry is durable,
        in a thread that reads or publishes. If the state was read again from a checkpoint that skips
        entries, it is called without an entry. It must be quick, since a caller waits for it, and must not
        commit; it may read the log. An exception in it is reported as one that ends a thread would be,
        and harms nothing else.

        :returns: a function that ends the calls.
        """
        return self._watching.listen(listener)

    def nonces(self) -> list[str]:
        """The nonces of the newest entries, the newest last."""
        with self._lock:
            return list(self._nonces)

    def require_writable(self) -> None:
        """Refuse while something is unreadable, a newer program's fields would be lost, or all is read-only.

        :raises diskyard.errors.CorruptRecord: names what cannot be read; or the history was replaced.
        :raises diskyard.errors.Unsupported: a newer minor version wrote the log.
        :raises diskyard.errors.StorageError: the storage is read-only.
        """
        self.require_whole()
        self.require_writable_place()

    def require_whole(self) -> None:
        """Refuse to rely on a log that cannot be read completely. Read-only storage is allowed."""
        if self.replaced is not None:
            raise errors.CorruptRecord(
                f"The history of {self._store.place} was replaced: {self.replaced}.",
                advice="It was restored, or its storage went back to an older state. Look at what it holds "
                "now; then disconnect it and connect it again to go on from there.",
            )
        if self.damage is not None:
            raise errors.CorruptRecord(
                f"The log of {self._store.place} cannot be read: {self.damage}. "
                "The repository is read-only until it can be."
            )
        if self.newer_minor:
            raise errors.Unsupported(
                f"{self._store.place} was written by a newer Diskyard and can only be read by this one.",
                advice="Upgrade Diskyard on this host.",
            )

    def require_writable_place(self) -> None:
        """Refuse storage that cannot be written to now.

        :raises diskyard.errors.StorageError: says why.
        """
        why = self._store.read_only_because()
        if why is not None:
            raise errors.StorageError(
                f"Nothing can be written to {self._store.place}: {why}.",
                advice="Mount the file system so that it can be written to, or use a user who may write "
                "there, then try again. Reading and exporting work without that.",
            )

    def read_only_because(self) -> str | None:
        """Why :meth:`require_writable` would refuse, for people; None if it would not."""
        if self.replaced is not None:
            return f"the history was replaced: {self.replaced}; connect the repository again"
        if self.damage is not None:
            return f"the log cannot be read: {self.damage}"
        if self.newer_minor:
            return "a newer Diskyard wrote the log"
        return self._store.read_only_because()
