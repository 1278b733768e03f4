"""What differs is told without reading: nothing that differs is left out, and nothing is told twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskyard.mover.copying.differences import Differences, Move, Side
from diskyard.mover.copying.sharing import Sharing
from diskyard.mover.copying.views import Reader, Run, View

UNIT, MOST, ZERO = 4, 16, 0
#: What each byte of a layer is: nothing (None), zero, or a value.
Bytes = list[int | None]


@dataclass(frozen=True)
class Told:
    """A view over layers that are told byte by byte, or in longer runs."""

    layers: Sequence[Bytes]
    join: bool

    @property
    def size_bytes(self) -> int:
        return len(self.layers[0])

    def at(self, offset: int) -> tuple[int, int]:
        """The layer that holds a byte, and its value."""
        if offset >= self.size_bytes:
            return -1, ZERO
        for index, layer in enumerate(self.layers):
            value = layer[offset] if offset < len(layer) else ZERO
            if value is not None:
                return index, value
        return len(self.layers) - 1, ZERO

    def runs(self, start_bytes: int) -> Iterator[Run]:
        begin, offset = start_bytes, start_bytes
        while offset < self.size_bytes:
            layer, value = self.at(begin)
            offset += 1
            following = None if offset >= self.size_bytes else self.at(offset)
            same = following is not None and (following[0], not following[1]) == (layer, not value)
            if not (same and self.join):
                yield Run(begin, offset - begin, value == ZERO, layer, begin if value else None)
                begin = offset

    def expect(self, runs: Sequence[Run]) -> None:
        raise AssertionError("no data is read")

    def reader(self, stack: ExitStack) -> Reader:
        raise AssertionError("no data is read")


class ToldSharing:
    """Sharing of some bytes, told as the file system would."""

    def __init__(self, shared: frozenset[int]) -> None:
        self._shared = shared

    def parts(self, source: Run, base: Run) -> Iterator[tuple[int, int, bool]]:
        for offset in range(source.offset_bytes, source.end_bytes):
            yield offset, offset + 1, offset in self._shared


def layer(least: int, most: int) -> st.SearchStrategy[Bytes]:
    return st.lists(st.sampled_from([None, ZERO, 1, 2]), min_size=least, max_size=most)


def moves_of(
    source: Told,
    base: Told | None,
    size: int,
    start: int,
    shared: frozenset[int] = frozenset(),
    **words: bool,
) -> list[Move]:
    sharing = (lambda: cast(Sharing, ToldSharing(shared))) if shared else None
    found = Differences(
        Side(cast(View, source), len(source.layers) - (base is not None)),
        None if base is None else Side(cast(View, base), len(base.layers) - 1),
        size,
        base_is_zeroed=words.get("base_is_zeroed", True),
        sharing=sharing,
        unit_bytes=UNIT,
        most_bytes=MOST,
    )
    return list(found.moves(start))


def require_in_order(moves: list[Move], start: int, size: int) -> set[int]:
    """Moves are whole units, in order, none too long; the bytes that they cover."""
    covered: set[int] = set()
    end = start - start % UNIT
    for move in moves:
        assert move.offset_bytes >= end
        assert move.offset_bytes % UNIT == 0
        end = move.offset_bytes + move.length_bytes
        assert end == size or end % UNIT == 0
        assert end <= size
        assert move.is_zero or move.length_bytes <= MOST
        covered.update(range(move.offset_bytes, end))
    return covered


def require_runs(move: Move, view: Told, runs: Sequence[Run]) -> None:
    """The runs of a move are all that the view has there, from its beginning on."""
    offset = move.offset_bytes
    for run in runs:
        assert run.offset_bytes == offset
        for at in range(run.offset_bytes, run.end_bytes):
            assert view.at(at)[0] == run.layer
            assert run.is_zero == (view.at(at)[1] == ZERO)
            if not run.is_zero:
                assert run.file_offset_bytes == run.offset_bytes
        offset = run.end_bytes
    assert offset == max(move.offset_bytes, min(move.offset_bytes + move.length_bytes, view.size_bytes))


@given(layer(0, 40), layer(0, 40), layer(0, 40), st.integers(1, 40), st.integers(0, 39), st.data())
def test_what_differs_is_moved(
    own: Bytes, other: Bytes, root: Bytes, size: int, start: int, data: st.DataObject
) -> None:
    source = Told([own, root], data.draw(st.booleans()))
    base = Told([other, root], data.draw(st.booleans()))
    moves = moves_of(source, base, size, start)
    covered = require_in_order(moves, start, size)
    for offset in range(start, size):
        if source.at(offset)[1] != base.at(offset)[1]:
            assert offset in covered
    for move in moves:
        span = range(move.offset_bytes, move.offset_bytes + move.length_bytes)
        if move.is_zero:
            assert all(source.at(offset)[1] == ZERO for offset in span)
        else:
            require_runs(move, source, move.source)
        if move.base:
            require_runs(move, base, move.base)
        else:
            assert all(base.at(offset)[1] == ZERO for offset in span)


@given(layer(1, 40), st.integers(1, 40), st.booleans(), st.booleans())
def test_a_full_copy_moves_all_data(own: Bytes, size: int, join: bool, is_zeroed: bool) -> None:
    source = Told([own], join)
    covered = require_in_order(moves_of(source, None, size, 0, base_is_zeroed=is_zeroed), 0, size)
    for offset in range(size):
        assert offset in covered or (is_zeroed and source.at(offset)[1] == ZERO)
    if is_zeroed:
        units_with_data = {at // UNIT for at in range(min(size, len(own))) if source.at(at)[1] != ZERO}
        assert {at // UNIT for at in covered} == units_with_data


@given(layer(8, 40), st.sets(st.integers(0, 39)))
def test_shared_blocks_are_not_moved(values: Bytes, shared: set[int]) -> None:
    """Two files that hold the same in some blocks, and something else in all others."""
    source = Told([values, [1]], True)
    other: Bytes = [
        None if v is None else v if at in shared or not v else 3 - v for at, v in enumerate(values)
    ]
    base = Told([other, [1]], True)
    moves = moves_of(source, base, len(values), 0, frozenset(shared))
    covered = {at // UNIT for at in require_in_order(moves, 0, len(values))}
    different = {at // UNIT for at, v in enumerate(values) if v and at not in shared}
    assert covered == different


def test_what_both_chains_show_is_not_looked_at() -> None:
    """As long as nothing of a range is either's own it is no move, however long it is."""
    root: Bytes = [1, 2] * 20
    source, base = Told([[None] * 40, root], True), Told([[None] * 40, root], True)
    assert moves_of(source, base, 40, 0) == []


@pytest.mark.parametrize("size", [40, 48])
def test_a_short_source_hides_a_longer_base(size: int) -> None:
    root: Bytes = [1] * 40
    source, base = Told([[None] * 20, root], True), Told([[None] * 40, root], True)
    (move,) = moves_of(source, base, size, 0)
    assert (move.offset_bytes, move.length_bytes, move.is_zero) == (20, 20, True)
