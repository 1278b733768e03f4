"""A storm, and the peace after it: every image that was answered is right, and nothing else is left."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from pathlib import Path

import pytest

from diskyard.testing.attackers.storm import Storm
from diskyard.testing.effort import Effort
from diskyard.testing.mounted import MOUNTED_KINDS, mounted, why_not_mounted
from tests.conftest import Tally

QUICK_S, THOROUGH_MINUTES = 8.0, 10.0
PLACES = "abc"


def test_storm(quick_folder: Path, effort: Effort, tally: Tally) -> None:
    """A repository on each kind of file system, or several on the kinds that were asked for."""
    tally("storm")
    kinds = effort.kinds(MOUNTED_KINDS)
    if reason := why_not_mounted(*kinds):
        pytest.skip(reason)
    with ExitStack() as stack:
        disks = {
            place: stack.enter_context(mounted(kind, quick_folder / f"fs-{place}"))
            for place, kind in zip(PLACES, itertools.cycle(kinds), strict=False)
        }
        told, events = Storm(quick_folder, disks, effort.seed).run(effort.seconds(QUICK_S, THOROUGH_MINUTES))
    tally("storm", **told.tallied(), **events)
    told.require_none()
