"""An NBD server in a process of its own: the far end of storage that has no files here.

``python -m diskyard.testing.pathless.server SOCKET`` serves every file, with its path as the export's name,
until its stdin ends. A container that may grow (:data:`GROWING`) has space beyond its end, which reads as
zeros and becomes part of it when it is written to, as with an object of a cluster. While a connection
that has written lasts, a lock shows it: the one that QEMU takes on a file.

The protocol is NetworkBlockDevice/nbd's doc/proto.md. The server has what QEMU and libnbd need of it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socketserver
import struct
import sys
import threading

GROWING = ".qcow2"
ROOM_BYTES = 1 << 30
_WRITE_LOCK_BYTE = 101  # QEMU's byte (block/file-posix.c)
_MOST_BYTES = 32 << 20

_MAGIC, _OPTION_MAGIC, _REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x0003E889045565A9
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_ABORT, _INFO, _GO, _STRUCTURED, _SET_CONTEXT = 2, 6, 7, 8, 10
_ACK, _EXPORT_INFO, _CONTEXT, _UNSUPPORTED, _UNKNOWN = 1, 3, 4, (1 << 31) + 1, (1 << 31) + 6
#: The export has flags, flush, FUA, trim, write zeroes, several connections.
_EXPORT_FLAGS = 1 | 4 | 8 | 32 | 64 | 256
_BLOCK_SIZES = struct.pack(">HIII", 3, 1, 4096, _MOST_BYTES)

_REQUEST = struct.Struct(">IHHQQI")
_REQUEST_MAGIC, _SIMPLE_MAGIC, _CHUNK_MAGIC = 0x25609513, 0x67446698, 0x668E33EF
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _ZERO, _STATUS = 0, 1, 2, 3, 4, 6, 7
_FUA, _DONE, _OFFSET_DATA, _BLOCK_STATUS = 1, 1, 1, 5
_HOLE_AND_ZERO = 3
_PUNCH_HOLE = 0x03  # with FALLOC_FL_KEEP_SIZE
_LIBC = ctypes.CDLL(None, use_errno=True)


class _Ended(Exception):
    """The client has gone."""


class _Connection(socketserver.StreamRequestHandler):
    """One client: the negotiation, and then the requests."""

    def setup(self) -> None:
        super().setup()
        self._fd = -1
        self._structured = self._context = self._has_written = False

    def finish(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        super().finish()

    def handle(self) -> None:
        try:
            if self._agree():
                while self._answer():
                    pass
        except (_Ended, ConnectionError):
            return

    def _take(self, size_bytes: int) -> bytes:
        data = self.rfile.read(size_bytes)
        if len(data) < size_bytes:
            raise _Ended
        return data

    # -- negotiation -------------------------------------------------------------------

    def _agree(self) -> bool:
        self.wfile.write(struct.pack(">QQH", _MAGIC, _OPTION_MAGIC, _FIXED_NEWSTYLE | _NO_ZEROES))
        self._take(4)
        while True:
            _, option, length = struct.unpack(">QII", self._take(16))
            data = self._take(length)
            if option == _ABORT:
                self._reply(option, _ACK)
                return False
            if option in (_INFO, _GO):
                if self._tell_export(option, data) and option == _GO:
                    return True
            elif option == _STRUCTURED:
                self._structured = True
                self._reply(option, _ACK)
            elif option == _SET_CONTEXT:
                if b"base:allocation" in data:
                    self._context = True
                    self._reply(option, _CONTEXT, struct.pack(">I", 1) + b"base:allocation")
                self._reply(option, _ACK)
            else:
                self._reply(option, _UNSUPPORTED)

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self.wfile.write(struct.pack(">QIII", _REPLY_MAGIC, option, kind, len(data)) + data)

    def _tell_export(self, option: int, data: bytes) -> bool:
        (length,) = struct.unpack_from(">I", data)
        path = data[4 : 4 + length].decode()
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self._reply(option, _UNKNOWN)
            return False
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._grows = path.endswith(GROWING)
        size_bytes = os.fstat(fd).st_size + (ROOM_BYTES if self._grows else 0)
        self._reply(option, _EXPORT_INFO, struct.pack(">HQH", 0, size_bytes, _EXPORT_FLAGS))
        self._reply(option, _EXPORT_INFO, _BLOCK_SIZES)
        self._reply(option, _ACK)
        return True

    # -- requests ----------------------------------------------------------------------

    def _answer(self) -> bool:
        _, flags, kind, cookie, offset, length = _REQUEST.unpack(self._take(_REQUEST.size))
        if kind == _DISCONNECT:
            return False
        written = self._take(length) if kind == _WRITE else b""
        try:
            if kind == _READ:
                data = os.pread(self._fd, length, offset).ljust(length, b"\0")
            elif kind == _STATUS:
                data = self._status(offset, length)
            else:
                data = b""
                self._change(kind, offset, length, written)
                if flags & _FUA:
                    os.fdatasync(self._fd)
        except OSError as error:
            self._fail(kind, cookie, error.errno or errno.EIO)
            return True
        if kind == _STATUS:
            self._chunk(cookie, _BLOCK_STATUS, struct.pack(">I", 1) + data)
        elif kind == _READ and self._structured:
            self._chunk(cookie, _OFFSET_DATA, struct.pack(">Q", offset) + data)
        else:
            self.wfile.write(struct.pack(">IIQ", _SIMPLE_MAGIC, 0, cookie) + data)
        return True

    def _chunk(self, cookie: int, kind: int, data: bytes) -> None:
        self.wfile.write(struct.pack(">IHHQI", _CHUNK_MAGIC, _DONE, kind, cookie, len(data)) + data)

    def _fail(self, kind: int, cookie: int, number: int) -> None:
        if self._structured and kind in (_READ, _STATUS):
            self._chunk(cookie, 0x8001, struct.pack(">IH", number, 0))
        else:
            self.wfile.write(struct.pack(">IIQ", _SIMPLE_MAGIC, number, cookie))

    def _change(self, kind: int, offset: int, length: int, written: bytes) -> None:
        if kind == _FLUSH:
            os.fdatasync(self._fd)
            return
        if not self._has_written:
            lock = struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, _WRITE_LOCK_BYTE, 1, 0)
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, lock)
            self._has_written = True
        view = memoryview(written)
        while view:
            done = os.pwrite(self._fd, view, offset + length - len(view))
            view = view[done:]
        if kind == _ZERO and self._grows and offset + length > os.fstat(self._fd).st_size:
            os.ftruncate(self._fd, offset + length)
        if kind in (_ZERO, _TRIM) and length:
            places = (ctypes.c_longlong(offset), ctypes.c_longlong(length))
            if _LIBC.fallocate(self._fd, _PUNCH_HOLE, *places):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def _status(self, offset: int, length: int) -> bytes:
        """The lengths of data and holes, and whether they are zeros."""
        found, end = b"", offset + length
        while offset < end:
            data_at = self._seek(offset, os.SEEK_DATA, end)
            stop = data_at if data_at > offset else self._seek(offset, os.SEEK_HOLE, end)
            found += struct.pack(">II", stop - offset, _HOLE_AND_ZERO if data_at > offset else 0)
            offset = stop
        return found

    def _seek(self, offset: int, whence: int, end: int) -> int:
        try:
            return min(os.lseek(self._fd, offset, whence), end)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return end


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    """Serve until stdin ends."""
    with _Server(sys.argv[1], _Connection) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()
        os._exit(0)


if __name__ == "__main__":
    main()
