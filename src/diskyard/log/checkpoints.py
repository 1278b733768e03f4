"""Checkpoints: the whole state after an entry, so that reading does not begin at entry 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from diskyard import errors
from diskyard.log.codec import Checkpoint, CheckpointWritten, Damaged, NewerMajor, decode, encode
from diskyard.log.entries import nonce_of
from diskyard.log.index.stored import CODECS, encoded
from diskyard.log.store import LogStore
from diskyard.model.soundness import flaw_of
from diskyard.model.state import State
from diskyard.model.tables import Records

CHECKPOINTS_KEPT = 3
ENTRY_AGE_KEPT_S = 24 * 3600.0
_NONCES_KEPT = 4096
_ENTRIES_BETWEEN = 64


def nonces_kept(nonces: Sequence[str]) -> list[str]:
    """The newest nonces, as many as a checkpoint lists."""
    return list(nonces[-_NONCES_KEPT:])


def written_by_newer(place: str, error: NewerMajor) -> errors.NotARepository:
    """The NotARepository error for a log that this program must not touch."""
    return errors.NotARepository(f"{place} was written by a newer Diskyard (format {error}).")


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint that was read, and the state that it holds.

    :param newer: a newer minor version wrote it.
    """

    checkpoint: Checkpoint
    state: State
    newer: bool


