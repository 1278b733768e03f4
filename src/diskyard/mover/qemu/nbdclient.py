"""An NBD export, read and written through libnbd, with Diskyard's errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from diskyard import errors
from diskyard.host import Host
from diskyard.mover.qemu.blockgraph import StorageDaemon

ALLOCATION = "base:allocation"
DEPTH = "qemu:allocation-depth"
_STATE_ZERO = 2  # NBD_STATE_ZERO of the protocol
_ZERO_MOST_BYTES = 1 << 30  # the protocol's lengths have 32 bits


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of an export.

    :param is_zero: it certainly reads as zeros.
    :param depth: the layer that holds it, 1 for the top; 0 if none does, or if depths were not
        requested.
    """

    length_bytes: int
    is_zero: bool
    depth: int


@contextmanager
def _failures(doing: str) -> Iterator[None]:
    import nbd

    try:
        yield
    except nbd.Error as error:
        if error.errno in ("ENOSPC", "EDQUOT"):
            raise errors.NoSpace(f"The storage is full while {doing}.") from error
        raise errors.StorageError(f"QEMU's NBD server failed while {doing}: {error.string}.") from error


class NbdClient:
    """One connection to an export; a context manager. Used by one thread at a time.

    :param uri: from :meth:`StorageDaemon.export_nbd`.
    :param contexts: the kinds of block status that will be needed.
    :raises diskyard.errors.Unsupported: libnbd is not installed.
    :raises diskyard.errors.StorageError: the server does not answer.
    """

    def __init__(self, host: Host, uri: str, contexts: Sequence[str] = ()) -> None:
        self._telling, self._asking = host.commands.telling, host.commands.asking
        # Not at the top: it is slow to import, and work that moves no data does not need it.
        try:
            import nbd
        except ImportError as error:  # Debian's python3-libnbd; not on PyPI
            raise errors.Unsupported(
                "The Python binding of libnbd is not installed.",
                advice="Install python3-libnbd (Debian) where Diskyard's interpreter finds it.",
            ) from error
        self._handle = nbd.NBD()
        self._contexts = tuple(contexts)
        try:
            with self._asking("nbd connect"), _failures("connecting"):
                for context in self._contexts:
                    self._handle.add_meta_context(context)
                self._handle.connect_uri(uri)
                self.size_bytes: int = self._handle.get_size()
        except BaseException:
            del self._handle
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        import nbd

        try:
            self._handle.shutdown()
        except nbd.Error:
            return  # the server is gone; all requests were answered or have failed
        finally:
            del self._handle  # this closes the socket, however long an error keeps this object alive

    def read(self, offset_bytes: int, length_bytes: int) -> bytearray:
        """Read at most 32 MiB of the export."""
        with self._asking("nbd read"), _failures("reading a volume"):
            return self._handle.pread(length_bytes, offset_bytes)

    def write(self, data: bytes | bytearray | memoryview, offset_bytes: int) -> None:
        """Write; not durable before :meth:`flush`."""
        with self._telling("nbd write"), _failures("writing a volume"):
            self._handle.pwrite(data, offset_bytes)

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        """Make a range read as zeros; not durable before :meth:`flush`."""
        end_bytes = offset_bytes + length_bytes
        with self._telling("nbd zero"), _failures("writing zeros to a volume"):
            while offset_bytes < end_bytes:
                part_bytes = min(_ZERO_MOST_BYTES, end_bytes - offset_bytes)
                self._handle.zero(part_bytes, offset_bytes)
                offset_bytes += part_bytes

    def flush(self) -> None:
        """Make every answered write durable, on any connection to the export."""
        with self._telling("nbd flush"), _failures("making a volume durable"):
            self._handle.flush()

    def extents(self, offset_bytes: int, length_bytes: int) -> list[Extent]:
        """What the server knows of a range without reading it. The list covers the range."""
        found: list[Extent] = []
        end_bytes = offset_bytes + length_bytes
        while offset_bytes < end_bytes:
            runs = self._block_status(offset_bytes, end_bytes - offset_bytes)
            for extent in _combine(runs, end_bytes - offset_bytes):
                found.append(extent)
                offset_bytes += extent.length_bytes
        return found

    def _block_status(self, offset_bytes: int, length_bytes: int) -> dict[str, list[int]]:
        runs: dict[str, list[int]] = {}

        def collect(context: str, _offset: int, entries: list[int], _error: object) -> int:
            runs[context] = entries
            return 0

        with self._asking("nbd block status"), _failures("asking what a volume holds"):
            self._handle.block_status(length_bytes, offset_bytes, collect)
        missing = [context for context in self._contexts if not runs.get(context)]
        if missing:
            raise errors.StorageError(f"QEMU's NBD server does not offer {missing[0]}.")
        return runs


def flush(host: Host, daemon: StorageDaemon, node: str) -> None:
    """Make durable what a job wrote through a node.

    QEMU keeps a qcow2 volume's tables in memory. It also writes them when it ends, but then reports
    no failure, and may be killed before.
    """
    if daemon.is_read_only(node):
        return  # block-commit made it read-only at its end, which succeeds only after a flush
    with NbdClient(host, daemon.export_nbd(node, writable=True)) as client:
        client.flush()
    daemon.unexport(node)


def _combine(runs: dict[str, list[int]], most_bytes: int) -> Iterator[Extent]:
    """Combine the answers of several contexts, up to where the shortest of them ends."""
    ends: dict[str, list[tuple[int, int]]] = {}
    for context, entries in runs.items():
        position = 0
        ends[context] = []
        for length, value in zip(entries[::2], entries[1::2], strict=True):
            position += length
            ends[context].append((position, value))
    covered = min(most_bytes, *(run[-1][0] for run in ends.values()), most_bytes)
    borders = sorted({min(end, covered) for run in ends.values() for end, _ in run})
    cursors = dict.fromkeys(ends, 0)
    start = 0
    for border in borders:
        values = {}
        for context, run in ends.items():
            while run[cursors[context]][0] <= start:
                cursors[context] += 1
            values[context] = run[cursors[context]][1]
        is_zero = bool(values.get(ALLOCATION, 0) & _STATE_ZERO)
        yield Extent(border - start, is_zero, values.get(DEPTH, 0))
        start = border
