from __future__ import annotations

import struct
from pathlib import Path

import pytest

from diskyard.mover.formats.qcow2_header import ReadAt, empty_qcow2, own_header_flaw
from diskyard.mover.formats.qcow2_snapshots import backing_name, snapshot_count, snapshots_flaw
from tests.api.helpers import run

MiB = 1 << 20
SIZE = 4 * MiB


@pytest.fixture
def image(tmp_path: Path) -> bytearray:
    """An image with two internal snapshots that QEMU made."""
    path = tmp_path / "image.qcow2"
    path.write_bytes(empty_qcow2(SIZE, None))
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", str(path))
    for name in ("one", "two"):
        run("qemu-img", "snapshot", "-c", name, str(path))
    return bytearray(path.read_bytes())


def reading(data: bytes) -> ReadAt:
    return lambda offset_bytes, size_bytes: data[offset_bytes : offset_bytes + size_bytes]


def flaw(image: bytearray) -> str | None:
    read = reading(bytes(image))
    return own_header_flaw(read, len(image), SIZE) or snapshots_flaw(read, len(image))


def table_of(image: bytearray) -> int:
    offset: int = struct.unpack_from(">Q", image, 64)[0]
    return offset


def test_what_qemu_makes_is_sound(image: bytearray) -> None:
    assert flaw(image) is None
    assert snapshot_count(reading(bytes(image))) == 2


@pytest.mark.parametrize(
    ("form", "offset_bytes", "value"),
    [
        (">I", 60, 3),  # more than there are: what follows is zeros
        (">I", 60, 5000),
        (">I", 60, 0xFFFFFFFF),
        (">Q", 64, 0),
        (">Q", 64, 512),
        (">Q", 64, 1 << 40),
        (">Q", 64, (1 << 64) - (1 << 16)),
    ],
)
def test_a_header_that_lies(image: bytearray, form: str, offset_bytes: int, value: int) -> None:
    struct.pack_into(form, image, offset_bytes, value)
    assert flaw(image) is not None


@pytest.mark.parametrize(
    ("form", "offset_bytes", "value"),
    [
        (">Q", 0, 0),  # L1 table: offset
        (">Q", 0, 1),
        (">Q", 0, 1 << 40),
        (">I", 8, 0xFFFFFFFF),  # L1 table: entries
        (">I", 8, 1 << 20),
        (">I", 36, 0xFFFFFFFF),  # extra data
        (">I", 36, 1025),
    ],
)
def test_a_snapshot_that_lies(image: bytearray, form: str, offset_bytes: int, value: int) -> None:
    struct.pack_into(form, image, table_of(image) + offset_bytes, value)
    assert flaw(image) is not None


def test_a_table_that_is_cut_short(image: bytearray) -> None:
    del image[table_of(image) + 20 :]
    assert flaw(image) is not None


@pytest.mark.parametrize("head", [b"", b"QFI\xfb", b"QFI\xfb" + bytes(16), b"raw!" + b"\xff" * 100])
def test_no_backing_name(head: bytes) -> None:
    assert backing_name(reading(head)) is None


def test_a_backing_name() -> None:
    made = empty_qcow2(SIZE, "/srv/images/a.raw")
    assert backing_name(reading(made)) == "/srv/images/a.raw"
    for length in (0, 1024, 0xFFFFFFFF):
        lying = bytearray(made)
        struct.pack_into(">I", lying, 16, length)
        assert backing_name(reading(bytes(lying))) is None
