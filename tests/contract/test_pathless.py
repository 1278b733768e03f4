"""pathless-1.0 keeps the contract, though none of its volumes is a file here."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskyard.testing import pathless
from diskyard.testing.storage_contract import Place, RepositoryContract


class TestPathless(RepositoryContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return Place(pathless.FORMAT, pathless.parameters(str(tmp_path / "repository")), other_processes=True)
