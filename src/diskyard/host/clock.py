"""Time, as the operating system gives it; tests put their own clock in its place."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Clock:
    """The host's clocks. Wall-clock time is for people, never for ordering."""

    def now(self) -> str:
        """The wall-clock time in RFC 3339, UTC, with microseconds."""
        return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

    def wall_s(self) -> float:
        """Seconds since the epoch, to compare with the times of files."""
        return time.time()

    def monotonic_s(self) -> float:
        """Seconds that never go back, for time-outs and rates."""
        return time.monotonic()

    def sleep(self, duration_s: float) -> None:
        """Wait ``duration_s`` seconds."""
        time.sleep(duration_s)
