"""A merge of volumes of different sizes leaves the image its own size."""

from __future__ import annotations

from pathlib import Path

from diskyard import Diskyard
from diskyard.host import Host
from diskyard.testing.guest import Guest


def test_a_short_copy_is_not_dropped_into_its_longer_base(tmp_path: Path) -> None:
    with Diskyard() as yard, Guest(Host.real()) as guest:
        for repo in "AB":
            parameters = {"path": str(tmp_path / repo)}
            yard.create_storage_repository("localfs-1.0", parameters)
            yard.connect_storage_repository(repo, "localfs-1.0", parameters)
        disk = yard.create_virtual_disk("A", 512)
        base = yard.create_virtual_disk("B", 1 << 20)
        yard.create_snapshot("B", base)  # so that what the base is frozen as is an empty overlay
        copy = yard.copy_image("B", disk, base)
        yard.wait_for_tasks()
        yard.remove_image("B", base)
        yard.wait_for_tasks()
        (merge,) = yard.check_storage_repository("B", {"types": ["merge"]})
        yard.fix_storage_repository("B", merge)
        yard.wait_for_tasks()
        assert len(guest.read(yard.prepare_image("B", copy).blockdev)) == 512
