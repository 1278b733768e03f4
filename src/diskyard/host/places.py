"""What distinguishes a file, and its location, from every copy of it."""

from __future__ import annotations

import ctypes
import os

# statx(2), which Python has only from 3.15 on. These are offsets in bytes in struct statx.
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_STATX_INO_AND_BTIME = 0x100 | 0x800
_STATX_BYTES = 256
_MASK, _INO, _BTIME_S, _BTIME_NS, _DEVICE_MAJOR, _DEVICE_MINOR = 0, 32, 80, 88, 136, 140

_libc = ctypes.CDLL(None, use_errno=True)
_libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)


def identities_of(path: str) -> tuple[str, str]:
    """What identifies a file on this host now, and what identifies it also after a restart or elsewhere.

    The second consists of the file's inode and the nanosecond at which the inode was made. No program can
    choose that time, so a copy, on this file system or another, has another one. Where the file system does
    not record the time, the file system's own id stands in for it. The first adds the device number: it
    changes with a restart, and it also distinguishes a copy of the whole device.
    """
    told = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc.statx(_AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW, _STATX_INO_AND_BTIME, told) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)

    def field(offset: int, size_bytes: int) -> int:
        return int.from_bytes(told.raw[offset : offset + size_bytes], "little")

    if field(_MASK, 4) & _STATX_INO_AND_BTIME == _STATX_INO_AND_BTIME:
        born = f"{field(_BTIME_S, 8)}.{field(_BTIME_NS, 4):09}"
    else:
        born = f"fs{os.statvfs(path).f_fsid:x}"
    lasting = f"{field(_INO, 8)}:{born}"
    return f"{field(_DEVICE_MAJOR, 4)}.{field(_DEVICE_MINOR, 4)}:{lasting}", lasting


def made_s(lasting: str) -> float | None:
    """When a file was made, in wall-clock seconds, from its lasting identity; None if not recorded."""
    born = lasting.partition(":")[2]
    try:
        return float(born)
    except ValueError:
        return None
