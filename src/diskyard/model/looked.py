"""What a scan of the storage found about the volumes of one chain, and of no other."""

from __future__ import annotations

from collections.abc import Collection, Container
from typing import Protocol

from diskyard.model.state import State

#: Ids of volumes that the log names and the storage does not have whole.
Missing = Container[str]


class LookAgain(Exception):
    """A plan needs a volume that was not scanned: the chain has changed since the scan."""


class Looked(Missing):
    """The volumes that the storage does not have whole, of those that were looked at.

    It refuses to answer about other volumes: a volume that was not scanned may not be whole.

    :param looked_at: the scanned volumes, which the log named as ready.
    """

    def __init__(self, looked_at: Collection[str], missing: Collection[str]) -> None:
        self._looked_at = frozenset(looked_at)
        self._missing = frozenset(missing)

    def __bool__(self) -> bool:
        return bool(self._missing)

    def __contains__(self, volume_id: object) -> bool:
        if volume_id not in self._looked_at:
            raise LookAgain(volume_id)
        return volume_id in self._missing


#: Nothing was looked at: whoever asks of any volume whether it is missing has to look first.
NOT_LOOKED = Looked((), ())


class Seen(Protocol):
    """A state, and which of its volumes the storage does not have whole."""

    @property
    def state(self) -> State:
        """The records."""

    @property
    def missing(self) -> Missing:
        """Of the volumes that were looked at."""
