"""The contract suite's second part: volumes, progress, leftovers and space."""

from __future__ import annotations

import json
import os
import subprocess
import time
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from diskyard.attachments.libvirt import disk_xml
from diskyard.host import Host
from diskyard.model.volume_name import VolumeName
from diskyard.mover.interface import Layer
from diskyard.storage.interface import Storage, StoredVolume
from diskyard.testing import other_process
from diskyard.testing.place import Place, fresh_name

KIB, MIB = 1 << 10, 1 << 20


def _stored(repository: Storage, name: VolumeName) -> StoredVolume:
    found = repository.stored_volume(name)
    assert found is not None
    return found


def _read(repository: Storage, name: VolumeName) -> bytes:
    """All bytes of a volume, read through its storage."""
    with repository.open_volume(name) as container:
        return container.read(0, container.length_bytes())


def _qemu(repository: Storage, name: VolumeName, *commands: str) -> list[str]:
    """The command that runs qemu-io on a volume, as a program of QEMU opens it."""
    file = {"driver": "raw", "file": dict(repository.locate_volume(name).protocol)}
    return [
        "qemu-io",
        *(word for command in commands for word in ("-c", command)),
        "json:" + json.dumps(file),
    ]


def _path(repository: Storage, name: VolumeName) -> Path:
    """The path of a volume's file, for changes that bypass Diskyard."""
    path = repository.locate_volume(name).path
    if path is None:
        pytest.skip("the format gives no paths")
    return Path(path)


