"""Checking both replicas of the log's objects, and writing a bad one again."""

from __future__ import annotations

from dataclasses import dataclass

from diskyard.log.checkpoints import check_checkpoint
from diskyard.log.codec import Checkpoint, CheckpointWritten, Damaged, NewerMajor, decode
from diskyard.log.entries import check_place
from diskyard.log.log import Log
from diskyard.log.store import LogKind, LogStore
from diskyard.model.transaction import Entry


@dataclass(frozen=True, slots=True)
class ReplicaTrouble:
    """An object of the log with a missing or damaged replica.

    :param whole: its bytes, if the other replica has them; None if neither does.
    :param bad_copies: which replicas are not as they should be.
    """

    kind: LogKind
    number: int
    whole: bytes | None
    bad_copies: tuple[int, ...]


def look_at_replicas(
    storage: LogStore, log: Log, kind: LogKind, number: int, *, records: bool = True
) -> ReplicaTrouble | None:
    """What is wrong with an object's replicas; None if nothing is, or if the object does not exist.

    :param records: check also whether the records of a checkpoint fit together, which takes as long as
        reading it did. Without this, a checkpoint is whole if its checksum, marker, number and history
        are right.
    """
    copies = storage.get(kind, number)
    if copies == (None, None):
        return None
    nonce = _nonce_read(log, number)
    judged: dict[bytes | None, bool] = {}  # mostly both are the same, and are judged once
    for copy in copies:
        if copy not in judged:
            judged[copy] = _is_whole(storage, kind, number, nonce, copy, records=records)
    valid = [copy if judged[copy] else None for copy in copies]
    whole = next((copy for copy in reversed(valid) if copy is not None), None)  # as a reader does
    bad = tuple(index for index, copy in enumerate(valid) if copy is None or copy != whole)
    return ReplicaTrouble(kind, number, whole, bad) if bad else None


def _nonce_read(log: Log, number: int) -> str | None:
    """The nonce with which the log read an entry; None if it is not known any more.

    A replica may be whole and yet belong to another history: a writer that had lost put it there, or
    somebody else. It must not be written over the one that readers use.
    """
    state, nonces = log.newest_known(), log.nonces()
    back = state.version - number
    known = 0 <= back < len(nonces) and nonces[-1] == state.nonce
    return nonces[-1 - back] if known else None


def _is_whole(
    storage: LogStore, kind: LogKind, number: int, nonce: str | None, copy: bytes | None, *, records: bool
) -> bool:
    if not copy:
        return False
    try:
        if kind == "entry":
            entry, _ = decode(copy, Entry)
            check_place(entry, storage.marker, number)
            return nonce in (None, entry.nonce)
        if not records:
            head, _ = decode(copy, CheckpointWritten)
            return (head.marker, head.version) == (storage.marker, number) and nonce in (None, head.nonce)
        checkpoint, _ = decode(copy, Checkpoint)
        check_checkpoint(checkpoint, storage.marker, number)
        return nonce in (None, checkpoint.nonce)
    except (Damaged, NewerMajor):
        return False


def rewrite_replica(storage: LogStore, log: Log, kind: LogKind, number: int) -> bool:
    """Write the bad replica of an object again. False if nothing was wrong, or nothing could be done.

    The new one is renamed over the old one, so the object always exists. A checkpoint without a whole
    replica is rebuilt from an older one and the entries.
    """
    trouble = look_at_replicas(storage, log, kind, number)
    if trouble is None:
        return False
    if trouble.whole is None:
        return kind == "checkpoint" and log.rewrite_checkpoint(number)
    for copy in trouble.bad_copies:
        storage.rewrite(kind, number, copy, trouble.whole)
    return True
