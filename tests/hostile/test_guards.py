"""Without each of its guards an import is seen to go wrong: the corpus and its judge find it."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskyard.testing.hostile_images.corpus import all_cases
from diskyard.testing.hostile_images.judge import ImportJudge
from tests.conftest import Tally

_PROGRAM = """
import struct
from diskyard.host import Limits
from diskyard.mover import qcow2_header, untrusted
from diskyard.testing.hostile_images import trial

def lenient(read, file_size_bytes):
    def patched(offset, count):
        data = bytearray(read(offset, count))
        if offset == 0 and len(data) >= 104:
            {patch}
        return bytes(data)
    return honest(patched, file_size_bytes)

honest = qcow2_header.parse_untrusted_qcow2
untrusted._PARSERS["qcow2"] = lenient
{more}
trial.main()
"""
_BACKING = "data[8:20] = bytes(12)"
_DATA_FILE = "data[79] &= ~4"
_NO_LIMITS = "Limits.prefix = lambda self: []"


def judged(folder: Path, names: str, *, patch: str = "pass", more: str = "", timeout_s: float = 60.0) -> str:
    """What the judge says of some cases where a guard is missing."""
    cases = [case for case in all_cases("qcow2") if case.name.startswith(f"qcow2: {names}")]
    assert cases
    program = _PROGRAM.format(patch=patch, more=more)
    with ImportJudge(folder / "judge", trial=("-c", program), timeout_s=timeout_s) as judge:
        return "\n".join(word for case in cases for word in judge.judge(case, stepwise=True).wrong)


def test_all_guards(folder: Path, tally: Tally) -> None:
    """With them the same cases are judged well."""
    tally("hostile images")
    for number, names in enumerate(("backing file FIFO", "data file FIFO", "65536 snapshots", "512-byte")):
        place = folder / str(number)
        place.mkdir()
        assert judged(place, names) == ""
    tally("hostile images", runs=5)


@pytest.mark.parametrize(
    ("names", "patch", "more", "words"),
    [
        ("backing file FIFO", _BACKING, "", "imported"),
        ("data file absolute", _DATA_FILE, "", "touched: ['secret']"),
        ("512-byte clusters in a file of 4 TiB", "pass", _NO_LIMITS, "does not end"),
    ],
)
def test_a_missing_guard_is_found(
    names: str, patch: str, more: str, words: str, folder: Path, tally: Tally
) -> None:
    """The refusal of backing files, of data files, and the limits of what QEMU may use."""
    tally("hostile images")
    assert words in judged(folder, names, patch=patch, more=more, timeout_s=10.0)
    tally("hostile images", runs=1)
