"""Where the bytes of a view are, and reading them: from its files, or from QEMU's NBD server.

If volumes are files, raw or qcow2, QEMU only reports where bytes are (``qemu-img map``), and the bytes
are read from the files. This is correct only for frozen volumes, which all sources and bases are: a
merge may change which volume of a chain holds a byte of the view, but it also leaves the byte where
it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Protocol

import msgspec

from diskyard import errors
from diskyard.host import Child, Host
from diskyard.host.bulk import FilePiece
from diskyard.host.container import FileContainer
from diskyard.host.output import Output
from diskyard.mover.durable import os_errors
from diskyard.mover.formats.foreign_headers import BlockMap
from diskyard.mover.interface import Chain
from diskyard.mover.opening import file_of
from diskyard.mover.qemu.failures import expected, failure
from diskyard.mover.qemu.graphs import program_graph
from diskyard.mover.qemu.nbdclient import NbdClient

_WINDOW_BYTES = 1 << 30  # per question to an NBD server: at most 16,384 clusters
_LONG_BYTES = 1 << 20
_RANGES_AT_ONCE = 256
_MAP_PIECE_BYTES = 64 << 10  # read at once, and not kept any longer
_MAP_TIMEOUT_S = 60.0
_ZEROS = bytes(1 << 20)

ALL_BYTES = 1 << 62
"""More than any view has."""

Guard = Callable[[], AbstractContextManager[None]]


class Run(msgspec.Struct, frozen=True, gc=False):
    """A run of a view that one layer reports. A struct, because there may be very many.

    :param layer: its index in the chain, 0 for the top; -1 if no layer holds the run.
    :param file_offset_bytes: where its bytes are in that layer's file; None if they are not in it, or
        are read through a server.
    """

    offset_bytes: int
    length_bytes: int
    is_zero: bool
    layer: int
    file_offset_bytes: int | None = None

    @property
    def end_bytes(self) -> int:
        """The offset at which it ends."""
        return self.offset_bytes + self.length_bytes

    def cut(self, start_bytes: int, end_bytes: int) -> Run:
        """A part of this run."""
        if start_bytes == self.offset_bytes and end_bytes == self.end_bytes:
            return self
        at = self.file_offset_bytes
        moved = None if at is None else at + start_bytes - self.offset_bytes
        return Run(start_bytes, end_bytes - start_bytes, self.is_zero, self.layer, moved)


Piece = tuple[Sequence[Run], memoryview]
"""Adjacent runs, and where their bytes go."""


class NeedsServer(Exception):
    """Some of a view's bytes are in no file as they are, for example because they are compressed."""


class Reader(Protocol):
    """Reads a view; for one thread."""

    def read(self, pieces: Sequence[Piece]) -> None:
        """Fill the memory of each piece with the bytes of its runs, and with zeros after them."""


class Runs(Protocol):
    """Runs in order, for one thread. Closing it ends the program that reports them."""

    def __iter__(self) -> Iterator[Run]: ...

    def __next__(self) -> Run: ...

    def close(self) -> None:
        """End the runs."""


class View(Protocol):
    """What a guest reads through a chain."""

    @property
    def size_bytes(self) -> int:
        """The offset at which it ends."""

    def runs(self, start_bytes: int) -> Runs:
        """Everything from an offset on, in order and without gaps. The caller must close it.

        A program that lists the runs is started at once, so that several can start together.

        :raises NeedsServer: during the iteration: the view cannot be read from its files.
        """

    def expect(self, runs: Iterable[Run]) -> None:
        """Announce runs that will be read soon, so that the storage can begin to read them together."""

    def reader(self, stack: ExitStack) -> Reader:
        """A reader for one more thread, closed with ``stack``."""


