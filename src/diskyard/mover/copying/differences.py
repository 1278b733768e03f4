"""Where two views can differ, cheapest test first; no data is read here.

The tests for each pair of runs: are they in the same layer of both chains; is the base known to
equal what the layer shows; are they the same blocks of the file system; are both zeros. What is
left is a move, and only its bytes can decide.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import msgspec

from diskyard.mover.copying.sharing import Sharing
from diskyard.mover.copying.views import Run, Runs, View
from diskyard.mover.interface import Chain

_ZERO_MOST_BYTES = 1 << 30
_LOOK_AROUND_RUNS = 256  # some milliseconds
_SOURCE_DATA, _BASE_DATA, _MAY_DIFFER = 1, 2, 4


class Move(msgspec.Struct, frozen=True, gc=False):
    """A range of the target that may have to change. Its borders are those of units, except at the end.

    :param source: the runs to read; empty if the range becomes zeros.
    :param base: the runs to compare with; empty if the base has only zeros there.
    """

    offset_bytes: int
    length_bytes: int
    source: tuple[Run, ...]
    base: tuple[Run, ...]

    @property
    def is_zero(self) -> bool:
        """Whether the range becomes zeros; otherwise the source must be read."""
        return not self.source


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two views.

    :param own_layers: how many of its layers, from the top, are not in the other view.
    """

    view: View
    own_layers: int


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A range with one property. If several runs share a unit, the property holds for the whole unit."""

    start_bytes: int
    end_bytes: int
    bits: int
    source: tuple[Run, ...]
    base: tuple[Run, ...]

    def cut(self, start_bytes: int, end_bytes: int) -> _Stretch:
        if (start_bytes, end_bytes) == (self.start_bytes, self.end_bytes):
            return self
        source, base = (
            tuple(
                run.cut(max(start_bytes, run.offset_bytes), min(end_bytes, run.end_bytes))
                for run in runs
                if run.offset_bytes < end_bytes and run.end_bytes > start_bytes
            )
            for runs in (self.source, self.base)
        )
        return _Stretch(start_bytes, end_bytes, self.bits, source, base)

    def joined(self, other: _Stretch) -> _Stretch:
        return _Stretch(
            self.start_bytes,
            other.end_bytes,
            self.bits | other.bits,
            self.source + other.source,
            self.base + other.base,
        )


def common_layers(one: Chain, other: Chain) -> int:
    """How many layers at their ends two chains have in common: the same volumes of one repository.

    Names are not enough: a repository that was made from a copy of another has volumes of the same names.
    """
    count = 0
    for left, right in zip(reversed(one), reversed(other), strict=False):
        if (left.name, left.protocol) != (right.name, right.protocol):
            break
        count += 1
    return count


class Differences:
    """The moves that make a target equal to a source.

    :param base: what the target shows before anything is written; None if it has no parents.
    :param base_is_zeroed: without parents, the target certainly reads as zeros.
    :param sharing: makes a finder of shared blocks, a new one for each pass; None if there are none.
    :param unit_bytes: moves begin and end at multiples of this.
    :param most_bytes: no move reads more; a multiple of the unit.
    """

    def __init__(
        self,
        source: Side,
        base: Side | None,
        size_bytes: int,
        *,
        base_is_zeroed: bool,
        sharing: Callable[[], Sharing] | None,
        unit_bytes: int,
        most_bytes: int,
    ) -> None:
        self._source = source
        self._base = base
        self._size_bytes = size_bytes
        self._skip_zeros = base is not None or base_is_zeroed
        self._sharing = sharing
        self._unit_bytes = unit_bytes
        self._most_bytes = most_bytes

    def moves(self, start_bytes: int, look_around: Callable[[], None] | None = None) -> Generator[Move]:
        """The moves from ``start_bytes`` on, in order. Closing them ends the programs that report runs.

        :param look_around: called now and then while no move is found for long.
        """
        begin = start_bytes - start_bytes % self._unit_bytes
        look_around = look_around or (lambda: None)
        if self._base is None and self._skip_zeros:
            return self._data(begin, look_around)
        return self._changes(begin, look_around)

    def _data(self, begin: int, look_around: Callable[[], None]) -> Generator[Move]:
        """All data, if there is nothing to compare it with. This is quicker for very many small runs."""
        with closing(self._source.view.runs(begin)) as runs:
            for index, run in enumerate(runs):
                if index % _LOOK_AROUND_RUNS == 0:
                    look_around()
                end = min(run.end_bytes, self._size_bytes)
                if end % self._unit_bytes and end != self._size_bytes:
                    break  # it shares a unit with the next run
                if run.is_zero:
                    continue
                for start in range(run.offset_bytes, end, self._most_bytes):
                    part_end = min(start + self._most_bytes, end)
                    yield Move(start, part_end - start, (run.cut(start, part_end),), ())
            else:
                return
        yield from self._changes(run.offset_bytes, look_around)

    def _changes(self, begin: int, look_around: Callable[[], None]) -> Generator[Move]:
        current: _Stretch | None = None
        with closing(self._stretches(begin)) as stretches:
            for index, stretch in enumerate(self._in_units(stretches)):
                if index % _LOOK_AROUND_RUNS == 0:
                    look_around()
                if current is not None and self._go_together(current, stretch):
                    current = current.joined(stretch)
                    continue
                if current is not None:
                    yield from self._cut(current)
                current = stretch if stretch.bits & _MAY_DIFFER else None
        if current is not None:
            yield from self._cut(current)

    def _go_together(self, one: _Stretch, other: _Stretch) -> bool:
        length = other.end_bytes - one.start_bytes
        return one.end_bytes == other.start_bytes and one.bits == other.bits and length <= self._most_bytes

    def _cut(self, stretch: _Stretch) -> Iterator[Move]:
        most_bytes = self._most_bytes if stretch.bits & _SOURCE_DATA else _ZERO_MOST_BYTES
        for start in range(stretch.start_bytes, stretch.end_bytes, most_bytes):
            part = stretch.cut(start, min(start + most_bytes, stretch.end_bytes))
            source = part.source if part.bits & _SOURCE_DATA else ()
            base = part.base if part.bits & _BASE_DATA else ()
            yield Move(part.start_bytes, part.end_bytes - part.start_bytes, source, base)

    def _in_units(self, stretches: Iterable[_Stretch]) -> Iterator[_Stretch]:
        """The same in whole units: ranges that share a unit become one range."""
        unit = self._unit_bytes
        shared: _Stretch | None = None
        for stretch in stretches:
            start, end = stretch.start_bytes, stretch.end_bytes
            if shared is not None:
                border = min(end, -(-start // unit) * unit)
                shared = shared.joined(stretch.cut(start, border))
                if border % unit and border < self._size_bytes:
                    continue
                yield shared
                shared, start = None, border
            whole_end = end if end == self._size_bytes else end - end % unit
            if start < whole_end:
                yield stretch.cut(start, whole_end)
            if max(start, whole_end) < end:
                shared = stretch.cut(max(start, whole_end), end)

    def _stretches(self, start_bytes: int) -> Generator[_Stretch]:
        """Everything from an offset on: one range for each pair of runs, or several parts of it."""
        with ExitStack() as stack:
            cursors = [
                _Cursor(stack.enter_context(closing(side.view.runs(start_bytes))))
                for side in (self._source, self._base)
                if side is not None
            ]
            source, base = cursors[0], cursors[1] if len(cursors) > 1 else None
            sharing = None if self._sharing is None else self._sharing()
            offset = start_bytes
            while offset < self._size_bytes:
                end = min(self._size_bytes, *(cursor.reaches(offset) for cursor in cursors))
                source_run, base_run = (
                    source.run(offset, end),
                    None if base is None else base.run(offset, end),
                )
                yield from self._judged(offset, end, source_run, base_run, sharing)
                offset = end

    def _judged(
        self, start: int, end: int, source: Run | None, base: Run | None, sharing: Sharing | None
    ) -> Iterator[_Stretch]:
        bits = _data_bit(source, _SOURCE_DATA) | _data_bit(base, _BASE_DATA)
        is_own = _is_own(source, self._source) or (self._base is not None and _is_own(base, self._base))
        if is_own and (bits or not self._skip_zeros):
            bits |= _MAY_DIFFER
        of_source = () if source is None else (source,)
        of_base = () if base is None else (base,)
        whole = _Stretch(start, end, bits, of_source, of_base)
        may_share = bits == _MAY_DIFFER | _SOURCE_DATA | _BASE_DATA
        if not may_share or source is None or base is None or sharing is None:
            yield whole
            return
        for part_start, part_end, is_shared in sharing.parts(source, base):
            part = whole.cut(part_start, part_end)
            yield _Stretch(
                part_start, part_end, bits & ~_MAY_DIFFER if is_shared else bits, part.source, part.base
            )


class _Cursor:
    """Goes along a view's runs. Beyond the view's end there are no runs."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._run: Run | None = None
        self._is_begun = False

    def reaches(self, offset_bytes: int) -> int:
        """The offset up to which one run, or the absence of runs, extends."""
        while not self._is_begun or (self._run is not None and self._run.end_bytes <= offset_bytes):
            self._is_begun = True
            self._run = next(self._runs, None)
        return self._run.end_bytes if self._run is not None else 1 << 63

    def run(self, start_bytes: int, end_bytes: int) -> Run | None:
        """The run in a range whose end :meth:`reaches` returned."""
        return None if self._run is None else self._run.cut(start_bytes, end_bytes)


def _data_bit(run: Run | None, bit: int) -> int:
    return 0 if run is None or run.is_zero else bit


def _is_own(run: Run | None, side: Side) -> bool:
    # Beyond its end a view is zero, even if a layer below goes on. A range that no layer holds may be the
    # zeros of a short layer, which hides a common layer below.
    return run is None or run.layer < side.own_layers


def moved_bytes(moves: Sequence[Move]) -> int:
    """How many bytes of the source these moves read."""
    return sum(move.length_bytes for move in moves if not move.is_zero)