class VolumeContract:
    """What the methods on volumes promise, and those on small things beside the log."""

    def test_a_new_repository_has_none(self, repository: Storage) -> None:
        """Nor does it contain anything else."""
        assert repository.list_volumes() == []
        assert repository.progress_image_ids() == []
        assert repository.list_leftovers() == []

    def test_create_and_list(self, repository: Storage, place: Place) -> None:
        """Another connection sees it in one listing, with the same values as singly."""
        names = [fresh_name(number) for number in (1, 2, 300)]
        for name in names:
            repository.create_volume(name, length_bytes=64 * KIB)
        other = place.connect()
        listed = {item.name: item for item in other.list_volumes()}
        assert set(listed) == set(names)
        for name in names:
            assert listed[name] == other.stored_volume(name)
            assert listed[name].length_bytes >= 64 * KIB
        absent = fresh_name(4)
        assert other.stored_volumes([*names, absent]) == [*(listed[name] for name in names), None]
        assert other.stored_volumes([]) == []

    def test_a_volume_begins_with_its_bytes_and_goes_on_with_zeros(self, repository: Storage) -> None:
        """``initial``, then zeros up to the length, where the format zeroes."""
        name = fresh_name()
        repository.create_volume(name, length_bytes=128 * KIB, initial=b"head" * 100)
        data = _read(repository, name)
        assert data[:400] == b"head" * 100
        if repository.capabilities.zeroed:
            assert not any(data[400:])

    def test_initial_bytes_longer_than_the_length(self, repository: Storage) -> None:
        """The length is a minimum."""
        name = fresh_name(format="qcow2")
        repository.create_volume(name, length_bytes=1, initial=b"x" * 5000)
        assert _stored(repository, name).length_bytes >= 5000
        assert _read(repository, name)[:5000] == b"x" * 5000

    def test_preallocated_blocks_are_allocated(self, repository: Storage) -> None:
        """If the format has the capability."""
        if not repository.capabilities.preallocation:
            pytest.skip("the format cannot preallocate")
        sparse, reserved = fresh_name(), fresh_name()
        repository.create_volume(sparse, length_bytes=MIB)
        repository.create_volume(reserved, length_bytes=MIB, preallocate=True)
        if repository.capabilities.zeroed:
            assert _stored(repository, sparse).allocated_bytes < MIB
        assert _stored(repository, reserved).allocated_bytes >= MIB
        repository.grow_volume(sparse, length_bytes=MIB, preallocate=True)
        assert _stored(repository, sparse).allocated_bytes >= MIB

    def test_a_name_is_given_once(self, repository: Storage) -> None:
        """An existing volume is left as it is."""
        name = fresh_name()
        repository.create_volume(name, length_bytes=4096, initial=b"first")
        with pytest.raises(FileExistsError):
            repository.create_volume(name, length_bytes=4096, initial=b"second")
        assert _read(repository, name)[:5] == b"first"

    def test_lengths_are_in_units(self, repository: Storage) -> None:
        """Whoever sets them; and blocks that are shared would have others in their last unit."""
        capabilities, name = repository.capabilities, fresh_name()
        assert not capabilities.reflink or (capabilities.zeroed and capabilities.length_unit_bytes == 1)
        repository.create_volume(name, length_bytes=20 * KIB)
        assert _stored(repository, name).length_bytes == capabilities.container_bytes(20 * KIB)
        longer_bytes = capabilities.container_bytes(20 * KIB) + 512
        repository.grow_volume(name, length_bytes=longer_bytes)
        assert _stored(repository, name).length_bytes == capabilities.container_bytes(longer_bytes)
        with repository.open_volume(name) as container:
            container.set_length(512)
            container.sync()
        assert _stored(repository, name).length_bytes == capabilities.container_bytes(512)

    def test_grow(self, repository: Storage) -> None:
        """What was there stays, what is new reads zeros where the format zeroes, and nothing is shortened."""
        name = fresh_name()
        repository.create_volume(name, length_bytes=4096, initial=b"a" * 4096)
        repository.grow_volume(name, length_bytes=256 * KIB)
        repository.grow_volume(name, length_bytes=8192)
        assert _stored(repository, name).length_bytes >= 256 * KIB
        data = _read(repository, name)
        assert data[:4096] == b"a" * 4096
        if repository.capabilities.zeroed:
            assert not any(data[4096:])

    def test_growing_what_is_not_there_fails(self, repository: Storage) -> None:
        """And nothing is made."""
        name = fresh_name()
        with pytest.raises(OSError):  # noqa: PT011 - the system decides which one
            repository.grow_volume(name, length_bytes=4096)
        assert repository.stored_volume(name) is None

    def test_delete(self, repository: Storage) -> None:
        """It can be deleted once: the second time it does not exist."""
        name, other = fresh_name(), fresh_name()
        repository.create_volume(name, length_bytes=4096)
        repository.create_volume(other, length_bytes=4096)
        assert repository.delete_volume(name) is True
        assert repository.delete_volume(name) is False
        assert repository.stored_volume(name) is None
        assert [item.name for item in repository.list_volumes()] == [other]

    def test_clone(self, repository: Storage) -> None:
        """If blocks can be shared: the same bytes, independent from then on. Otherwise False, and nothing."""
        source, target = fresh_name(), fresh_name()
        repository.create_volume(source, length_bytes=MIB, initial=b"shared" * 1000)
        cloned = repository.clone_volume(source, target)
        assert cloned is repository.capabilities.reflink
        if not cloned:
            assert repository.stored_volume(target) is None
            return
        assert _read(repository, target) == _read(repository, source)
        subprocess.run(_qemu(repository, source, "write -P 7 0 4k"), check=True, capture_output=True)
        assert _read(repository, target)[:6] == b"shared"

    def test_locate_needs_no_volume(self, repository: Storage) -> None:
        """A blockdev's driver and location, without node names, of a kind that libvirt can use too."""
        located = repository.locate_volume(fresh_name())
        assert "driver" in located.protocol
        assert "node-name" not in located.protocol
        layer = Layer("volume", "raw", located.protocol, located.path, MIB)
        xml = disk_xml(Host.real(), (layer,), read_only=True)
        # Diskyard itself has just written this text, so no parser for hostile XML is needed.
        source = ET.fromstring(xml).find("source")  # noqa: S314 - our own
        assert source is not None
        assert set(source.attrib) & {"file", "dev", "name"}

    def test_parts_of_a_volume(self, repository: Storage) -> None:
        """Opened or by its name: from any offset, and fewer bytes only at the end."""
        name, data = fresh_name(), bytes(range(256)) * 32
        repository.create_volume(name, length_bytes=8192, initial=data)
        with repository.open_volume(name) as container:
            assert container.length_bytes() == _stored(repository, name).length_bytes
            for read in (container.read, partial(repository.read_volume, name)):
                assert read(0, 4096) == data[:4096]
                assert read(1000, 99) == data[1000:1099]
                end_bytes = container.length_bytes()
                assert read(end_bytes - 100, 4096) == _read(repository, name)[-100:]
                assert read(end_bytes + 512, 4096) == b""

    def test_what_is_not_there_is_not_read(self, repository: Storage) -> None:
        """Reading fails, as the interface says, and does not return nothing."""
        name = fresh_name()
        with pytest.raises(FileNotFoundError):
            repository.read_volume(name, 0, 512)
        with pytest.raises(FileNotFoundError), repository.open_volume(name):
            pass
        assert repository.volume_is_written(name) is False

    def test_a_volume_ends_where_it_is_told_to(self, repository: Storage, place: Place) -> None:
        """Up to its unit of lengths; where lengths are exact and zeroed, what was cut off is zeros then."""
        name = fresh_name()
        repository.create_volume(name, length_bytes=64 * KIB, initial=b"a" * 64 * KIB)
        with repository.open_volume(name) as container:
            container.set_length(20 * KIB)
            container.sync()
            container_bytes = repository.capabilities.container_bytes
            assert _stored(place.connect(), name).length_bytes == container_bytes(20 * KIB)
            container.set_length(48 * KIB)
            container.sync()
        data = _read(repository, name)
        assert len(data) == container_bytes(48 * KIB)
        assert data[: 20 * KIB] == b"a" * 20 * KIB
        if repository.capabilities.zeroed and repository.capabilities.length_unit_bytes == 1:
            assert not any(data[20 * KIB :])

    def test_blocks_of_an_open_volume_are_reserved(self, repository: Storage) -> None:
        """If the format has the capability. In no case does it change a byte."""
        name = fresh_name()
        repository.create_volume(name, length_bytes=MIB, initial=b"\7" * 512)
        with repository.open_volume(name) as container:
            container.reserve(MIB)
            container.sync()
        assert _read(repository, name)[:512] == b"\7" * 512
        if repository.capabilities.preallocation:
            assert _stored(repository, name).allocated_bytes >= MIB

    def test_qemu_opens_the_same_bytes(self, repository: Storage) -> None:
        """Through the blockdev, or through a descriptor if there is one."""
        name = fresh_name()
        repository.create_volume(name, length_bytes=64 * KIB, initial=b"\7" * 512)
        words = _qemu(repository, name, "read -P 7 0 512", "write -P 9 4096 512", "flush")
        assert "failed" not in subprocess.run(words, check=True, capture_output=True, text=True).stdout
        assert repository.read_volume(name, 4096, 512) == b"\11" * 512
        with repository.open_volume(name) as container:
            if container.fd is not None:
                assert os.pread(container.fd, 512, 4096) == b"\11" * 512

    def test_a_program_that_writes_to_a_volume_is_seen(self, repository: Storage) -> None:
        """It is seen as long as the volume is open for writing; a reader does not count."""
        name = fresh_name()
        repository.create_volume(name, length_bytes=64 * KIB)
        assert repository.volume_is_written(name) is False
        pipe = subprocess.PIPE
        with subprocess.Popen(_qemu(repository, name), stdin=pipe, stdout=pipe, text=True) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write("write 0 512\n")
            program.stdin.flush()
            while "wrote" not in (line := program.stdout.readline()):
                assert line, "qemu-io has ended"
            assert repository.volume_is_written(name) is True
            program.communicate()
        deadline_s = time.monotonic() + 60  # a server may notice a little later that it has gone
        while repository.volume_is_written(name):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        with repository.open_volume(name):
            assert repository.volume_is_written(name) is False

    @pytest.mark.parametrize("number", [0, 1, 2**63 - 1])
    @pytest.mark.parametrize("nonce", [None, ""])
    @pytest.mark.parametrize("format", ["raw", "qcow2"])
    def test_names_come_back(self, repository: Storage, number: int, nonce: str | None, format: str) -> None:
        """The entry's number and nonce, and the format, are in the name; in format 1.0 there is no nonce."""
        name = fresh_name(number, format, nonce=nonce)
        assert VolumeName.parse(str(name)) == name
        repository.create_volume(name, length_bytes=4096)
        assert [item.name for item in repository.list_volumes()] == [name]

    def test_what_is_not_ours_is_not_listed(self, repository: Storage) -> None:
        """Foreign names among the volumes are left alone."""
        folder = _path(repository, fresh_name()).parent
        (folder / "notes.txt").write_text("mine")
        (folder / str(fresh_name())).mkdir()
        assert repository.list_volumes() == []

    # -- progress -------------------------------------------------------------------------------

    def test_progress(self, repository: Storage, place: Place) -> None:
        """The last progress is read by every connection, until it is removed."""
        name = fresh_name().volume_id
        assert repository.get_progress(name) is None
        repository.put_progress(name, b"10 %")
        repository.put_progress(name, b"20 %")
        assert place.connect().get_progress(name) == b"20 %"
        assert repository.progress_image_ids() == [name]
        repository.remove_progress(name)
        repository.remove_progress(name)
        assert repository.get_progress(name) is None
        assert repository.progress_image_ids() == []

    # -- leftovers --------------------------------------------------------------------------------

    def test_private_paths_are_fresh_and_their_files_no_leftovers_yet(self, repository: Storage) -> None:
        """They are the process's own while it lives."""
        first, second = repository.private_path(), repository.private_path()
        if first is None or second is None:
            pytest.skip("the format has no files")
        assert first != second
        Path(first).write_bytes(b"mine")
        assert repository.list_leftovers() == []
        assert repository.list_volumes() == []
        assert repository.delete_leftover(Path(first).name) is False
        Path(first).unlink()

    def test_what_a_dead_process_left(self, repository: Storage, place: Place) -> None:
        """It is a leftover once the process is gone, and is gone itself after it is deleted."""
        if not place.other_processes:
            pytest.skip("the format lives in one process")
        process = other_process.start(place, "litter")
        path = other_process.answer(process)
        if path is None:
            other_process.end(process)
            pytest.skip("the format has no files")
        assert repository.list_leftovers() == []
        other_process.end(process, kill=True)
        (left,) = repository.list_leftovers()
        assert left.allocated_bytes >= 8192
        assert repository.delete_leftover("no/such/name") is False
        assert repository.delete_leftover(left.name) is True
        assert repository.delete_leftover(left.name) is False
        assert repository.list_leftovers() == []
        assert not Path(path).exists()

    def test_a_volume_outlives_its_process(self, repository: Storage, place: Place) -> None:
        """It is not a leftover."""
        if not place.other_processes:
            pytest.skip("the format lives in one process")
        process = other_process.start(place, "make_volume")
        name = other_process.answer(process)
        other_process.end(process, kill=True)
        assert [str(item.name) for item in repository.list_volumes()] == [name]
        assert repository.list_leftovers() == []

    # -- space --------------------------------------------------------------------------------------

    def test_capacity(self, repository: Storage) -> None:
        """There is some, and no more of it is free than exists."""
        room = repository.capacity()
        assert 0 < room.free_bytes <= room.capacity_bytes

    def test_close(self, repository: Storage, place: Place) -> None:
        """Another connection goes on; closing twice does nothing."""
        first, second = place.connect(Host.real()), place.connect(Host.real())
        first.close()
        first.close()
        assert second.get("entry", 0) != (None, None)
