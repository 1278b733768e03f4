"""The contract suite's third part: leases, and creating and connecting a repository."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.host import Host
from diskyard.log.codec import Checkpoint, decode
from diskyard.model.transaction import Entry
from diskyard.storage.interface import Storage
from diskyard.testing import other_process
from diskyard.testing.faults import Crash, CrashingFiles, with_files
from diskyard.testing.place import Place

_TIMEOUT_S = 10.0


def _until_free(repository: Storage, name: str) -> bool:
    deadline_s = time.monotonic() + _TIMEOUT_S
    while repository.is_locked(name):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True


class LeaseContract:
    """What ``try_lock`` and ``is_locked`` promise."""

    def test_a_lease_is_held_once(self, repository: Storage, place: Place) -> None:
        """Not even the same connection can take it again. Other leases are not affected."""
        other = place.connect()
        lease = repository.try_lock("image")
        assert lease is not None
        assert repository.try_lock("image") is None
        assert other.try_lock("image") is None
        another = other.try_lock("another image")
        assert another is not None
        another.release()
        lease.release()
        again = other.try_lock("image")
        assert again is not None
        again.release()

    def test_looking_does_not_take_it(self, repository: Storage, place: Place) -> None:
        """Nor does it disturb the holder."""
        other = place.connect()
        assert repository.is_locked("image") is False
        lease = repository.try_lock("image")
        assert lease is not None
        for _ in range(3):
            assert repository.is_locked("image") is True
            assert other.is_locked("image") is True
        assert other.try_lock("image") is None
        lease.release()
        assert other.is_locked("image") is False

    def test_many_are_asked_for_at_once(self, repository: Storage, place: Place) -> None:
        """The answer agrees with that for each name, whoever holds them and however many there are."""
        other = place.connect()
        names = [f"image {number}" for number in range(20)]
        assert repository.locked_among(names) == set()
        leases = [storage.try_lock(name) for name in names[:12] for storage in (repository, other)]
        for storage in (repository, other):
            assert storage.locked_among(names) == set(names[:12])
            assert storage.locked_among(names[6:]) == set(names[6:12])
            assert storage.locked_among([]) == set()
        for lease in filter(None, leases):
            lease.release()
        assert other.locked_among(names) == set()

    def test_releasing_twice_does_nothing(self, repository: Storage) -> None:
        """In particular, it does not end the next holder's lease."""
        lease = repository.try_lock("image")
        assert lease is not None
        lease.release()
        following = repository.try_lock("image")
        lease.release()
        assert following is not None
        assert repository.is_locked("image") is True
        following.release()

    def test_any_name(self, repository: Storage) -> None:
        """Names are text, not parts of a path."""
        leases = [repository.try_lock(name) for name in ("", "../x", "work:1", "work:2", "ü" * 300)]
        assert all(lease is not None for lease in leases)
        for lease in leases:
            assert lease is not None
            lease.release()

    def test_another_process_is_kept_out_until_it_is_dead(self, repository: Storage, place: Place) -> None:
        """However it ends."""
        if not place.other_processes:
            pytest.skip("the format lives in one process")
        process = other_process.start(place, "hold", name="image")
        assert other_process.answer(process) == 0
        assert repository.is_locked("image") is True
        assert repository.try_lock("image") is None
        other_process.end(process, kill=True)
        assert _until_free(repository, "image")
        lease = repository.try_lock("image")
        assert lease is not None
        late = other_process.start(place, "hold", name="image")
        assert other_process.answer(late) is None
        other_process.end(late)
        lease.release()

    def test_a_child_keeps_it_after_its_parents_death(self, repository: Storage, place: Place) -> None:
        """A program that moves data holds the lease as long as it can move any."""
        if not place.other_processes:
            pytest.skip("the format lives in one process")
        process = other_process.start(place, "hold", name="image", child=True)
        child = other_process.answer(process)
        process.kill()
        process.wait()
        assert repository.is_locked("image") is True
        assert repository.try_lock("image") is None
        os.kill(child, signal.SIGKILL)
        assert _until_free(repository, "image")
        other_process.end(process)

    def test_a_child_keeps_it_after_it_is_released(self, repository: Storage, place: Place) -> None:
        """Releasing it here does not take it from a child that is still at work."""
        lease = repository.try_lock("image")
        assert lease is not None
        if not lease.descriptors():
            lease.release()
            pytest.skip("the format has nothing that a child can inherit")
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            pass_fds=lease.descriptors(),
        )
        lease.release()
        assert lease.descriptors() == ()
        assert repository.is_locked("image") is True
        child.communicate()
        assert _until_free(repository, "image")


