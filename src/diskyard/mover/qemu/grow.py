"""Setting a volume's size so that the added part reads as zeros, whatever is below; bytes beyond it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from diskyard import errors
from diskyard.host import Host
from diskyard.mover.durable import os_errors, sync_layer
from diskyard.mover.formats.qcow2_header import CLUSTER_BYTES
from diskyard.mover.interface import Chain, Layer
from diskyard.mover.opening import opened_files
from diskyard.mover.qemu.blockgraph import StorageDaemon, layer_sizes_bytes
from diskyard.mover.qemu.nbdclient import ALLOCATION, NbdClient

_STATUS_BYTES = 1 << 30  # per question: at most 16,384 extents
_PIECE_BYTES = 1 << 20
_RANGES_AT_ONCE = 64


def grow(
    host: Host,
    chain: Chain,
    new_size_bytes: int,
    preallocate: bool,
    *,
    inherit_fds: Sequence[int] = (),
) -> None:
    """Make the top volume of an offline chain larger; the new part reads as zeros.

    ``chain[0].size_bytes`` is the size in the record. On return the volume durably has
    ``new_size_bytes``, and everything from the recorded size on is zero. If this is interrupted, run it
    again as a whole, with the same record.

    :param preallocate: reserve the blocks of a raw file too.
    :param inherit_fds: descriptors of leases.
    :raises diskyard.errors.NoSpace: there is no space to preallocate, or for the tables.
    :raises diskyard.errors.StorageError: the storage failed.
    :raises diskyard.errors.Unsupported: zeros must be stored and libnbd is not installed.
    """
    top = chain[0]
    if new_size_bytes < top.size_bytes:
        raise errors.InternalError(f"Volume {top.name} cannot shrink to {new_size_bytes} bytes.")
    with opened_files(host, chain) as opened:
        set_size(host, opened, new_size_bytes, inherit_fds=inherit_fds)
        if preallocate and top.format == "raw":
            with os_errors("preallocating a volume"):
                opened[0].open_container.reserve(new_size_bytes)
        sync_layer(opened[0])


def reads_zeros(host: Host, layer: Layer, start_bytes: int, end_bytes: int) -> bool:
    """Whether a volume by itself holds only zeros in a range beyond its record. Nobody may write to it.

    The rest of a qcow2 volume's last cluster does not count: QEMU fills clusters completely, also with
    bytes from below.

    :raises diskyard.errors.StorageError: it cannot be read.
    """
    with opened_files(host, (layer,)) as (opened,):
        if layer.format == "raw" and opened.fd is not None:
            with os_errors(f"reading the end of volume {layer.name}"):
                return _file_reads_zeros(host, opened.fd, start_bytes, end_bytes)
        return _served_reads_zeros(host, replace(opened, bound_bytes=None), start_bytes, end_bytes)


def _served_reads_zeros(host: Host, layer: Layer, start_bytes: int, end_bytes: int) -> bool:
    if layer.format == "qcow2":
        start_bytes = -(-start_bytes // CLUSTER_BYTES) * CLUSTER_BYTES
    with StorageDaemon(host, ((layer,),)) as daemon:
        node = daemon.open_chain((layer,))
        with NbdClient(host, daemon.export_nbd(node, writable=False), (ALLOCATION,)) as client:
            while start_bytes < end_bytes:
                for extent in client.extents(start_bytes, min(_STATUS_BYTES, end_bytes - start_bytes)):
                    data_end_bytes = start_bytes + (0 if extent.is_zero else extent.length_bytes)
                    for offset, length in _pieces(start_bytes, data_end_bytes):
                        if client.read(offset, length) != bytes(length):
                            return False
                    start_bytes += extent.length_bytes
    return True


def _file_reads_zeros(host: Host, fd: int, start_bytes: int, end_bytes: int) -> bool:
    while ranges := host.files.next_data(fd, start_bytes, _RANGES_AT_ONCE):
        for begin, end in ranges:
            for offset, length in _pieces(begin, min(end, end_bytes)):
                data = host.files.read_open(fd, offset, length)
                if data != bytes(len(data)):
                    return False
        start_bytes = ranges[-1][1]
    return True


def _pieces(start_bytes: int, end_bytes: int) -> Iterator[tuple[int, int]]:
    """The offset and length of each piece of a range."""
    for offset in range(start_bytes, end_bytes, _PIECE_BYTES):
        yield offset, min(_PIECE_BYTES, end_bytes - offset)


def set_size(host: Host, chain: Chain, size_bytes: int, *, inherit_fds: Sequence[int]) -> None:
    """Give the top volume of an open chain exactly ``size_bytes``; not durable before its sync.

    Bytes from the recorded size on read as zeros: existing bytes there are discarded first, whoever wrote
    them. A smaller size loses the bytes beyond it.
    """
    top = chain[0]
    actual_bytes, *below_bytes = layer_sizes_bytes(host, chain[:2])
    if top.format == "raw":
        _set_raw_size(top, size_bytes)
        if size_bytes > top.size_bytes and not top.gains_zeros:
            write_zeros(host, top, size_bytes, inherit_fds=inherit_fds)
        return
    zero_to_bytes = min(size_bytes, -(-top.size_bytes // CLUSTER_BYTES) * CLUSTER_BYTES)
    if below_bytes and below_bytes[0] > top.size_bytes:
        zero_to_bytes = size_bytes
    resizes = [] if actual_bytes <= top.size_bytes else [min(top.size_bytes, size_bytes)]
    if [actual_bytes, *resizes][-1] != size_bytes:
        resizes.append(size_bytes)
    if not resizes and zero_to_bytes <= top.size_bytes:
        return
    with StorageDaemon(host, (chain,), inherit_fds=inherit_fds) as daemon:
        # With the real backing open, QEMU itself stores zeros over a longer backing. But it writes the new
        # size before these zeros are durable, and the end of the last cluster may hold bytes from before a
        # shrinking. So the zeros are written once more, from the recorded size on.
        node = daemon.open_chain(chain, writable=(top.name,))
        for bytes_now in resizes:
            resize = {"node-name": node, "size": bytes_now}
            daemon.command("block_resize", resize, doing=f"resizing volume {top.name}")
        with NbdClient(host, daemon.export_nbd(node, writable=True)) as client:
            if zero_to_bytes > top.size_bytes:
                client.zero(top.size_bytes, zero_to_bytes - top.size_bytes)
            client.flush()


def _set_raw_size(top: Layer, size_bytes: int) -> None:
    with os_errors("resizing a volume"):
        # Bytes that an interrupted run left beyond the recorded size are cut off, and come back as zeros.
        if top.open_container.length_bytes() > top.size_bytes:
            top.open_container.set_length(min(top.size_bytes, size_bytes))
        top.open_container.set_length(size_bytes)


def write_zeros(host: Host, top: Layer, end_bytes: int, *, inherit_fds: Sequence[int] = ()) -> None:
    """Have an open raw layer hold zeros from its ``size_bytes`` on, whatever its container held there.

    Its container is long enough already. Durable once the layer is synced.
    """
    whole = replace(top, bound_bytes=None)
    with StorageDaemon(host, ((whole,),), inherit_fds=inherit_fds) as daemon:
        node = daemon.open_chain((whole,), writable=(top.name,))
        with NbdClient(host, daemon.export_nbd(node, writable=True)) as client:
            client.zero(top.size_bytes, end_bytes - top.size_bytes)
            client.flush()
