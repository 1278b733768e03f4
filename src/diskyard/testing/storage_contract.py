"""What every repository format must pass. A format's own test names the format and a location.

This is all that is needed::

    class TestMine(RepositoryContract):
        @pytest.fixture
        def place(self, tmp_path):
            return Place("mine-1.0", {"path": str(tmp_path / "repository")}, other_processes=True)

Each promise in the docstring of :mod:`diskyard.storage.interface` is a test here. What a format cannot
have (files, other processes) is skipped, depending on :class:`Place`, never on its name.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from diskyard.storage.interface import Storage
from diskyard.testing.lease_contract import LeaseContract, PlaceContract
from diskyard.testing.log_contract import LogStoreContract
from diskyard.testing.place import Place
from diskyard.testing.reserve_contract import ReserveContract
from diskyard.testing.volume_contract import VolumeContract

__all__ = ["Place", "RepositoryContract"]


class RepositoryContract(LogStoreContract, ReserveContract, VolumeContract, LeaseContract, PlaceContract):
    """The whole contract. A subclass has the fixture ``place``."""

    @pytest.fixture
    def repository(self, place: Place) -> Iterator[Storage]:
        """A new, empty repository."""
        place.create()
        repository = place.connect()
        yield repository
        repository.close()
