"""Storage on which a new volume is not zeros, as a logical volume is not: what was there never shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diskyard import KiB, MiB
from diskyard.model.volume_name import VolumeName
from tests.api.helpers import SIZE, Rig, picture, settle

ONE = (1, MiB, 64 * KiB)


@pytest.fixture
def rig(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Repository ``b`` has 0xAA wherever nothing was written yet."""
    storage = rig.repository("b").storage
    create = storage.create_volume

    def garbage(
        name: VolumeName, *, length_bytes: int, initial: bytes = b"", preallocate: bool = False
    ) -> None:
        filled = initial + b"\xaa" * (length_bytes - len(initial))
        create(name, length_bytes=length_bytes, initial=filled, preallocate=preallocate)

    monkeypatch.setattr(storage, "create_volume", garbage)
    monkeypatch.setattr(storage, "capabilities", replace(storage.capabilities, zeroed=False, reflink=False))
    return rig


def test_an_import(rig: Rig) -> None:
    """Holes of the file are zeros in its image."""
    file = rig.folder / "file.raw"
    file.write_bytes(picture(SIZE, ONE))
    image = rig.yard.import_image("b", str(file), "raw")
    rig.wait()
    rig.expect("b", image, picture(SIZE, ONE))


def test_a_copy(rig: Rig) -> None:
    disk = rig.disk("a", ONE)
    copy = rig.yard.copy_image("b", disk)
    rig.wait()
    rig.expect("b", copy, picture(SIZE, ONE))


def test_a_new_disk_and_its_snapshot(rig: Rig) -> None:
    disk = rig.disk("b", ONE)
    snapshot = rig.yard.create_snapshot("b", disk)
    rig.write("b", disk, (2, 2 * MiB, 64 * KiB))
    rig.expect("b", snapshot, picture(SIZE, ONE))
    rig.expect("b", disk, picture(SIZE, ONE, (2, 2 * MiB, 64 * KiB)))


def test_a_disk_for_performance(rig: Rig) -> None:
    """It can show zeros at once only as qcow2; optimizing it writes them, and then it is raw."""
    disk = rig.disk("b", ONE, strategy="performance")
    assert rig.volume_path("b", disk).suffix == ".qcow2"
    rig.expect("b", disk, picture(SIZE, ONE))
    assert rig.yard.get_image_status("b", disk).status == "degraded"
    settle(rig.yard, "b")
    assert rig.yard.get_image_status("b", disk).status == "optimized"
    assert rig.volume_path("b", disk).suffix == ".raw"
    rig.expect("b", disk, picture(SIZE, ONE))
    rig.clean_slate("b")
