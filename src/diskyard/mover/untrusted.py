"""Disk images from elsewhere: what may be read of them, and by which program.

Headers are parsed here first, at most 1 MiB of them, so that QEMU never opens a file that
names other files. QEMU then reads the rest under limits.
"""

from __future__ import annotations

import errno
import os
import stat

import msgspec

from diskyard import errors
from diskyard.host import Host, Limits
from diskyard.host.container import FileContainer
from diskyard.host.names import require_one_name
from diskyard.mover import advice
from diskyard.mover.durable import os_errors
from diskyard.mover.formats.foreign_headers import BlockMap, parse_vdi, parse_vhdx, parse_vmdk, vhdx_blocks
from diskyard.mover.formats.qcow2_header import ReadAt, parse_untrusted_qcow2, require_whole_tables
from diskyard.mover.interface import ImportFormat, Layer
from diskyard.mover.opening import descriptors
from diskyard.mover.qemu.failures import brief, expected
from diskyard.mover.qemu.graphs import program_graph

IMPORT_LIMITS = Limits(address_space_bytes=1 << 30, cpu_s=24 * 3600)
"""For the daemon that reads an inspected image; its CPU time is bounded by its size."""

_INSPECT_LIMITS = Limits(address_space_bytes=1 << 30, cpu_s=60)
_INSPECT_TIMEOUT_S = 600.0
_SECTOR_BYTES = 512
_FILE_MOST_BYTES = 64 << 40  # more than any image has; only a file with holes can be so long
_NOT_FOUND = (
    errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EPERM,
)  # fmt: skip
_PARSERS = {
    "qcow2": parse_untrusted_qcow2,
    "vmdk": parse_vmdk,
    "vdi": parse_vdi,
    "vhdx": parse_vhdx,
}


class _Told(msgspec.Struct, rename="kebab"):
    virtual_size: int | None = None


def open_untrusted(host: Host, path: str, *, block_device: bool, given_fd: int | None = None) -> int:
    """Open a file that may be anything, for reading; the descriptor.

    :param block_device: whether it may be a block device.
    :param given_fd: the file is open already, and need not have a path that can be opened here.
    :raises diskyard.errors.UnsafeImage: it is a link, a FIFO, or anything else that is not a file; or it
        has other names too.
    :raises diskyard.errors.InvalidParameter: it is absent or may not be read.
    :raises diskyard.errors.StorageError: its storage failed.
    """
    with os_errors(f"opening {path}"):
        try:
            if given_fd is None:
                return host.files.open_alone(path, block_device=block_device)
            return _open_given(host, given_fd, path, block_device=block_device)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise _no_file(host, path) from error
            if error.errno in _NOT_FOUND:
                raise errors.InvalidParameter(f"{path} cannot be read: {error.strerror or error}.") from error
            raise


