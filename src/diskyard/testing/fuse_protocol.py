"""The kernel's side of FUSE in bytes: just what a small file system in memory needs.

It uses ``/dev/fuse`` directly (linux/fuse.h, protocol 7.31), without libfuse. A node of the protocol is
then a file itself, whatever its names are, which a journal of changes to files must know. Operations
that are missing answer ENOSYS, and the kernel manages by itself: locks stay in the kernel, and files are
neither mapped for writing nor cached for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from diskyard.testing.simulated_files import BLOCK_BYTES, ROOT, Node, SimulatedFiles

_WRITE_MOST_BYTES = 1 << 20
_REQUEST_BYTES = _WRITE_MOST_BYTES + 65536
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_SET_MODE, _SET_SIZE = 1 << 0, 1 << 3
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16  # modes of fallocate(2)
_FREE_BLOCKS = 1 << 20

_IN_HEADER = struct.Struct("<IIQQIIII")
_OUT_HEADER = struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<6Q10I")
_NO_CACHING = struct.Struct("<QI4x")
_ENTRY = struct.Struct("<QQQQII")
_OPENED = struct.Struct("<QII")
_NEVER_REPLIED = frozenset((2, 36, 42))  # FORGET, INTERRUPT, BATCH_FORGET


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its node, and its arguments as bytes."""

    node: int
    body: bytes

    def names(self, skip_bytes: int) -> list[str]:
        """The names after the fixed part of the arguments."""
        return [os.fsdecode(name) for name in self.body[skip_bytes:].split(b"\0")[:-1]]


def serve(descriptor: int, files: SimulatedFiles, unmounted: int) -> None:
    """Answer the kernel's requests on a mounted ``/dev/fuse`` until it is unmounted.

    :param unmounted: a descriptor that can be read once it is unmounted in this mount namespace: another one,
        made meanwhile by whatever else runs on this host, keeps a mount of its own.
    """
    handlers = _Handlers(files).table()
    while True:
        if descriptor not in select.select((descriptor, unmounted), (), ())[0]:
            return
        try:
            message = os.read(descriptor, _REQUEST_BYTES)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return  # unmounted
            if error.errno in (errno.ENOENT, errno.EINTR):
                continue  # the request was interrupted
            raise
        _, operation, unique, node, *_ = _IN_HEADER.unpack_from(message)
        if operation in _NEVER_REPLIED:
            continue
        status, answer = 0, b""
        try:
            handler = handlers[operation]
            answer = handler(Request(node, message[_IN_HEADER.size :]))
        except KeyError:
            status = -errno.ENOSYS
        except OSError as error:
            status = -(error.errno or errno.EIO)
        # The caller may have gone.
        with contextlib.suppress(FileNotFoundError):
            header = _OUT_HEADER.pack(_OUT_HEADER.size + len(answer), status, unique)
            os.writev(descriptor, (header, answer))


