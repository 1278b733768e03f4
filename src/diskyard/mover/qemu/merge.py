"""Merging two neighbouring volumes of a chain that nobody writes to, by QEMU's block jobs.

Nothing is lost if a merge in either direction is interrupted: until its end the chain reads as before
through the overlay. Run again as a whole, it ends correctly, whatever part was done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from diskyard import errors
from diskyard.host import Host
from diskyard.mover.durable import sync_layer
from diskyard.mover.interface import Chain, Layer, Monitor
from diskyard.mover.opening import descriptors, opened_files
from diskyard.mover.qemu.blockgraph import StorageDaemon, layer_sizes_bytes
from diskyard.mover.qemu.failures import failure
from diskyard.mover.qemu.graphs import program_graph
from diskyard.mover.qemu.grow import set_size
from diskyard.mover.qemu.nbdclient import ALLOCATION, DEPTH, NbdClient, flush

_CHECK_TIMEOUT_S = 3600.0
_STATUS_BYTES = 1 << 30  # per question: at most 16,384 extents
_CLEAN_OR_LEAKS = (0, 3)  # exit statuses of `qemu-img check`


def commit_down(host: Host, overlay: Layer, parents: Chain, monitor: Monitor) -> None:
    """Merge an overlay's data into its parent, ``parents[0]``, raw or qcow2.

    The view through the parent becomes the view through the overlay, its size included. On return that
    is durable. The overlay's view does not change. ``parents[0].size_bytes`` is the size in the parent's
    record from before the merge, also if the merge is run again.

    :param parents: the parent and everything below it.
    :raises Stopped: from the monitor; run it again as a whole.
    :raises diskyard.errors.NoSpace: the parent's storage is full; nothing is lost.
    :raises diskyard.errors.StorageError: QEMU or the storage failed.
    """
    with opened_files(host, (overlay, *parents)) as opened:
        _commit_down(host, opened[0], opened[1:], monitor)


def _commit_down(host: Host, overlay: Layer, parents: Chain, monitor: Monitor) -> None:
    target = parents[0]
    repair_leaks(host, target, inherit_fds=monitor.inherit_fds)
    if parents[1:] and min(overlay.size_bytes, parents[1].size_bytes) > target.size_bytes:
        _keep_end(host, overlay, parents, monitor)
    (overlay_bytes,) = layer_sizes_bytes(host, (overlay,))
    # QEMU commits everything that the overlay has, and cannot make every raw volume longer itself.
    has_bytes = max(overlay.size_bytes, overlay_bytes if target.format == "raw" else 0)
    set_size(host, parents, has_bytes, inherit_fds=monitor.inherit_fds)
    parents = (replace(target, bound_bytes=None), *parents[1:])  # it ends further on now
    with StorageDaemon(host, ((overlay, *parents),), inherit_fds=monitor.inherit_fds) as daemon:
        # The parent's own parents are open too. Without them, clusters that the overlay fills in part
        # would be completed with zeros.
        top = daemon.open_chain((overlay, *parents), writable=(target.name,))
        base = daemon.open_chain(parents, writable=(target.name,))
        arguments = {"device": top, "base-node": base}
        daemon.run_job("block-commit", arguments, monitor, doing=f"merging volume {overlay.name} down")
        flush(host, daemon, base)
    if overlay_bytes > overlay.size_bytes:
        merged = replace(target, size_bytes=overlay.size_bytes)
        set_size(host, (merged, *parents[1:]), overlay.size_bytes, inherit_fds=monitor.inherit_fds)
    sync_layer(target)


def _keep_end(host: Host, overlay: Layer, parents: Chain, monitor: Monitor) -> None:
    """Store the zeros that an overlay reads beyond its parent's end in the overlay itself.

    When the parent is made longer, QEMU writes zeros to it only after its new size: if that is interrupted
    in between, what is below would show through.
    """
    set_size(host, parents, parents[0].size_bytes, inherit_fds=monitor.inherit_fds)
    with StorageDaemon(host, ((overlay, *parents),), inherit_fds=monitor.inherit_fds) as daemon:
        node = daemon.open_chain((overlay, *parents), writable=(overlay.name,))
        end_bytes = min(overlay.size_bytes, parents[1].size_bytes)
        _store_zeros(host, daemon, node, parents[0].size_bytes, end_bytes)
    sync_layer(overlay)


def stream_up(
    host: Host,
    overlay: Layer,
    parents: Chain,
    keep: Chain,
    backing_name: str | None,
    monitor: Monitor,
) -> None:
    """Copy into an overlay what it reads from its parents, down to the layers that are kept.

    On return the overlay over ``keep`` durably shows what it showed over ``parents`` and ``keep``, and its
    header names ``backing_name``. What the parents show does not change; if the first one is longer than its
    record, it is cut to its recorded size.

    :param parents: the layers merged into the overlay, top first.
    :param keep: the layers that remain below; may be empty.
    :param backing_name: for the overlay's header, if it is to have one; only with ``keep``.
    :raises Stopped: from the monitor; run it again as a whole.
    :raises diskyard.errors.NoSpace: the overlay's storage is full; nothing is lost.
    :raises diskyard.errors.StorageError: QEMU or the storage failed.
    """
    if backing_name and not keep:
        raise errors.InternalError("A backing name goes with layers that are kept.")
    with opened_files(host, (overlay, *parents, *keep)) as opened:
        end = 1 + len(parents)
        _stream_up(host, opened[0], opened[1:end], opened[end:], backing_name, monitor)


def _stream_up(
    host: Host, overlay: Layer, parents: Chain, keep: Chain, backing_name: str | None, monitor: Monitor
) -> None:
    repair_leaks(host, overlay, inherit_fds=monitor.inherit_fds)
    # Before the chain is open for writing, because QEMU locks what it writes to.
    sizes_bytes = layer_sizes_bytes(host, (overlay, *parents, *keep[:1]))
    if sizes_bytes[1] > parents[0].size_bytes:
        # Another program made it longer. It is cut, so that what is there is not merged too.
        set_size(host, (*parents, *keep), parents[0].size_bytes, inherit_fds=monitor.inherit_fds)
        sizes_bytes[1] = parents[0].size_bytes
    with StorageDaemon(host, ((overlay, *parents, *keep),), inherit_fds=monitor.inherit_fds) as daemon:
        node = daemon.open_chain((overlay, *parents, *keep), writable=(overlay.name,))
        arguments: dict[str, object] = {"device": node}
        if keep:
            end_bytes = min(sizes_bytes[0], sizes_bytes[-1])
            _store_zeros(host, daemon, node, min(sizes_bytes[1:-1]), end_bytes)
            # If no name is given, QEMU writes its own: a json: of the whole graph.
            arguments |= {"base-node": daemon.open_chain(keep), "backing-file": backing_name or ""}
        daemon.run_job("block-stream", arguments, monitor, doing=f"merging into volume {overlay.name}")
        flush(host, daemon, node)
    sync_layer(overlay)


def _store_zeros(host: Host, daemon: StorageDaemon, node: str, offset_bytes: int, end_bytes: int) -> None:
    """Store the zeros that the overlay reads beyond a parent's end in the overlay itself.

    QEMU 7.2's block-stream does not copy them, and the layers that are kept would show through.

    :param offset_bytes: where the shortest parent ends.
    :param end_bytes: where the overlay, or what is kept, ends.
    """
    if offset_bytes >= end_bytes:
        return
    with NbdClient(host, daemon.export_nbd(node, writable=True), (ALLOCATION, DEPTH)) as client:
        while offset_bytes < end_bytes:
            for extent in client.extents(offset_bytes, min(_STATUS_BYTES, end_bytes - offset_bytes)):
                if extent.is_zero and extent.depth != 1:
                    client.zero(offset_bytes, extent.length_bytes)
                offset_bytes += extent.length_bytes
        client.flush()
    daemon.unexport(node)


def repair_leaks(host: Host, layer: Layer, *, inherit_fds: Sequence[int]) -> None:
    """Free the clusters that a killed writer had allocated and not yet used; change nothing else.

    :raises diskyard.errors.StorageError: the volume is damaged, and was left as it is.
    """
    if layer.format != "qcow2":
        return
    with opened_files(host, (layer,)) as opened:
        graph = program_graph(host, opened, read_only=False)
        words = ["qemu-img", "check", "-q", "-r", "leaks", graph]
        fds = (*inherit_fds, *descriptors(opened))
        finished = host.commands.run(words, timeout_s=_CHECK_TIMEOUT_S, inherit_fds=fds)
        if finished.exit_status not in _CLEAN_OR_LEAKS:
            said = finished.stderr or finished.stdout.decode(errors="replace")
            raise failure(said, f"checking {layer.name}")
