"""What a scan of the storage found about the volumes of one chain, and of no other."""

from __future__ import annotations

from collections.abc import Collection, Container


class LookAgain(Exception):
    """A plan needs a volume that was not scanned: the chain has changed since the scan."""


class Looked(Container[str]):
    """The volumes that are not whole on the storage, among those that were scanned.

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