class FileView:
    """A view that is read from the files of its layers.

    :param fds: the layers' files, open for reading; the caller closes them.
    :param size_bytes: the offset at which it ends at most; None for the recorded size. A base gets
        :data:`ALL_BYTES`: a volume over it shows all of its file, or of a raw file all up to its bound.
    """

    def __init__(self, host: Host, chain: Chain, fds: Sequence[int], size_bytes: int | None = None) -> None:
        self._host, self._chain, self.fds = host, chain, tuple(fds)
        self._is_cold = True  # until the last read was served from the page cache
        self._is_raw = len(chain) == 1 and chain[0].format == "raw"
        with os_errors("reading a volume's size"):
            self._lengths_bytes = [host.files.size_bytes_of(fd) for fd in fds]
        self.size_bytes = chain[0].size_bytes if size_bytes is None else size_bytes
        if self._is_raw:  # a guest sees the recorded size; the file may end before, inside a sector
            bound = chain[0].bound_bytes
            self.size_bytes = min(self.size_bytes, self._lengths_bytes[0] if bound is None else bound)

    @classmethod
    def of(cls, stack: ExitStack, host: Host, chain: Chain, size_bytes: int | None = None) -> FileView | None:
        """The view of an open chain; None unless all of its layers are files that can be read directly."""
        if any(layer.fd is None or layer.format not in ("raw", "qcow2") for layer in chain):
            return None
        # Duplicates: the caller closes the originals, and a read that hangs may go on after that.
        with os_errors("opening a volume"):
            copies = [stack.enter_context(os.fdopen(os.dup(file_of(layer)), "rb", 0)) for layer in chain]
        return cls(host, chain, [copy.fileno() for copy in copies], size_bytes)

    def runs(self, start_bytes: int) -> Runs:
        """See :class:`View`."""
        if self._is_raw or start_bytes >= self.size_bytes:
            return self._raw_runs(start_bytes)
        return _MappedRuns(self._host, self._chain, self.fds, start_bytes, self.size_bytes)

    def _raw_runs(self, offset: int) -> Generator[Run]:
        for start, end in data_ranges(self._host, self.fds[0], offset, self.size_bytes):
            if start > offset:
                yield Run(offset, start - offset, True, 0)
            yield Run(start, end - start, False, 0, start)
            offset = end
        if offset < self.size_bytes:
            with os_errors("reading a volume's size"):
                end_bytes = self._host.files.size_bytes_of(self.fds[0])
            if end_bytes < self.size_bytes:  # what was cut off is no hole
                raise errors.StorageError("A file became shorter while it was read.")
            yield Run(offset, self.size_bytes - offset, True, 0)

    def expect(self, runs: Iterable[Run]) -> None:
        """See :class:`View`. Long runs are left to the kernel, which reads ahead better by itself."""
        if not self._is_cold:
            return
        ranges = [
            (self.fds[run.layer], run.file_offset_bytes, run.length_bytes)
            for run in runs
            if not run.is_zero and run.length_bytes < _LONG_BYTES and run.file_offset_bytes is not None
        ]
        with os_errors("reading a volume"):
            self._host.files.will_need(ranges)

    def reader(self, stack: ExitStack) -> Reader:
        """See :class:`View`."""
        return self

    def read(self, pieces: Sequence[Piece]) -> None:
        """See :class:`Reader`; any number of threads may call this."""
        wanted: list[FilePiece] = []
        most: list[int] = []
        for runs, memory in pieces:
            position = 0
            for run in runs:
                part = memory[position : position + run.length_bytes]
                position += run.length_bytes
                if run.is_zero or run.file_offset_bytes is None:
                    clear(part)
                else:
                    wanted.append((self.fds[run.layer], run.file_offset_bytes, part))
                    most.append(self._lengths_bytes[run.layer] - run.file_offset_bytes)
            if position < len(memory):
                clear(memory[position:])
        with os_errors("reading a volume"):
            done_bytes = self._read(wanted)
        for (_, _, part), done, most_bytes in zip(wanted, done_bytes, most, strict=True):
            if done < len(part):
                if done < most_bytes:
                    raise errors.StorageError("A file became shorter while it was read.")
                clear(part[done:])  # beyond a file's end there are zeros

    def _read(self, wanted: Sequence[FilePiece]) -> Sequence[int]:
        files = self._host.files
        if len(wanted) == 1 and len(wanted[0][2]) >= _LONG_BYTES:
            fd, offset_bytes, memory = wanted[0]
            return (files.read_into(fd, memory, offset_bytes),)
        done_bytes = files.read_cached(wanted)
        missing = [index for index, (_, _, part) in enumerate(wanted) if done_bytes[index] < len(part)]
        self._is_cold = bool(missing)
        if missing:
            rest = [wanted[index] for index in missing]
            files.will_need([(fd, offset_bytes, len(part)) for fd, offset_bytes, part in rest])
            for index, done in zip(missing, files.read_each(rest), strict=True):
                done_bytes[index] = done
        return done_bytes