def _open_given(host: Host, given_fd: int, path: str, *, block_device: bool) -> int:
    """Open the file behind a descriptor, with the same care as by its path."""
    fd = host.files.open_to_read(given_fd, block_device=block_device)
    try:
        require_one_name(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _no_file(host: Host, path: str) -> errors.UnsafeImage:
    """What is in the place of a file, and what to give instead."""
    try:
        kind = host.files.type_of(path)
    except OSError:
        kind = 0
    if kind == stat.S_IFLNK:
        return errors.UnsafeImage(
            f"{path} is a link, which is not followed: anyone who may change it could point it anywhere.",
            advice="Give the path of the file or device that it leads to, which 'readlink -f' shows.",
        )
    if kind == stat.S_IFDIR:
        return errors.UnsafeImage(f"{path} is a directory.", advice="Give the path of an image file in it.")
    if kind == stat.S_IFBLK:
        return errors.UnsafeImage(
            f"{path} is a block device, which can only be read as raw.", advice="Give raw as its format."
        )
    return errors.UnsafeImage(
        f"{path} is not a regular file.", advice="Write what it gives to a file, and import that."
    )


def parse_import(host: Host, fd: int, format: ImportFormat) -> int:
    """The virtual size that an open image file gives itself, in bytes, a multiple of 512.

    This reads only the file's headers, and opens nothing: no program gets the file, whose owner
    may change it, or its name, at any moment. A file that passes may still be refused by
    :func:`inspect_import`.

    :raises diskyard.errors.UnsafeImage: it refers to another file, is encrypted, needs a repair
        or lies about itself.
    :raises diskyard.errors.StorageError: it cannot be read.
    """
    with os_errors("reading an image file"):
        size_bytes = host.files.size_bytes_of(fd)
        if size_bytes > _FILE_MOST_BYTES:
            raise errors.UnsafeImage(f"A file of {size_bytes} bytes is not an image.", advice=advice.LIES)
        if format == "raw":
            return -(-size_bytes // _SECTOR_BYTES) * _SECTOR_BYTES
        return _PARSERS[format](_reader(host, fd), size_bytes)


def blocks_held(host: Host, fd: int, format: ImportFormat) -> BlockMap | None:
    """Where an inspected image that is open can hold anything but zeros; None if QEMU tells it as well.

    :raises diskyard.errors.UnsafeImage: the file does not say.
    """
    if format != "vhdx":
        return None
    with os_errors("reading an image file"):
        return vhdx_blocks(_reader(host, fd), host.files.size_bytes_of(fd))


def _reader(host: Host, fd: int) -> ReadAt:
    return lambda offset_bytes, count_bytes: host.files.read_open(fd, offset_bytes, count_bytes)


def inspect_import(host: Host, fd: int, format: ImportFormat) -> int:
    """The virtual size of an open image file that is not trusted, in bytes, a multiple of 512.

    This must be called on a copy that nobody else can change (:func:`diskyard.mover.transfer.private_copy`).
    A file that passes may be read through :func:`import_layer`.

    :raises diskyard.errors.UnsafeImage: as in :func:`parse_import`; or QEMU cannot read it within
        limits of time and memory.
    :raises diskyard.errors.StorageError: it cannot be read.
    """
    virtual_bytes = parse_import(host, fd, format)
    if format == "raw":
        return virtual_bytes
    with os_errors("reading an image file"):
        if format == "qcow2":
            require_whole_tables(_reader(host, fd), host.files.size_bytes_of(fd))
    layer = import_layer(host, fd, format, virtual_bytes)
    told_bytes = _ask_qemu(host, layer, "info")
    if told_bytes != virtual_bytes:
        raise errors.UnsafeImage(
            f"The image claims {virtual_bytes} bytes, but QEMU reads {told_bytes}.", advice=advice.LIES
        )
    _ask_qemu(host, layer, "check")
    return virtual_bytes


def import_layer(host: Host, fd: int, format: ImportFormat, size_bytes: int) -> Layer:
    """An open, inspected image as a layer, to be read with :data:`IMPORT_LIMITS`.

    :param size_bytes: the size that :func:`inspect_import` returned.
    """
    is_device = not host.files.look_open(fd).is_file
    protocol = {"driver": "host_device" if is_device else "file"}
    return Layer("import", format, protocol, None, size_bytes, container=FileContainer(host.files, fd))


def _ask_qemu(host: Host, layer: Layer, verb: str) -> int | None:
    words = ["qemu-img", verb, "--output=json", program_graph(host, (layer,), read_only=True)]
    fds = descriptors((layer,))
    try:
        finished = host.commands.run(
            words, timeout_s=_INSPECT_TIMEOUT_S, limits=_INSPECT_LIMITS, inherit_fds=fds
        )
    except errors.StorageError as error:
        # A file of 1 MiB can make qemu-img report 60 million bad blocks, one on each line.
        raise errors.UnsafeImage(
            f"The image cannot be read within its limits: {error.message}", advice=advice.TOO_DEAR
        ) from error
    if finished.exit_status not in (0, 3):  # 3: leaked clusters, which do no harm
        words_said = brief(finished.stderr) or "it has errors"
        raise errors.UnsafeImage(f"qemu-img {verb} refuses the image: {words_said}.", advice=advice.DAMAGED)
    return expected(finished.stdout, _Told, f"running qemu-img {verb}").virtual_size
