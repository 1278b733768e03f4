"""rounded-1.0 keeps the contract; what only it has is at the end: its containers are never zeros."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskyard.testing import rounded
from diskyard.testing.place import fresh_name
from diskyard.testing.rounded.storage import UNIT_BYTES
from diskyard.testing.storage_contract import Place, RepositoryContract


class TestRounded(RepositoryContract):
    @pytest.fixture
    def place(self, quick_folder: Path) -> Place:
        return Place(rounded.FORMAT, {"path": str(quick_folder / "repository")}, other_processes=True)

    def test_there_is_garbage_wherever_nothing_was_written(self, place: Place) -> None:
        # Without a zero, and other garbage in each volume; in what a volume gains too.
        place.create()
        repository = place.connect()
        names = fresh_name(), fresh_name(2)
        for name in names:
            repository.create_volume(name, length_bytes=100_000, initial=b"head")
            repository.grow_volume(name, length_bytes=UNIT_BYTES + 1)
        first, second = (repository.read_volume(name, 0, 3 * UNIT_BYTES) for name in names)
        for data in (first, second):
            assert len(data) == 2 * UNIT_BYTES
            assert data[:4] == b"head"
            assert 0 not in data
        assert first[4:UNIT_BYTES] != second[4:UNIT_BYTES]
        assert first[UNIT_BYTES:] != second[UNIT_BYTES:]
