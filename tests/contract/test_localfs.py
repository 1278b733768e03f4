"""localfs-1.0 keeps the contract; what only it has is at the end."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from threading import Event

import pytest

from diskyard import errors
from diskyard.host import Host
from diskyard.host.identity import ProcessIdentity, new_nonce
from diskyard.host.publishing import UncertainError
from diskyard.host.temporary import temporary_name
from diskyard.log.codec import decode
from diskyard.model.transaction import Entry, Frees
from diskyard.storage.interface import Storage
from diskyard.storage.localfs import connect, layout
from diskyard.storage.localfs.access import Access
from diskyard.storage.localfs.remove import remove
from diskyard.testing.faults import FailingFiles, no_space, with_files
from diskyard.testing.lease_contract import first_file
from diskyard.testing.storage_contract import Place, RepositoryContract


def _connect_full(root: str, has_room: Event) -> Storage:
    """Files are made and grow only in room that they have already."""
    host = Host.real()

    def no_room(step: str, words: Sequence[object]) -> int | None:
        if has_room.is_set() or step not in ("create", "write", "keep_room", "preallocate", "make_folder"):
            return None
        if step == "write":
            fd, data = words[:2]
            assert isinstance(fd, int)
            assert isinstance(data, bytes)
            return None if os.fstat(fd).st_blocks * 512 >= len(data) else errno.ENOSPC
        return errno.ENOSPC

    return connect.connect({"path": root}, with_files(host, FailingFiles(host.identity, no_room)))


class TestLocalfs(RepositoryContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        root = tmp_path / "repository"
        return Place(
            "localfs-1.0",
            {"path": str(root)},
            other_processes=True,
            copy_path=lambda kind, number, copy: Path(layout.log_paths(str(root), kind, number)[copy]),
            fill=lambda: first_file(root),
            connect_full=lambda has_room: _connect_full(str(root), has_room),
        )

    @pytest.mark.parametrize("server", ["nfs.example", ""])
    def test_parameters_of_a_network_are_refused(self, place: Place, server: str) -> None:
        with pytest.raises(errors.InvalidParameter):
            Place(place.format, {**place.parameters, "server": server}).create()

    def test_a_network_file_system_is_refused(
        self, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place.create()
        device = os.stat(tmp_path).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        as_nfs = f"36 35 {number} / /srv rw,relatime shared:1 - nfs4 server:/export rw\n"
        monkeypatch.setattr(Path, "read_text", lambda self, **words: as_nfs)
        with pytest.raises(errors.Unsupported):
            place.connect()

    def test_a_creation_that_was_overtaken_changes_nothing(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The other creation ends between this one's look at the folder and its lease.
        make_folders = connect._make_folders

        def overtaken(host: Host, root: str, access: Access) -> None:
            make_folders(host, root, access)
            monkeypatch.setattr(connect, "_make_folders", make_folders)
            place.create()

        monkeypatch.setattr(connect, "_make_folders", overtaken)
        with pytest.raises(errors.NotEmpty):
            place.create()
        repository = place.connect()
        entry, _ = decode(repository.get("entry", 0)[0] or b"", Entry)
        assert entry.marker == repository.marker

    def test_a_temporary_file_in_the_root_is_a_leftover(self, place: Place, tmp_path: Path) -> None:
        # There the repository's record is written again.
        place.create()
        host = Host.real()
        gone = ProcessIdentity(host.identity.machine_id, new_nonce(), 1, 1, 1)
        left = tmp_path / "repository" / temporary_name(gone, 0)
        left.touch()
        repository = place.connect()
        assert [item.name for item in repository.list_leftovers()] == [left.name]
        assert repository.delete_leftover(left.name)
        assert not left.exists()
        left.touch()
        remove(connect.connect(place.parameters, host), host)
        assert list((tmp_path / "repository").iterdir()) == []

    def test_a_full_storage_leaves_the_number_free(self, place: Place) -> None:
        place.create()
        host = Host.real()
        full = place.connect(with_files(host, FailingFiles(host.identity, no_space)))
        with pytest.raises(OSError, match="space") as caught:
            full.put("entry", 1, b"one")
        assert not isinstance(caught.value, UncertainError)
        assert place.connect().put("entry", 1, b"another") is True

    def test_no_room_after_the_name_was_given_is_uncertain(self, place: Place) -> None:
        # With the reserve too: a second try would find the first one's entry and call it lost.
        place.create()
        host = Host.real()
        files = FailingFiles(
            host.identity,
            lambda step, words: errno.ENOSPC if step == "sync_folder" else None,
            afterwards=True,
        )
        failing = place.connect(with_files(host, files))
        with pytest.raises(UncertainError):
            failing.put("entry", 1, b"one", frees=Frees.AT_ONCE)
        assert place.connect().get("entry", 1) == (b"one", b"one")

    def test_a_folder_without_room_for_the_name_is_certain(self, place: Place, tmp_path: Path) -> None:
        # A file of the reserve is spent on it, whose blocks are the folder's then.
        place.create()
        host = Host.real()
        room = iter([errno.ENOSPC, errno.ENOSPC, errno.ENOSPC])
        files = FailingFiles(host.identity, lambda step, words: next(room, None) if step == "link" else None)
        full = place.connect(with_files(host, files))
        with pytest.raises(OSError, match="space") as caught:
            full.put("entry", 1, b"one")
        assert not isinstance(caught.value, UncertainError)
        assert full.put("entry", 1, b"one", frees=Frees.AT_ONCE) is True
        assert place.connect().get("entry", 1) == (b"one", b"one")

    @pytest.mark.parametrize("frees", [Frees.LATER, Frees.AT_ONCE])
    def test_threads_that_use_the_reserve_at_once(self, place: Place, frees: Frees) -> None:
        # Each file of it becomes one copy of one entry.
        place.create()
        assert place.connect_full is not None
        connections = [place.connect_full(Event()) for _ in range(4)]
        won: dict[int, list[int]] = {number: [] for number in range(1, 11)}
        barrier = threading.Barrier(len(connections), timeout=30)

        def publish(writer: int) -> None:
            for number in won:
                barrier.wait()
                if connections[writer].put("entry", number, b"writer %d" % writer, frees=frees):
                    won[number].append(writer)

        threads = [threading.Thread(target=publish, args=(writer,)) for writer in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, (winner,) in won.items():
            data = b"writer %d" % winner
            assert connections[0].get("entry", number) == (data, data)

    @pytest.mark.parametrize("second_name", [False, True])
    def test_a_file_that_is_somebody_elses_is_not_written_to(
        self, place: Place, tmp_path: Path, second_name: bool
    ) -> None:
        # As a backup that shares files makes them, or a copy that left holes where zeros were.
        place.create()
        assert place.connect_full is not None
        reserve = tmp_path / "repository" / layout.RESERVE
        for path in reserve.iterdir():
            if second_name:
                (tmp_path / path.name).hardlink_to(path)
            else:
                size_bytes = path.stat().st_size
                path.unlink()
                path.touch()
                os.truncate(path, size_bytes)
        with pytest.raises(OSError, match="space"):
            place.connect_full(Event()).put("entry", 1, b"one", frees=Frees.AT_ONCE)
        assert place.connect().put("entry", 1, b"one") is True
        assert not any(path.stat().st_size and any(path.read_bytes()) for path in reserve.iterdir())
        assert place.connect_full(Event()).put("entry", 2, b"two", frees=Frees.AT_ONCE) is True

    def test_the_reserve_of_an_earlier_version(self, place: Place, tmp_path: Path) -> None:
        # It was one file; it is replaced before the next entry is written, and else as good as none.
        place.create()
        assert place.connect_full is not None
        reserve = tmp_path / "repository" / layout.RESERVE
        shutil.rmtree(reserve)
        reserve.write_bytes(bytes(4 << 20))
        with pytest.raises(OSError, match="space"):
            place.connect_full(Event()).put("entry", 1, b"one", frees=Frees.AT_ONCE)
        assert place.connect().put("entry", 1, b"one") is True
        assert place.connect_full(Event()).put("entry", 2, b"two", frees=Frees.AT_ONCE) is True
        remove(connect.connect(place.parameters, Host.real()), Host.real())
        assert list((tmp_path / "repository").iterdir()) == []


def test_the_newest_number_is_found_among_other_names() -> None:
    """What is not ours is passed over, also where it has the length of our names and sorts last."""
    assert layout.newest_number([]) == 0
    names = ["0000000000000010.b", "000000000000000f.a", "tmp.1", "z" * 18, "0000000000000099.c"]
    assert layout.newest_number(names) == 16
