"""What this process remembers of a repository, so that it need not look twice. All of it may be lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from diskyard.model.records import TrackHold, Volume
from diskyard.model.state import State
from diskyard.storage.interface import StoredVolume

#: How long after the last change a header must be read before its stamp identifies it: the clocks of file
#: systems advance by up to two seconds at a time.
SETTLED_NS = 3_000_000_000
_HEADERS_MOST = 1 << 18
Found = TypeVar("Found")


class SoundHeaders:
    """The headers that were found to be sound, as long as nothing is written to their volumes.

    A volume that has the same stamp as then holds the same bytes as then: see
    :class:`~diskyard.storage.interface.StoredVolume`. Only sound headers are kept. Others are read again
    each time. Code that is about to open a volume does not use this.
    """

    def __init__(self) -> None:
        self._stamps: dict[str, tuple[int, ...]] = {}

    def has(self, volume: Volume, stored: StoredVolume) -> bool:
        """Whether the header was sound, and nothing has been written to the volume since."""
        return self._stamps.get(volume.id) == (volume.size_bytes, stored.length_bytes, *stored.stamp)

    def keep(self, volume: Volume, stored: StoredVolume, read_ns: int) -> None:
        """Keep that a header was found to be sound.

        :param stored: what the storage said of the volume before the header was read.
        :param read_ns: when reading began. If that was too soon after the last change, nothing is kept.
        """
        if not stored.stamp or read_ns - stored.stamp[-1] < SETTLED_NS:
            return
        if len(self._stamps) >= _HEADERS_MOST:
            self._stamps.clear()
        self._stamps[volume.id] = (volume.size_bytes, stored.length_bytes, *stored.stamp)


class OfState(Generic[Found]):
    """What was found in one state of a repository, kept until another state is asked for.

    :param find: finds it by looking through the whole state.
    """

    def __init__(self, find: Callable[[State], Found]) -> None:
        self._find = find
        self._known: tuple[tuple[int, str], Found] | None = None

    def __call__(self, state: State) -> Found:
        """What ``find`` finds in this state."""
        known, entry = self._known, (state.version, state.nonce)
        if known is None or known[0] != entry:
            known = self._known = entry, self._find(state)
        return known[1]


class Remembered:
    """Everything that is remembered of one repository. Each page of a list needs it again.

    :ivar headers: the headers that are known to be sound.
    :ivar trackers: for each disk, the copies since which its changes are tracked.
    :ivar ids: the ids of all images, in order.
    :ivar snapshotted: the volumes that had internal snapshots when their headers were last read.
    :ivar virtual_bytes: the sizes of qcow2 volumes that were longer than their records then.
    """

    def __init__(self) -> None:
        self.headers = SoundHeaders()
        self.trackers = OfState(trackers_of)
        self.ids = OfState(lambda state: sorted(state.images))
        self.snapshotted: set[str] = set()
        self.virtual_bytes: dict[str, int] = {}

    def note_snapshots(self, volume: Volume, count: int) -> None:
        """Remember whether a header that was just read has internal snapshots."""
        if count:
            self.snapshotted.add(volume.id)
        else:
            self.snapshotted.discard(volume.id)

    def note_size(self, volume: Volume, size_bytes: int) -> None:
        """Remember the virtual size in a header that was just read, if it is longer than the record."""
        if size_bytes > volume.size_bytes:
            self.virtual_bytes[volume.id] = size_bytes
        else:
            self.virtual_bytes.pop(volume.id, None)


def trackers_of(state: State) -> dict[str, tuple[str, ...]]:
    """For each disk, the copies since which its changes are tracked, in order."""
    found: dict[str, list[str]] = {}
    for image_id in state.held:
        for hold in state.images[image_id].held_for:
            if isinstance(hold, TrackHold):
                found.setdefault(hold.disk_id, []).append(hold.copy_id)
    return {disk_id: tuple(sorted(copy_ids)) for disk_id, copy_ids in found.items()}