class _Handlers:
    """One method for each operation of the protocol: arguments and answers as bytes."""

    def __init__(self, files: SimulatedFiles) -> None:
        self._files = files

    def table(self) -> Mapping[int, Callable[[Request], bytes]]:
        """The methods by the protocol's numbers."""
        return {
            1: self.look_up,
            3: self.get_attributes,
            4: self.set_attributes,
            9: self.make_folder,
            10: self.unlink,
            11: self.unlink,
            12: lambda request: self.rename(request, 8),
            13: self.link,
            14: self.open,
            15: self.read,
            16: self.write,
            17: self.status,
            18: self.nothing,  # RELEASE
            20: self.sync,
            21: self.mark,
            25: self.nothing,  # FLUSH comes with each close, and makes nothing durable
            26: self.begin,
            27: self.open,
            28: self.list_folder,
            29: self.nothing,  # RELEASEDIR
            30: self.sync,
            35: self.create,
            38: self.nothing,  # DESTROY
            43: self.allocate,
            45: lambda request: self.rename(request, 16),
            46: self.seek,
        }

    def begin(self, request: Request) -> bytes:
        """INIT: large writes, and nothing that would hide a write for a while."""
        _, _, read_ahead = struct.unpack_from("<III", request.body)
        flags = _BIG_WRITES | _MAX_PAGES
        limits = (16, 12, _WRITE_MOST_BYTES, 1, _WRITE_MOST_BYTES // BLOCK_BYTES, 0)
        return struct.pack("<IIIIHHIIHH32x", 7, 31, read_ahead, flags, *limits)

    def nothing(self, request: Request) -> bytes:
        """For requests that need no work."""
        return b""

    def _attributes(self, node: Node) -> bytes:
        seconds, nanoseconds = divmod(node.modified_ns, 10**9)
        times = (seconds,) * 3 + (nanoseconds,) * 3
        blocks = len(node.blocks) * (BLOCK_BYTES // 512)
        owner = (os.getuid(), os.getgid())
        links = max(1, self._files.links(node.number))
        return _ATTRIBUTES.pack(
            node.number, len(node.data), blocks, *times, node.mode, links, *owner, 0, BLOCK_BYTES, 0
        )

    def _entry(self, node: Node) -> bytes:
        return _ENTRY.pack(node.number, 0, 0, 0, 0, 0) + self._attributes(node)

    def look_up(self, request: Request) -> bytes:
        """LOOKUP."""
        return self._entry(self._files.find(request.node, request.names(0)[0]))

    def get_attributes(self, request: Request) -> bytes:
        """GETATTR."""
        return _NO_CACHING.pack(0, 0) + self._attributes(self._files.node(request.node))

    def set_attributes(self, request: Request) -> bytes:
        """SETATTR: length and mode; times and owners stay."""
        valid, _, _, size_bytes = struct.unpack_from("<IIQQ", request.body)
        node = self._files.node(request.node)
        if valid & _SET_SIZE:
            self._files.resize(request.node, size_bytes)
        if valid & _SET_MODE:
            mode = struct.unpack_from("<I", request.body, 68)[0]
            node.mode = (node.mode & ~0o7777) | (mode & 0o7777)
        return self.get_attributes(request)

    def make_folder(self, request: Request) -> bytes:
        """MKDIR."""
        mode = struct.unpack_from("<I", request.body)[0]
        return self._entry(self._files.make(request.node, request.names(8)[0], mode, is_folder=True))

    def create(self, request: Request) -> bytes:
        """CREATE: make and open."""
        mode = struct.unpack_from("<4xI", request.body)[0]
        made = self._files.make(request.node, request.names(16)[0], mode, is_folder=False)
        return self._entry(made) + _OPENED.pack(0, 0, 0)

    def open(self, request: Request) -> bytes:
        """OPEN and OPENDIR: there are no handles, since a node outlives its names."""
        return _OPENED.pack(0, 0, 0)

    def unlink(self, request: Request) -> bytes:
        """UNLINK and RMDIR."""
        self._files.remove(request.node, request.names(0)[0])
        return b""

    def rename(self, request: Request, skip_bytes: int) -> bytes:
        """RENAME and RENAME2, whose flags nobody uses here."""
        new_folder = struct.unpack_from("<Q", request.body)[0]
        if skip_bytes == 16 and struct.unpack_from("<8xI", request.body)[0]:
            raise OSError(errno.EINVAL, "flags of renameat2")
        old, new = request.names(skip_bytes)
        self._files.rename(request.node, old, new_folder, new)
        return b""

    def link(self, request: Request) -> bytes:
        """LINK."""
        number = struct.unpack_from("<Q", request.body)[0]
        return self._entry(self._files.link(request.node, request.names(8)[0], number))

    def read(self, request: Request) -> bytes:
        """READ."""
        _, offset, size_bytes = struct.unpack_from("<QQI", request.body)
        return bytes(self._files.node(request.node).data[offset : offset + size_bytes])

    def write(self, request: Request) -> bytes:
        """WRITE."""
        _, offset, size_bytes = struct.unpack_from("<QQI", request.body)
        self._files.write(request.node, offset, request.body[40 : 40 + size_bytes])
        return struct.pack("<II", size_bytes, 0)

    def status(self, request: Request) -> bytes:
        """STATFS: much free space."""
        counts = (_FREE_BLOCKS,) * 5
        return struct.pack("<5Q4I24x", *counts, BLOCK_BYTES, 255, BLOCK_BYTES, 0)

    def sync(self, request: Request) -> bytes:
        """FSYNC, which fdatasync(2) uses too, and FSYNCDIR."""
        self._files.sync(request.node)
        return b""

    def mark(self, request: Request) -> bytes:
        """SETXATTR, by which the test announces what it is about to do."""
        size_bytes = struct.unpack_from("<I", request.body)[0]
        name, _, value = request.body[8:].partition(b"\0")
        self._files.mark(request.node, name.decode(), value[:size_bytes].decode())
        return b""

    def list_folder(self, request: Request) -> bytes:
        """READDIR."""
        _, offset, size_bytes = struct.unpack_from("<QQI", request.body)
        answer = b""
        for index, (name, node) in enumerate(self._files.listed(request.node)):
            encoded = os.fsencode(name)
            entry = struct.pack("<QQII", node.number, index + 1, len(encoded), node.mode >> 12) + encoded
            entry += bytes(-len(entry) % 8)
            if index >= offset:
                if len(answer) + len(entry) > size_bytes:
                    break
                answer += entry
        return answer

    def allocate(self, request: Request) -> bytes:
        """FALLOCATE: reserve, punch a hole, or make zero."""
        _, offset, size_bytes, mode = struct.unpack_from("<QQQI", request.body)
        if mode & ~(_KEEP_SIZE | _PUNCH_HOLE | _ZERO_RANGE):
            raise OSError(errno.EOPNOTSUPP, "mode of fallocate")
        if mode & (_PUNCH_HOLE | _ZERO_RANGE):
            self._files.zero(request.node, offset, size_bytes, punch=bool(mode & _PUNCH_HOLE))
        else:
            self._files.reserve(request.node, offset, size_bytes)
        if not mode & _KEEP_SIZE and len(self._files.node(request.node).data) < offset + size_bytes:
            self._files.resize(request.node, offset + size_bytes)
        return b""

    def seek(self, request: Request) -> bytes:
        """LSEEK, only for SEEK_DATA and SEEK_HOLE."""
        _, offset, whence = struct.unpack_from("<QQI", request.body)
        return struct.pack("<Q", self._files.seek(request.node, offset, data=whence == os.SEEK_DATA))


__all__ = ["ROOT", "Request", "serve"]
