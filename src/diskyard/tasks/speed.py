"""How fast a task moves bytes, and how long the rest of its stage takes at that rate."""

from __future__ import annotations

import math
from collections import deque

_WINDOW_S = 5.0
_SAMPLE_EVERY_S = 0.5


class Speed:
    """The bytes that one task moved in the last seconds of its stage."""

    def __init__(self) -> None:
        self._stage = ""
        self._done_bytes = 0
        self._moved_bytes = 0
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, now_s: float, stage: str, done_bytes: int) -> None:
        """Record what the work reports.

        The first report of a stage does not count as moved bytes: resumed work begins with what is there
        already. The rate of one stage says nothing about the next one's.

        :param now_s: from a clock that never goes back.
        :param done_bytes: in this stage.
        """
        if stage != self._stage:
            self._stage, self._done_bytes = stage, done_bytes
            self._samples.clear()
        self._moved_bytes += max(0, done_bytes - self._done_bytes)
        self._done_bytes = done_bytes
        if self._samples and now_s - self._samples[-1][0] < _SAMPLE_EVERY_S:
            return
        self._samples.append((now_s, self._moved_bytes))
        # The newest of the samples that are too old stays: reports may be rarer than the window is long.
        while len(self._samples) > 1 and now_s - self._samples[1][0] >= _WINDOW_S:
            self._samples.popleft()

    def bytes_per_s(self, now_s: float) -> float:
        """The rate of the last seconds; 0 until it is known."""
        if not self._samples:
            return 0.0
        first_s, first_bytes = self._samples[0]
        return (self._moved_bytes - first_bytes) / (now_s - first_s) if now_s > first_s else 0.0

    def remaining_s(self, now_s: float, total_bytes: int) -> int | None:
        """How long the rest of the stage takes at that rate, rounded up; None if it is not known.

        :param total_bytes: to be moved in the stage; 0 if it is not known.
        """
        left_bytes = total_bytes - self._done_bytes
        rate = self.bytes_per_s(now_s)
        if not total_bytes or (left_bytes > 0 and not rate):
            return None
        return math.ceil(left_bytes / rate) if left_bytes > 0 else 0
