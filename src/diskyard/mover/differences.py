"""Where two views can differ, told from block status alone; no data is read here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diskyard.mover.interface import Chain
from diskyard.mover.nbdclient import Extent, NbdClient
from diskyard.mover.qcow2_header import CLUSTER_BYTES

WINDOW_BYTES = 1 << 30
MOVE_MOST_BYTES = 2 << 20
_RUNS = re.compile(rb"(.)\1*", re.DOTALL)
_SOURCE_DATA, _BASE_DATA, _OWN = 1, 2, 4  # bits of a cluster's class


@dataclass(frozen=True, slots=True)
class Move:
    """A range of the target that may have to change, in whole clusters but for the last.

    :param is_zero: it becomes zeros; else the source has to be read.
    :param compare: the base may hold data there; else it is zeros.
    """

    offset_bytes: int
    length_bytes: int
    is_zero: bool
    compare: bool


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two views.

    :param own_layers: how many of its layers, from the top, the other side does not have.
    """

    client: NbdClient
    own_layers: int


def common_layers(one: Chain, other: Chain) -> int:
    """How many layers both chains end in, by name."""
    count = 0
    for left, right in zip(reversed(one), reversed(other), strict=False):
        if left.name != right.name:
            break
        count += 1
    return count


class Differences:
    """The moves that make a target equal to a source.

    :param base: what the target shows before anything is written; None: nothing but zeros.
    :param base_is_zeroed: without a base: the target certainly reads as zeros.
    """

    def __init__(self, source: Side, base: Side | None, size_bytes: int, *, base_is_zeroed: bool) -> None:
        self._source = source
        self._base = base
        self._size_bytes = size_bytes
        self._skip_zeros = base is not None or base_is_zeroed

    def windows(self, start_bytes: int) -> Iterator[tuple[int, list[Move]]]:
        """The offset and the moves of each stretch from ``start_bytes`` on, in order."""
        offset = start_bytes - start_bytes % CLUSTER_BYTES
        while offset < self._size_bytes:
            length = min(WINDOW_BYTES, self._size_bytes - offset)
            yield offset, list(self._moves(offset, length))
            offset += length

    def _moves(self, offset_bytes: int, length_bytes: int) -> Iterator[Move]:
        classes = self._classes(offset_bytes, length_bytes)
        if self._skip_zeros and not classes.strip(bytes((0, _OWN))):
            return  # as in nearly all of a huge disk: 0.4 ms for each window are saved
        for run in _RUNS.finditer(classes):
            start = run.start() * CLUSTER_BYTES
            end = min(run.end() * CLUSTER_BYTES, length_bytes)
            has_data, has_base = run[1][0] & _SOURCE_DATA, run[1][0] & _BASE_DATA
            if not run[1][0] & _OWN or (self._skip_zeros and not has_data and not has_base):
                continue
            step = MOVE_MOST_BYTES if has_data else WINDOW_BYTES
            for part in range(start, end, step):
                yield Move(offset_bytes + part, min(step, end - part), not has_data, bool(has_base))

    def _classes(self, offset_bytes: int, length_bytes: int) -> bytes:
        """One byte of class bits for each cluster."""
        count = -(-length_bytes // CLUSTER_BYTES)
        shared = 0
        layers = [_paint(self._source, offset_bytes, length_bytes, count, _SOURCE_DATA)]
        if self._base is not None:
            layers.append(_paint(self._base, offset_bytes, length_bytes, count, _BASE_DATA))
        for layer in layers:
            shared |= int.from_bytes(layer, "big")
        return shared.to_bytes(count, "big")


def _paint(side: Side, offset_bytes: int, length_bytes: int, count: int, data_bit: int) -> bytes:
    clusters = bytearray(count)
    known_bytes = max(0, min(length_bytes, side.client.size_bytes - offset_bytes))
    position = 0
    for extent in side.client.extents(offset_bytes, known_bytes):
        first = position // CLUSTER_BYTES
        position += extent.length_bytes
        end = -(-position // CLUSTER_BYTES)
        bits = (0 if extent.is_zero else data_bit) | (_OWN if _is_own(extent, side.own_layers) else 0)
        if bits:
            _add(clusters, first, end, bits)
    # Beyond its end a view is zero, though a layer below may go on.
    if known_bytes < length_bytes:
        _add(clusters, known_bytes // CLUSTER_BYTES, count, _OWN)
    return bytes(clusters)


def _is_own(extent: Extent, own_layers: int) -> bool:
    # What no layer holds may be the zeros of a short layer that hides a common one below.
    return extent.depth <= own_layers


def _add(clusters: bytearray, first: int, end: int, bits: int) -> None:
    """Set bits of some clusters; borders are shared by two extents."""
    if end - first > 2:
        clusters[first] |= bits
        clusters[end - 1] |= bits
        clusters[first + 1 : end - 1] = bytes((bits,)) * (end - first - 2)
    else:
        for index in range(first, end):
            clusters[index] |= bits


def changed_parts(data: bytearray, other: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """The start and end of each run of clusters of ``data`` that differ from ``other``'s.

    Slices are copied, because comparing memoryviews is a hundred times slower.
    """
    if data == other:
        return
    start: int | None = None
    for offset in range(0, len(data), CLUSTER_BYTES):
        end = offset + CLUSTER_BYTES
        if data[offset:end] != other[offset:end]:
            if start is None:
                start = offset
        elif start is not None:
            yield start, offset
            start = None
    if start is not None:
        yield start, len(data)


def moved_bytes(moves: Sequence[Move]) -> int:
    """How many bytes of the source these moves read."""
    return sum(move.length_bytes for move in moves if not move.is_zero)
