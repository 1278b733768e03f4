"""Raw files, and other things than files in their place."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from diskyard.mover.interface import ImportFormat
from diskyard.testing.hostile_images.cases import HONEST, SIZE_BYTES, STRETCHES, Case, case
from diskyard.testing.hostile_images.picture import Picture
from diskyard.testing.hostile_images.qcow2_file import build
from diskyard.testing.hostile_images.site import Site

_FORMATS: tuple[ImportFormat, ...] = get_args(ImportFormat)


def raw_cases() -> Iterator[Case]:
    """All cases."""
    disk = bytearray(SIZE_BYTES)
    for offset, data in STRETCHES.items():
        disk[offset : offset + len(data)] = data
    yield case("honest", "raw", disk, HONEST)
    for name, head in _heads():
        # What it looks like does not matter: it is imported as raw, and stays unchanged.
        padded = bytes(head).ljust(-(-len(head) // 512) * 512, b"\0")
        yield case(f"begins as {name}", "raw", head, Picture.of(len(padded), {0: padded}))
    for size in (1, 511, 512, 513):
        holds = Picture.of(-(-size // 512) * 512, {0: b"x" * size})
        yield case(f"of {size} bytes", "raw", b"x" * size, holds)
    yield case("empty", "raw", b"")
    for size in ((63 << 40) + 512, 1 << 60, (1 << 63) - 4096):
        yield case(f"a hole of {size} bytes", "raw", b"", length_bytes=size)
    yield case("a hole of 1 TiB", "raw", b"", Picture(1 << 40, {}), length_bytes=1 << 40)
    for format in _FORMATS:
        yield from _no_files(format)


def _heads() -> Iterator[tuple[str, bytes | bytearray]]:
    yield "qcow2", build().data
    backed = build()
    for field, value in (("backing_size", 11), ("backing_offset", 1024)):
        backed.data[:] = backed.with_field(field, value)
    backed.data[1024:1035] = b"/etc/shadow"
    yield "qcow2 with a backing file", backed.data
    yield "VMDK's text", b'# Disk DescriptorFile\ncreateType="monolithicFlat"\nRW 8 FLAT "/etc/shadow" 0\n'
    yield "qed", b"QED\0" + bytes(508)
    yield "LUKS", b"LUKS\xba\xbe\0\1" + bytes(504)


def _no_files(format: ImportFormat) -> Iterator[Case]:
    def to(name: str, make: Callable[[Site, Path], None]) -> Case:
        codes = ("UnsafeImage", "InvalidParameter")
        return Case(f"{format}: {name}", format, make, codes=codes)

    yield to("a FIFO", lambda _, path: os.mkfifo(path))
    yield to("a folder", lambda _, path: path.mkdir())
    yield to("a link to the secret", lambda site, path: path.symlink_to(site.secret))
    yield to("a link to the FIFO", lambda site, path: path.symlink_to(site.fifo))
    yield to("a link to a device", lambda _, path: path.symlink_to("/dev/zero"))
    yield to("a link to itself", lambda _, path: path.symlink_to(path))
    yield to("a link to nothing", lambda _, path: path.symlink_to("nowhere"))
    yield to("nothing", lambda _, path: None)
    yield to("a socket", _socket)
    if os.geteuid() == 0:
        yield to("a character device", lambda _, path: os.mknod(path, 0o20600, os.makedev(1, 5)))
    else:
        yield to("a file that may not be read", lambda _, path: path.touch(0))


def _socket(_: Site, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
