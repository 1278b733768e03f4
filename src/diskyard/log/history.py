"""Whether an entry belongs to a history. A restored or copied repository uses numbers again."""

from __future__ import annotations

from collections.abc import Sequence

from diskyard.model.records import EntryId, entry_id, split_entry_id
from diskyard.model.state import State


def has_entry(state: State, nonces: Sequence[str], entry: EntryId) -> bool | None:
    """Whether an entry is in the history that leads to a state; None if that is not known.

    :param nonces: of the newest entries up to the state, the newest last.
    """
    number, nonce = split_entry_id(entry)
    if number > state.version:
        return False
    back = state.version - number
    if not nonce or back >= len(nonces) or nonces[-1] != state.nonce:
        return None
    return nonces[-1 - back] == nonce


def replaced_since(known: State | None, state: State, nonces: Sequence[str]) -> str | None:
    """How the history that leads to a state differs from the one known before; None if it does not.

    An entry's nonce stands for all entries before it too. A history that is older than the kept nonces
    cannot be compared, and counts as the same.
    """
    if known is None or known.nonce == state.nonce:
        return None
    if state.version < known.version:
        return f"it ended at entry {known.version}, and now ends at entry {state.version}"
    if has_entry(state, nonces, entry_id(known.version, known.nonce)) is False:
        return f"another entry {known.version} is in the place of the one that was known"
    return None
