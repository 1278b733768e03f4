"""The contract suite's part about a full storage: entries that free space can be published all the same."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from threading import Event

import pytest

from diskyard.host.publishing import UncertainError
from diskyard.model.transaction import Frees
from diskyard.storage.interface import Storage
from diskyard.testing.log_contract import framed
from diskyard.testing.place import Place, fresh_name

_ENTRY_BYTES = 2000
_LARGE_BYTES = 100_000
#: A merge takes two entries, and a third ends what waits for it.
_FIX_ENTRIES = 3


class ReserveContract:
    """What ``put`` and ``rewrite`` promise on a full storage."""

    @pytest.fixture
    def has_room(self) -> Event:
        """Set once the storage has free space again."""
        return Event()

    @pytest.fixture
    def full(self, repository: Storage, place: Place, has_room: Event) -> Iterator[Storage]:
        """The repository, when the storage is full; the fixture before this one has made it."""
        if place.connect_full is None:
            pytest.skip("the format cannot be full")
        connected = place.connect_full(has_room)
        yield connected
        connected.close()

    @pytest.mark.parametrize("frees", [Frees.LATER, Frees.WHEN_FIXED, Frees.AT_ONCE])
    def test_what_frees_is_published(self, full: Storage, repository: Storage, frees: Frees) -> None:
        """Entries that free nothing are refused, and their numbers stay free."""
        with pytest.raises(OSError, match="space") as caught:
            full.put("entry", 1, b"another")
        assert not isinstance(caught.value, UncertainError)
        assert full.put("entry", 1, b"one", frees=frees) is True
        assert repository.get("entry", 1) == (b"one", b"one")
        assert full.put("entry", 1, b"two", frees=frees) is False
        assert repository.get("entry", 1) == (b"one", b"one")

    def test_a_large_entry(self, full: Storage, repository: Storage) -> None:
        """An entry that ends many things at once."""
        data = framed(os.urandom(_LARGE_BYTES))
        assert full.put("entry", 1, data, frees=Frees.AT_ONCE) is True
        assert repository.get("entry", 1) == (data, data)

    def test_a_lost_copy_is_written_again(self, full: Storage, repository: Storage) -> None:
        """This is needed because no entry can follow one that has a single replica."""
        full.put("entry", 1, b"one", frees=Frees.AT_ONCE)
        repository.rewrite("entry", 1, 1, b"other")
        full.rewrite("entry", 1, 1, b"one")
        assert repository.get("entry", 1) == (b"one", b"one")

    def test_what_frees_sooner_can_be_published_when_what_frees_later_cannot(self, full: Storage) -> None:
        """However many images were removed, a fix that frees space can run; then all is as before."""
        number, done = 1, dict.fromkeys(Frees, 0)
        for frees in (Frees.LATER, Frees.WHEN_FIXED, Frees.AT_ONCE):
            with suppress(OSError):
                while full.put("entry", number, framed(bytes(_ENTRY_BYTES)), frees=frees):
                    number, done[frees] = number + 1, done[frees] + 1
        assert all(done[frees] > _FIX_ENTRIES for frees in Frees if frees), done

    def test_it_is_taken_again_first(self, full: Storage, repository: Storage, has_room: Event) -> None:
        """The reserve is filled when a volume is deleted, and before anything else is written."""
        number = self._spend(full, 1)
        name = fresh_name()
        repository.create_volume(name, length_bytes=1 << 20)
        has_room.set()
        full.delete_volume(name)
        has_room.clear()
        number = self._spend(full, number)
        has_room.set()
        assert full.put("entry", number, b"no need of it") is True
        has_room.clear()
        self._spend(full, number + 1)

    def _spend(self, full: Storage, number: int) -> int:
        """Use up the reserve, which must be there. Return the next number."""
        first = number
        try:
            while full.put("entry", number, framed(bytes(_ENTRY_BYTES)), frees=Frees.AT_ONCE):
                number += 1
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017 - what counts is how often it succeeded
        assert number - first > 2 * _FIX_ENTRIES
        return number