def data_ranges(host: Host, fd: int, start_bytes: int, end_bytes: int) -> Generator[tuple[int, int]]:
    """The begin and end of each range of a file that is data and not a hole, in order.

    :raises diskyard.errors.StorageError: the storage failed, or its answer makes no sense, because the
        file is being changed for example.
    """
    offset = start_bytes
    while offset < end_bytes:
        with os_errors("asking what a file holds"):
            found = host.files.next_data(fd, offset, _RANGES_AT_ONCE)
        for start, end in found:
            if start < offset or end <= start:
                raise errors.StorageError("A file does not say where its data is.")
            if start >= end_bytes:
                return
            yield start, min(end, end_bytes)
            offset = end
        if len(found) < _RANGES_AT_ONCE:
            return


def clear(memory: memoryview) -> None:
    """Fill memory with zeros."""
    for start in range(0, len(memory), len(_ZEROS)):
        part = memory[start : start + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]


class ServedView:
    """A view that is read from an NBD server.

    :param contexts: the kinds of block status that are needed.
    :param blocks: where the view can hold anything but zeros, if the server cannot report it.
    :param guard: turns errors into those of an image that is not trusted.
    :param size_bytes: the offset at which it ends at most; None for the server's size.
    """

    def __init__(
        self,
        stack: ExitStack,
        host: Host,
        uri: str,
        contexts: Sequence[str],
        guard: Guard,
        blocks: BlockMap | None = None,
        size_bytes: int | None = None,
    ) -> None:
        self._host, self._uri, self._guard, self._blocks = host, uri, guard, blocks
        with guard():
            self._client = stack.enter_context(NbdClient(host, uri, contexts))
        self.size_bytes = self._client.size_bytes
        if size_bytes is not None:
            self.size_bytes = min(self.size_bytes, size_bytes)

    def runs(self, start_bytes: int) -> Generator[Run]:
        """See :class:`View`."""
        offset = start_bytes
        while offset < self.size_bytes:
            length = min(_WINDOW_BYTES, self.size_bytes - offset)
            if self._blocks is not None:
                known = [(length, is_zero, -1) for length, is_zero in self._blocks.runs(offset, length)]
            else:
                with self._guard():
                    extents = self._client.extents(offset, length)
                known = [(extent.length_bytes, extent.is_zero, extent.depth - 1) for extent in extents]
            for length, is_zero, layer in known:
                yield Run(offset, length, is_zero, layer)
                offset += length

    def expect(self, runs: Iterable[Run]) -> None:
        """See :class:`View`. Nothing is needed: several threads ask the server at once anyway."""

    def reader(self, stack: ExitStack) -> Reader:
        """See :class:`View`."""
        with self._guard():
            client = stack.enter_context(NbdClient(self._host, self._uri))
        return _ServedReader(client, self._guard)