class Checkpoints:
    """The checkpoints of one repository.

    :param entry_age_kept_s: entries younger than this are never trimmed.
    """

    def __init__(self, store: LogStore, entry_age_kept_s: float = ENTRY_AGE_KEPT_S) -> None:
        self._store = store
        self._entry_age_kept_s = entry_age_kept_s
        self._folded_at: int | None = None
        self._standing: int | None = None  # one that existed, and is looked for first next time

    def newest(self) -> Found:
        """The newest checkpoint that can be read.

        If a newer one is damaged, an older one will do, since all entries after the oldest checkpoint
        are kept.

        :raises diskyard.errors.CorruptRecord: none can be read.
        """
        damage, seen = "there is none", list[int]()
        while (numbers := sorted(self._store.numbers("checkpoint"), reverse=True)) != seen:
            seen = numbers  # newer ones may replace these while they are read
            for number in numbers:
                try:
                    found = self.read(number)
                except Damaged as error:
                    damage = f"checkpoint {number}: {error}"
                    continue
                self._folded_at = number
                return found
        raise errors.CorruptRecord(f"No checkpoint of {self._store.place} can be read: {damage}.")

    def read(self, number: int) -> Found:
        """One checkpoint, from whichever replica is valid.

        :raises Damaged: neither is.
        """
        damage: Damaged | NewerMajor = Damaged("neither replica can be read")
        copies = self._store.get("checkpoint", number)
        for copy in copies:
            if not copy:
                continue
            try:
                checkpoint, newer = decode(copy, Checkpoint)
                state = check_checkpoint(checkpoint, self._store.marker, number)
                if copies[0] != copies[1]:
                    self._require_not_anothers(number, state.nonce)
                return Found(checkpoint, state, newer)
            except (Damaged, NewerMajor) as error:
                damage = error
        if isinstance(damage, NewerMajor):
            raise written_by_newer(self._store.place, damage) from damage
        raise damage

    def _require_not_anothers(self, number: int, nonce: str) -> None:
        """Of replicas that differ, refuse one that does not belong to the entry with its number.

        :raises Damaged: it was written in another history.
        """
        there = {
            nonce_of(copy, self._store.marker, number) for copy in self._store.get("entry", number) if copy
        }
        if there - {None} and nonce not in there:
            raise Damaged(f"it belongs to another history: entry {number} is another one")

    def trimmed_past(self, number: int) -> bool:
        """Whether entry ``number`` may have been trimmed.

        Entries are removed only after every checkpoint at or below them. So while one of those exists,
        the entry is what it always was. The entry's own presence does not show that, because a suspended
        writer may have put a copy of it back.
        """
        standing = self._standing
        if standing is not None and standing <= number and self._store.has("checkpoint", standing):
            return False
        numbers = self._store.numbers("checkpoint")
        below = [found for found in numbers if found <= number]
        self._standing = max(below, default=None)  # the newest of them stays the longest
        return bool(numbers) and not below

    def is_near_to(self, state: State) -> bool:
        """Whether reading should go on from a state that was kept elsewhere.

        False if the state's entry may have been trimmed. False also if the newest checkpoint is so far ahead
        of the state that reading the checkpoint is quicker than reading the entries between them.
        """
        numbers = self._store.numbers("checkpoint")
        self._folded_at = max(numbers, default=0)
        ahead = self._folded_at - state.version
        far = max(_ENTRIES_BETWEEN, (len(state.images) + len(state.volumes)) // 16)
        return min(numbers, default=0) <= state.version and ahead <= far

    def lists(self, number: int, nonce: str) -> bool:
        """Whether a checkpoint shows that entry ``number`` stood with this nonce."""
        for version in sorted(self._store.numbers("checkpoint"), reverse=True):
            if version < number:
                continue
            try:
                found = self.read(version)
            except Damaged:
                continue
            if nonce in found.checkpoint.nonces:
                return True
        return False

    def fold_if_due(self, state: State, nonces: Sequence[str]) -> None:
        """Write a checkpoint and trim, if enough entries have been added since the last one.

        How many are enough grows with the state, so that checkpoints cost each entry a constant
        share. If this fails, the next writer tries again: nothing depends on it.
        """
        since = state.version - (self._folded_at or 0)
        if state.closed or since < max(_ENTRIES_BETWEEN, (len(state.images) + len(state.volumes)) // 8):
            return
        try:
            self.fold(state, nonces)
            self.trim()
        except (OSError, errors.DiskyardError):
            # The entry that led here is durable and must be answered as done. On a full storage each
            # later entry tries again, until one succeeds.
            return

    def fold(self, state: State, nonces: Sequence[str]) -> None:
        """Write the checkpoint of ``state``, durably."""
        self._store.put("checkpoint", state.version, encode(checkpoint_of(state, nonces)))
        self._folded_at = state.version

    def trim(self) -> None:
        """Remove checkpoints and entries that no reader needs, the lowest numbers first.

        It keeps the newest three checkpoints that can be read, all entries from the oldest of those on,
        and all entries that are younger than ``entry_age_kept_s``. A suspended reader may lose the entry
        that it has come to: it notices (``LogReader._read_forward``).
        """
        readable: list[int] = []
        numbers = sorted(self._store.numbers("checkpoint"))
        for number in reversed(numbers):
            try:
                self.read(number)
            except Damaged:
                continue
            readable.append(number)
            if len(readable) == CHECKPOINTS_KEPT:
                break
        if len(readable) < CHECKPOINTS_KEPT:
            return
        oldest_kept = readable[-1]
        for number in numbers:
            if number < oldest_kept:
                self._store.delete("checkpoint", number)
        for number, age_s in sorted(self._store.numbers("entry").items()):
            if number >= oldest_kept or age_s < self._entry_age_kept_s:
                # Stopping at the first young entry leaves no gap.
                return
            self._store.delete("entry", number)


def checkpoint_of(state: State, nonces: Sequence[str]) -> CheckpointWritten:
    """The checkpoint of a state, ready to be written: its records are in order of their ids."""
    return CheckpointWritten(
        marker=state.marker,
        version=state.version,
        nonce=state.nonce,
        nonces=tuple(nonces),
        images=_written("images", state.images),
        volumes=_written("volumes", state.volumes),
        attachments=_written("attachments", state.attachments),
    )


def _written(name: str, records: Records[Any]) -> tuple[msgspec.Raw, ...]:
    return tuple(msgspec.Raw(record) for _, record in encoded(records, CODECS[name]))


def check_checkpoint(checkpoint: Checkpoint, marker: str, number: int) -> State:
    """The state that a checkpoint holds, if it was written for this repository and number.

    :raises Damaged: it belongs to another repository or number, or its records do not fit together.
    """
    if checkpoint.marker != marker:
        raise Damaged("it belongs to another repository, or this one was given a marker of its own since")
    if checkpoint.version != number:
        raise Damaged(f"it is checkpoint {checkpoint.version}")
    state = checkpoint.state()
    records = len(checkpoint.images) + len(checkpoint.volumes) + len(checkpoint.attachments)
    if records != len(state.images) + len(state.volumes) + len(state.attachments):
        raise Damaged("it has two records of one id")
    flaw = flaw_of(state)
    if flaw is not None:
        raise Damaged(f"its records do not fit together: {flaw}")
    return state
