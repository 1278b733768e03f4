"""Without each of its guards an import is seen to go wrong: the corpus and its judge find it."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskyard.testing.hostile_images.cases import Case
from diskyard.testing.hostile_images.corpus import all_cases
from diskyard.testing.hostile_images.judge import ImportJudge
from tests.conftest import Tally

_PROGRAM = """
import struct
from diskyard.host import commands
from diskyard.host.confinement import limit_words
from diskyard.mover import untrusted
from diskyard.mover.formats import qcow2_header
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
_NO_LIMITS = "commands.limit_words = lambda limits: limit_words(None)"


@pytest.fixture(scope="module")
def corpus() -> dict[str, Case]:
    """The cases by name."""
    return {case.name: case for case in all_cases("qcow2")}


FIFO, SECRET = "qcow2: backing file FIFO, version 3", "qcow2: data file absolute"
LONG = "qcow2: 512-byte clusters in a file of 256 GiB"


def test_all_guards(corpus: dict[str, Case], folder: Path, tally: Tally) -> None:
    """With them the same cases are judged well."""
    tally("hostile images")
    with ImportJudge(folder / "judge") as judge:
        for name in (FIFO, SECRET, LONG):
            assert judge.judge(corpus[name], stepwise=True).wrong == []
    tally("hostile images", runs=3)


@pytest.mark.parametrize(
    ("name", "patch", "more", "words"),
    [
        (FIFO, _BACKING, "", "imported"),
        (SECRET, _DATA_FILE, "", "touched: ['secret']"),
        (LONG, "pass", _NO_LIMITS, "does not end"),
    ],
)
def test_a_missing_guard_is_found(
    name: str,
    patch: str,
    more: str,
    words: str,
    corpus: dict[str, Case],
    folder: Path,
    tally: Tally,
) -> None:
    """The refusal of backing files, of data files, and the limits of what QEMU may use."""
    tally("hostile images")
    trial = ("-c", _PROGRAM.format(patch=patch, more=more))
    judge = ImportJudge(folder / "judge", trial=trial, address_space_bytes=1 << 40)
    with judge:
        # Refused at once: the process has started by then, and its start does not count.
        assert judge.judge(corpus["qcow2: magic 0x0"], stepwise=True).wrong == []
        judge.timeout_s = 60.0 if name != LONG else 2.0
        assert words in "\n".join(judge.judge(corpus[name], stepwise=True).wrong)
    tally("hostile images", runs=2)
