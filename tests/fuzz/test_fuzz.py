"""Whatever two hosts do, beside others and over restores: each image holds what the model says."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from pathlib import Path

import pytest

from diskyard.testing.attackers.fuzz import Fuzz
from diskyard.testing.effort import Effort
from diskyard.testing.mounted import MOUNTED_KINDS, mounted, why_not_mounted
from tests.conftest import Tally

QUICK_S, THOROUGH_MINUTES = 8.0, 10.0
PLACES = "abc"


def test_fuzz(quick_folder: Path, effort: Effort, tally: Tally) -> None:
    """A repository on each kind of file system, or several on the kinds that were asked for."""
    tally("fuzz")
    kinds = effort.kinds(MOUNTED_KINDS)
    if reason := why_not_mounted(*kinds):
        pytest.skip(reason)
    with ExitStack() as stack:
        disks = {
            place: stack.enter_context(mounted(kind, quick_folder / f"fs-{place}"))
            for place, kind in zip(PLACES, itertools.cycle(kinds), strict=False)
        }
        fuzz = Fuzz(quick_folder, disks, effort.seed)
        try:
            fuzz.run(effort.seconds(QUICK_S, THOROUGH_MINUTES))
        finally:
            special = {
                name: count for name, count in fuzz.told.done.items() if " " in name or name == "restore"
            }
            tally("fuzz", **fuzz.told.tallied(), **special)
    fuzz.told.require_none()
