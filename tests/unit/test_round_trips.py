"""No verb or fix asks storage more often than the table of docs/performance.md says, nor under a lock."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from diskyard.testing.round_trips import CASES, RoundTrips, Worlds, count, table_of
from diskyard.testing.scenarios import Scenario

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs" / "performance.md"
TABLE = {name: now for name, (_, now) in table_of(DOCUMENT.read_text(encoding="utf-8")).items()}


@pytest.fixture(scope="module")
def worlds() -> Iterator[Worlds]:
    with tempfile.TemporaryDirectory(prefix="dy-") as folder:  # a short name: sockets are in it
        yield Worlds(Path(folder))


def differences(counted: RoundTrips, told: RoundTrips) -> list[str]:
    """What grew or shrank, in words."""
    return [
        f"{kind.replace('_', ' ')} {'grew' if now > before else 'shrank'} from {before} to {now}"
        for (kind, now), before in zip(asdict(counted).items(), asdict(told).values(), strict=True)
        if now != before
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_storage_is_asked_as_often_as_the_table_says(case: Scenario, worlds: Worlds) -> None:
    counter = count(case, worlds.ready_for(case))
    assert case.name in TABLE, f"docs/performance.md lacks a row: run benchmarks.round_trips for {case.name}"
    assert not differences(counter.counted(), TABLE[case.name]), (
        "if that is meant, run `python -m benchmarks.round_trips` and put its table into docs/performance.md"
    )
    # A repository's log has a lock of its own, and nobody waits for it while the storage hangs (PatientLock).
    of_logs = {asked for asked in counter.under_locks() if " under diskyard.host.calls:" in asked}
    assert of_logs, "no lock was watched"
    assert counter.under_locks() == of_logs


def test_the_table_has_no_other_rows() -> None:
    assert sorted(TABLE) == sorted(case.name for case in CASES)


def test_what_grew_is_told_in_words() -> None:
    told = RoundTrips(entries=2, refreshes=3, looks=7)
    counted = RoundTrips(entries=2, refreshes=4, looks=6)
    assert differences(counted, told) == ["refreshes grew from 3 to 4", "looks shrank from 7 to 6"]
