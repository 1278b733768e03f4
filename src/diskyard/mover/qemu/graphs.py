"""The description of a chain for QEMU: values, made before anything is started.

Every graph is explicit: it gives each layer's format, its storage, and its backing (a node, or
none), so that nothing written in an image decides what is opened.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace

from diskyard import errors
from diskyard.host import Host
from diskyard.mover.durable import os_errors
from diskyard.mover.interface import Chain, Layer
from diskyard.mover.opening import storage_told

BACKED_FORMATS = ("qcow2", "vmdk")  # the drivers that take a backing of any kind
_SECTOR_MOST_BYTES = 4096  # the largest of any disk in use
_NAME_BYTES = 16  # as base32, with a prefix, it has 29 of the 31 characters that QEMU allows


def guest_nodes(attachment_id: str, volume_id: str) -> tuple[str, str]:
    """The names of a volume's format node and file node in the guest of an attachment.

    A guest may have two disks that read the same Snapshot, and a name is unique in a QEMU process.
    """
    digest = hashlib.blake2b(f"{attachment_id}/{volume_id}".encode(), digest_size=_NAME_BYTES).digest()
    name = base64.b32encode(digest).decode().rstrip("=").lower()
    return f"dy-{name}", f"df-{name}"


def guest_graph(host: Host, chain: Chain, *, read_only: bool, attachment_id: str) -> dict[str, object]:
    """The whole chain as one nested QEMU blockdev for a guest, by the names of its files.

    If the guest writes, the files of the layers below are opened for reading, but not for ever read-only:
    QEMU opens them anew for writing when it merges something into them, and refuses that otherwise.
    """
    graph = blockdev_graph(host, chain, read_only=read_only)
    node: object = graph
    for layer in chain:
        assert isinstance(node, dict)
        node["node-name"], node["file"]["node-name"] = guest_nodes(attachment_id, layer.name)
        if not read_only:
            del node["file"]["read-only"]
            node["file"]["auto-read-only"] = True
        node = node.get("backing")
    return graph


def guest_overlay(host: Host, layer: Layer, *, attachment_id: str) -> dict[str, object]:
    """The overlay that a running guest's disk is to be switched to: as in its graph, with nothing below.

    That is spelled out: QEMU would else open what the overlay's header names.

    :raises diskyard.errors.InternalError: the overlay is not qcow2.
    """
    check_format(layer, is_root=False)
    return guest_graph(host, (layer,), read_only=False, attachment_id=attachment_id)


def blockdev_graph(host: Host, chain: Chain, *, read_only: bool, direct: bool = True) -> dict[str, object]:
    """The whole chain as one nested QEMU blockdev, by the names of its files: for a guest.

    :param read_only: for the top layer; those below are always read-only.
    :param direct: open past the page cache (O_DIRECT) every layer for which :func:`opens_past_cache` is true.
    """
    graph: dict[str, object] | None = None
    for index in reversed(range(len(chain))):
        layer = chain[index]
        check_format(layer, is_root=index == len(chain) - 1)
        protected = read_only or index > 0
        cache = {"direct": direct and opens_past_cache(host, layer, writable=not protected)}
        # Given for each layer: a layer below would otherwise inherit it.
        share = {"force-share": layer.shared} if chain[0].shared else {}
        file = {**layer.protocol, "read-only": protected, "cache": cache, **share}
        below = graph
        graph = {"driver": layer.format, "read-only": protected, "cache": cache, "file": file, **share}
        graph |= bound(layer, writable=not protected)
        if layer.format in BACKED_FORMATS:
            graph["backing"] = below
    if graph is None:
        raise errors.InternalError("A chain has no layer.")
    return graph


def program_graph(host: Host, chain: Chain, *, read_only: bool, direct: bool = False) -> str:
    """The description of an open chain, for a QEMU program that inherits its descriptors."""
    told = tuple(replace(layer, protocol=storage_told(layer)) for layer in chain)
    return "json:" + json.dumps(blockdev_graph(host, told, read_only=read_only, direct=direct))


def bound(layer: Layer, *, writable: bool) -> dict[str, object]:
    """What keeps QEMU from showing what a raw volume's container holds beyond its record."""
    end_bytes = layer.end_bytes(writable=writable)
    return {} if end_bytes is None else {"size": end_bytes}


def check_format(layer: Layer, *, is_root: bool) -> None:
    """Refuse a chain that QEMU would not show completely.

    With a raw node above a backing, QEMU's mirror, stream and map lose what is below.

    :raises diskyard.errors.InternalError: a layer that is not the last is not qcow2.
    """
    if not is_root and layer.format != "qcow2":
        raise errors.InternalError(f"Volume {layer.name} is {layer.format} and has a parent.")


def opens_past_cache(host: Host, layer: Layer, *, writable: bool) -> bool:
    """Whether QEMU can open a layer past the page cache.

    It takes its largest sector as the least that can be read where the file begins with a hole, and
    aborts where data and holes meet inside of one: with smaller blocks they do. And it cannot write
    to a raw volume that ends inside a sector, as it would have to lengthen it.
    """
    where = layer.path if layer.fd is None else layer.fd
    if where is None:
        return True
    with os_errors("looking at how a volume can be read"):
        if not host.files.reads_past_cache(where, _SECTOR_MOST_BYTES):
            return False
        if not writable or layer.format != "raw":
            return True
        end_bytes = layer.end_bytes(writable=True)
        if end_bytes is not None:
            return end_bytes % _SECTOR_MOST_BYTES == 0
        if isinstance(where, int):
            return host.files.size_bytes_of(where) % _SECTOR_MOST_BYTES == 0
        file = host.files.look(where)
        return file is None or file.size_bytes % _SECTOR_MOST_BYTES == 0
