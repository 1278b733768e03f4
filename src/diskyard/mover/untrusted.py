"""Disk images from elsewhere: what may be read of them, and by whom.

Headers are parsed here first, at most 1 MiB of them, so that QEMU never opens a file that
names other files; what QEMU then does with the rest happens under limits.
"""

from __future__ import annotations

import errno
import json
import os
import stat

import msgspec

from diskyard import errors
from diskyard.host import Host, Limits
from diskyard.mover.blockgraph import blockdev_graph
from diskyard.mover.durable import os_errors
from diskyard.mover.failures import expected
from diskyard.mover.foreign_headers import parse_vdi, parse_vhdx, parse_vmdk
from diskyard.mover.interface import ImportFormat, Layer
from diskyard.mover.qcow2_header import parse_untrusted_qcow2

IMPORT_LIMITS = Limits(address_space_bytes=1 << 30, cpu_s=24 * 3600)
"""For the daemon that reads an inspected image; its CPU time is bounded by its size."""

_INSPECT_LIMITS = Limits(address_space_bytes=1 << 30, cpu_s=60)
_INSPECT_TIMEOUT_S = 600.0
_SECTOR_BYTES = 512
_PARSERS = {
    "qcow2": parse_untrusted_qcow2,
    "vmdk": parse_vmdk,
    "vdi": parse_vdi,
    "vhdx": parse_vhdx,
}


class _Told(msgspec.Struct, rename="kebab"):
    virtual_size: int | None = None


def open_untrusted(host: Host, path: str, *, block_device: bool) -> int:
    """A descriptor to read a file that may be anything.

    :param block_device: whether it may be one.
    :raises diskyard.errors.UnsafeImage: it is a link, a FIFO, or anything else that is no file.
    :raises diskyard.errors.StorageError: it is absent or cannot be read.
    """
    with os_errors(f"opening {path}"):
        try:
            return host.files.open_to_read(path, block_device=block_device)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise errors.UnsafeImage(f"{path} is not a regular file.") from error
            raise


def file_size_bytes(fd: int) -> int:
    """The size of an open file or block device."""
    return os.lseek(fd, 0, os.SEEK_END)


def inspect_import(host: Host, path: str, format: ImportFormat) -> int:
    """The virtual size of an image file that is not trusted, in bytes, a multiple of 512.

    To be called on a copy that nobody else can change (:func:`diskyard.mover.transfer.private_copy`);
    what passes may be read through :func:`import_layer`.

    :raises diskyard.errors.UnsafeImage: it refers to another file, is encrypted, needs a repair
        or lies about itself; or QEMU cannot read it within bounds of time and memory.
    :raises diskyard.errors.StorageError: it cannot be read.
    """
    fd = open_untrusted(host, path, block_device=format == "raw")
    try:
        with os_errors(f"reading {path}"):
            size_bytes = file_size_bytes(fd)
            if format == "raw":
                return -(-size_bytes // _SECTOR_BYTES) * _SECTOR_BYTES
            virtual_bytes = _PARSERS[format](lambda offset, count: os.pread(fd, count, offset), size_bytes)
    finally:
        os.close(fd)
    layer = import_layer(path, format, virtual_bytes)
    told_bytes = _ask_qemu(host, layer, "info")
    if told_bytes != virtual_bytes:
        raise errors.UnsafeImage(f"The image says {virtual_bytes} bytes, and QEMU reads {told_bytes}.")
    if format == "qcow2":
        _ask_qemu(host, layer, "check")
    return virtual_bytes


def import_layer(path: str, format: ImportFormat, size_bytes: int, *, fd: int | None = None) -> Layer:
    """An inspected image as a layer, to be read with :data:`IMPORT_LIMITS`.

    :param size_bytes: what :func:`inspect_import` told.
    :param fd: the file, opened already; who opens the layer must have inherited it.
    """
    with os_errors(f"opening {path}"):
        info = os.lstat(path) if fd is None else os.fstat(fd)
    is_device = stat.S_ISBLK(info.st_mode)
    if fd is not None:
        path = f"/dev/fd/{fd}"
    protocol = {"driver": "host_device" if is_device else "file", "filename": path}
    return Layer("import", format, protocol, None if is_device else path, size_bytes)


def _ask_qemu(host: Host, layer: Layer, verb: str) -> int | None:
    graph = blockdev_graph(host, (layer,), read_only=True, direct=False)
    words = ["qemu-img", verb, "--output=json", "json:" + json.dumps(graph)]
    try:
        finished = host.commands.run(words, timeout_s=_INSPECT_TIMEOUT_S, limits=_INSPECT_LIMITS)
    except errors.StorageError as error:
        raise errors.UnsafeImage(f"The image cannot be read in time: {error.message}") from error
    if finished.exit_status not in (0, 3):  # 3: leaked clusters, which harm nobody
        words_said = finished.stderr.splitlines()[-1] if finished.stderr else "it has errors"
        raise errors.UnsafeImage(f"qemu-img {verb} refuses the image: {words_said}.")
    return expected(finished.stdout, _Told, f"running qemu-img {verb}").virtual_size
