"""One piece of work that is left, and why it waits: what all parts of the search for fixes share."""

from __future__ import annotations

from dataclasses import dataclass

from diskyard.model.fix import AnyAction
from diskyard.planner.scan import Scan

WRITTEN = "a running QEMU has the volume open for writing"


@dataclass(frozen=True, slots=True)
class Found:
    """A fix, before it has an id."""

    action: AnyAction
    description: str
    image_id: str | None = None
    waits_for: str | None = None
    held_by: str | None = None
    frees_bytes: int | None = 0
    moves_bytes: int | None = 0
    needs_bytes: int | None = 0


def holder(scan: Scan, image_ids: list[str]) -> str | None:
    """The host that works on one of the images now, if any does."""
    for image_id in image_ids:
        if image_id in scan.locked:
            return scan.workers.get(image_id, "another task")
    return None


def not_idle(scan: Scan, *volume_ids: str) -> str | None:
    """Why a fix that needs volumes without a writer must wait; None if it need not."""
    for key in volume_ids:
        if key in scan.written:
            return f"{WRITTEN}, {key}"
        if key in scan.unasked:
            return scan.unasked[key]
    return None
