"""When a log's index is read and written: it never blocks readers or publishers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

from immutables import Map

from diskyard.log.index.local import Indexed, LocalIndex, is_bad
from diskyard.model.state import State
from diskyard.model.tables import InMemory, Records, Table

RECORDS_LEAST = 1000  # a checkpoint with fewer is read in a few milliseconds
ENTRIES_BETWEEN = 128  # reading them takes some 30 ms; so does writing them, if there are very many images
ENTRIES_AT_CLOSE = 32
_WRITTEN_WITHIN_S = 60.0  # a state directory that does not answer keeps no process from ending


class IndexKeeper:
    """Keeps a log's index near the end of the log, and the log's states on top of what is written.

    Safe to use from several threads. No method uses the repository's storage.

    :param index: None if there is none; then nothing is done.
    :param records_least: a state with fewer images and volumes is not worth an index.
    :param entries_between: how many entries the index may be behind the log.
    :param entries_at_close: the same after :meth:`close`; a command that adds one entry writes no index.
    """

    def __init__(
        self,
        index: LocalIndex | None,
        *,
        records_least: int = RECORDS_LEAST,
        entries_between: int = ENTRIES_BETWEEN,
        entries_at_close: int = ENTRIES_AT_CLOSE,
    ) -> None:
        self._index = index
        self._entries_between = entries_between
        self._entries_at_close = entries_at_close
        self._records_least = records_least
        self._lock = threading.RLock()
        self._saved_at: int | None = None
        self._saving: _Saving | None = None
        self._saved: list[_Saving] = []  # since the log's state was last put on top of a written one

    def load(self) -> Indexed | None:
        """The state in the index, if there is an index that can be read."""
        with self._lock:
            found = None if self._index is None else self._index.load()
            self._saved_at = None if found is None else found.state.version
            return found

    def reject(self) -> None:
        """Throw the index away: what was loaded does not belong to this log, or cannot be read."""
        with self._lock:
            self._saved_at = None
            if self._index is not None:
                self._index.drop()

    def give_up_if_bad(self, state: State) -> bool:
        """Whether a state rests on an index that cannot be read. If so, there is no index from now on."""
        if not is_bad(state):
            return False
        with self._lock:
            self.reject()
            self._index = self._saving = None
        return True

    def stands(self, state: State, nonces: Sequence[str]) -> State:
        """The log has moved to a durable state: return the same state, on top of the newest index.

        The index is written if enough entries were added since it was last written.
        """
        is_small = len(state.images) + len(state.volumes) < self._records_least
        if self._index is None or state.closed or is_small:
            return state
        with self._lock:
            state = self._on_newest(_on_tables(state))
            self._saved.clear()
            if self._saving is None and self._distance(state) >= self._entries_between:
                self._save(self._index, state, nonces)
            return state

    def _save(self, index: LocalIndex, state: State, nonces: Sequence[str]) -> None:
        """Begin to write a state. If that fails there is no error: the older index stays."""
        self._saved_at = state.version  # also if it fails: trying again at each entry is no better
        saving = _Saving(index, state, nonces)
        # Starting a thread may fail. The caller may have published, and its change must be answered.
        with contextlib.suppress(RuntimeError):
            saving.start()
            self._saving = saving

    def _distance(self, state: State) -> int:
        """How many entries the index is behind the log."""
        return self._entries_between if self._saved_at is None else state.version - self._saved_at

    def _on_newest(self, state: State) -> State:
        if self._saving is not None and not self._saving.is_alive():
            self._saved.append(self._saving)
            self._saving = None
        for saving in self._saved:
            if saving.saved is not None:
                state = _moved(state, saving.state, saving.saved)
        return state

    def close(self, state: State | None, nonces: Sequence[str]) -> None:
        """Leave an index near the log's end for the next process that connects; none if the log is closed.

        :param state: the log's newest; None if it cannot be relied on.
        """
        with self._lock:
            if self._saving is not None:
                self._saving.join(_WRITTEN_WITHIN_S)
                if self._saving.is_alive():
                    return
            if self._index is None or state is None:
                return
            if state.closed:
                self._index.drop()
            elif self._saved_at is None:
                self.stands(state, nonces)
            elif self._distance(state) >= self._entries_at_close:
                self._save(self._index, self._on_newest(state), nonces)
            if self._saving is not None:
                self._saving.join(_WRITTEN_WITHIN_S)


class _Saving(threading.Thread):
    """A thread that writes one state.

    :ivar saved: the same state, with its records in the index; None if it was not written.
    """

    def __init__(self, index: LocalIndex, state: State, nonces: Sequence[str]) -> None:
        super().__init__(name="diskyard-index", daemon=True)
        self.state = state
        self.saved: State | None = None
        self._index = index
        self._nonces = tuple(nonces)

    def run(self) -> None:
        """Write the state. A failure is no error."""
        self.saved = self._index.save(self.state, self._nonces)


def _on_tables(state: State) -> State:
    """The same state, but so that later changes are kept apart from its present records."""
    in_memory: dict[str, Records[Any]] = {
        name: Table(InMemory(records)) for name, records in state.tables().items() if isinstance(records, Map)
    }
    return state.with_tables(in_memory) if in_memory else state


def _moved(state: State, written: State, saved: State) -> State:
    """A state on top of ``saved``, if it rests on the same index as ``written``; else unchanged."""
    moved: dict[str, Records[Any]] = {}
    was, now = written.tables(), saved.tables()
    for name, records in state.tables().items():
        before, after = was[name], now[name]
        if not (isinstance(records, Table) and isinstance(before, Table) and isinstance(after, Table)):
            return state
        if records.stored is not before.stored:
            return state
        moved[name] = records.moved_to(after.stored, before)
    return state.with_tables(moved)
