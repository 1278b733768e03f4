from __future__ import annotations

import pytest

from diskyard.model.fix import CleanLeftover, Fix, FixData, outlook


@pytest.mark.parametrize(
    ("runnable", "waits_for", "held_by", "words"),
    [
        (True, None, None, "can run"),
        (False, "its base is away", None, "waits: its base is away"),
        (False, "its base is away", "host-1", "waits: its base is away"),
        (False, None, "host-1", "waits: host-1 works on it"),
        (False, None, None, "waits"),
    ],
)
def test_words_for_people(runnable: bool, waits_for: str | None, held_by: str | None, words: str) -> None:
    fix = Fix(
        fix_id="clean-1",
        type="clean",
        description="delete a file",
        image_id=None,
        runnable=runnable,
        waits_for=waits_for,
        held_by=held_by,
        frees_bytes=None,
        moves_bytes=None,
        needs_bytes=None,
        data=FixData("0" * 32, CleanLeftover(name="tmp")),
    )
    assert outlook(fix) == words
