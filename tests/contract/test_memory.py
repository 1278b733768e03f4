"""memory-1.0 keeps the contract, within its one process."""

from __future__ import annotations

import pytest

from diskyard.host.identity import new_uuid
from diskyard.testing.storage_contract import Place, RepositoryContract


class TestMemory(RepositoryContract):
    @pytest.fixture
    def place(self) -> Place:
        return Place("memory-1.0", {"name": new_uuid()})