class PlaceContract:
    """What creating and connecting promise."""

    def test_a_new_repository_has_a_readable_beginning(self, repository: Storage) -> None:
        """Entry 0 and checkpoint 0, with two replicas each, and with the repository's marker."""
        for copy in repository.get("entry", 0):
            entry, newer = decode(copy or b"", Entry)
            assert (entry.marker, entry.number, newer) == (repository.marker, 0, False)
        for copy in repository.get("checkpoint", 0):
            checkpoint, _ = decode(copy or b"", Checkpoint)
            assert (checkpoint.marker, checkpoint.version) == (repository.marker, 0)

    def test_connections_of_one_place_have_one_marker(self, repository: Storage, place: Place) -> None:
        """This is how aliases are detected."""
        assert place.connect().marker == repository.marker

    def test_creating_it_again_is_refused(self, repository: Storage, place: Place) -> None:
        """And the repository stays as it is."""
        before = repository.get("entry", 0)
        with pytest.raises(errors.NotEmpty):
            place.create()
        assert place.connect().get("entry", 0) == before

    def test_a_place_that_holds_something_is_refused(self, place: Place) -> None:
        """And its contents are left alone."""
        if place.fill is None:
            pytest.skip("nothing foreign can be in such a place")
        place.fill()
        with pytest.raises(errors.NotEmpty):
            place.create()
        with pytest.raises(errors.NotARepository):
            place.connect()

    def test_what_is_not_there_is_no_repository(self, place: Place) -> None:
        """Connecting makes nothing."""
        for _ in range(2):
            with pytest.raises(errors.NotARepository):
                place.connect()

    def test_parameters_that_are_not_the_formats(self, place: Place) -> None:
        """A missing one, an unknown one, or one of the wrong type."""
        known = dict(place.parameters)
        wrong = [{}, {**known, "colour": "blue"}, dict.fromkeys(known, 7), dict.fromkeys(known, "")]
        wrong.append(dict.fromkeys(known, "x\x00y") if "path" in known else {"server": "nfs.example"})
        for parameters in wrong:
            with pytest.raises(errors.InvalidParameter):
                Place(place.format, parameters).create()
            with pytest.raises(errors.InvalidParameter):
                Place(place.format, parameters).connect()

    def test_creating_that_was_cut_anywhere_is_completed_by_creating_again(self, place: Place) -> None:
        """Until its last step it is not a repository, and never half of one."""
        host = Host.real()
        for crash_at in range(1, 500):
            files = CrashingFiles(host.identity, crash_at)
            attempt = Place(place.format, {k: f"{v}-{crash_at}" for k, v in place.parameters.items()})
            try:
                attempt.create(with_files(host, files))
            except Crash:
                try:
                    repository = attempt.connect()
                except errors.NotARepository:
                    attempt.create()
                    repository = attempt.connect()
                assert repository.get("entry", 0)[0]
                assert repository.get("checkpoint", 0)[0]
                assert repository.put("entry", 1, b"next") is True
                assert repository.list_volumes() == []
            else:
                return
        raise AssertionError("creating has no end")


def first_file(path: Path) -> None:
    """Put a foreign file where a repository is to be made."""
    path.mkdir()
    (path / "letter.txt").write_text("mine")