class _ServedReader:
    def __init__(self, client: NbdClient, guard: Guard) -> None:
        self._client, self._guard = client, guard

    def read(self, pieces: Sequence[Piece]) -> None:
        """See :class:`Reader`."""
        for runs, memory in pieces:
            begin = runs[0].offset_bytes
            length = runs[-1].end_bytes - begin
            with self._guard():
                memory[:length] = self._client.read(begin, length)
            clear(memory[length:])


class _Mapped(msgspec.Struct):
    start: int
    length: int
    depth: int
    zero: bool
    offset: int | None = None


class _MappedRuns:
    """Where the bytes of a chain of files are, listed by QEMU on demand; no data is read.

    :param fds: the layers' files. The answers are about these files, whatever has their names by now.
    :raises NeedsServer: some bytes are in no file as they are.
    :raises diskyard.errors.StorageError: a layer cannot be opened, or QEMU does not answer.
    :raises diskyard.errors.LeaseHeld: another program has a layer open for writing.
    """

    def __init__(
        self, host: Host, chain: Chain, fds: Sequence[int], start_bytes: int, end_bytes: int
    ) -> None:
        doing = f"asking where volume {chain[0].name} has what it holds"
        files = [FileContainer(host.files, fd) for fd in fds]
        opened = tuple(replace(layer, container=file) for layer, file in zip(chain, files, strict=True))
        graph = program_graph(host, opened, read_only=True, direct=True)
        span = (f"--start-offset={start_bytes}", f"--max-length={end_bytes - start_bytes}")
        words = ["qemu-img", "map", "--output=json", *span, graph]
        self._commands, self._child = host.commands, host.commands.start(words, inherit_fds=fds, capture=True)
        self._told = _told(host, self._child, doing, start_bytes, end_bytes)

    def __iter__(self) -> Iterator[Run]:
        return self

    def __next__(self) -> Run:
        return next(self._told)

    def close(self) -> None:
        """See :class:`Runs`: end the program."""
        self._told.close()
        self._commands.stop(self._child)


def _told(host: Host, child: Child, doing: str, offset: int, end_bytes: int) -> Generator[Run]:
    for line in _lines(host, child, doing):
        found = expected(line, _Mapped, doing)
        if not found.zero and found.offset is None:
            raise NeedsServer
        yield Run(found.start, found.length, found.zero, found.depth, found.offset)
        offset = found.start + found.length
    if end_bytes and not offset:  # QEMU lists nothing of a file that is too short
        raise failure("qemu-img told nothing of it", doing)
    if offset < end_bytes:  # the header has a smaller size than the record: zeros, as in a short layer
        yield Run(offset, end_bytes - offset, True, -1)


def _lines(host: Host, child: Child, doing: str) -> Generator[bytes]:
    """The objects of a JSON array that a program prints, one on each line."""
    rest = b""
    with Output(child, _MAP_PIECE_BYTES) as output:
        goes_on = True
        while goes_on:
            with host.commands.asking("qemu-img map"):
                goes_on = _read_some(output, doing)
            # The last line may lack its newline, if the program printed something else, or nothing.
            *lines, rest = (rest + bytes(output.stdout) + b"\n" * (not goes_on)).split(b"\n")
            output.stdout.clear()
            yield from (line.strip(b"[], ") for line in lines if line.strip(b"[], "))
            if len(rest) > _MAP_PIECE_BYTES:
                raise failure("qemu-img printed a line without end", doing)
        if not host.commands.wait(child, _MAP_TIMEOUT_S) or child.returncode != 0:
            raise failure(output.stderr(), doing)


def _read_some(output: Output, doing: str) -> bool:
    """Wait until a program prints something. Return False once it prints no more."""
    before_bytes = output.stdout_bytes
    deadline_s = time.monotonic() + _MAP_TIMEOUT_S
    while output.read(1.0):
        if output.stdout_bytes > before_bytes:
            return True
        if time.monotonic() > deadline_s:
            raise errors.StorageError(f"QEMU did not answer within {_MAP_TIMEOUT_S:g} seconds while {doing}.")
    return False
