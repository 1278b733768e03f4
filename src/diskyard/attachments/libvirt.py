"""A libvirt <disk> element that spells out its backing chain (I7).

The schema is libvirt's own ``domain.rng``. The last, empty ``<backingStore/>`` stops libvirt from following
the names in qcow2 headers. The schema does not require it.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree as ET

from diskyard import errors
from diskyard.host import Host
from diskyard.mover.interface import Chain, Layer
from diskyard.mover.qemu.graphs import opens_past_cache

_TYPES = {"file": "file", "nbd": "network"}


def disk_xml(host: Host, chain: Chain, *, read_only: bool, device: str = "vda") -> str:
    """The element for a chain.

    :raises diskyard.errors.InternalError: a layer is on storage for which this module has no libvirt element.
    """
    disk = ET.Element("disk", type=_type_of(chain[0]), device="disk")
    # libvirt has one mode for the whole chain.
    past_cache = all(
        opens_past_cache(host, layer, writable=not read_only and layer is chain[0]) for layer in chain
    )
    cache = "none" if past_cache else "writeback"
    ET.SubElement(disk, "driver", name="qemu", type=chain[0].format, cache=cache)
    _add_source(disk, chain[0], writable=not read_only)
    below = disk
    for layer in chain[1:]:
        below = ET.SubElement(below, "backingStore", type=_type_of(layer))
        ET.SubElement(below, "format", type=layer.format)
        _add_source(below, layer, writable=False)
    ET.SubElement(below, "backingStore")
    ET.SubElement(disk, "target", dev=device, bus="virtio")
    if read_only:
        ET.SubElement(disk, "readonly")
    ET.indent(disk)
    # Only lines of printable characters: a path may contain marks that reverse the text that people read.
    text = ET.tostring(disk, encoding="unicode")
    return "".join(c if c.isprintable() or c == "\n" else f"&#{ord(c)};" for c in text)


def _type_of(layer: Layer) -> str:
    """What libvirt calls the storage that a layer's blockdev names."""
    driver = str(layer.protocol["driver"])
    if driver not in _TYPES:
        raise errors.InternalError(f"Nobody has said how libvirt opens a volume by QEMU's driver {driver}.")
    return _TYPES[driver]


def _add_source(parent: ET.Element, layer: Layer, *, writable: bool) -> None:
    protocol = layer.protocol
    if _type_of(layer) == "network":
        source = ET.SubElement(parent, "source", protocol="nbd", name=str(protocol["export"]))
        server = protocol["server"]
        assert isinstance(server, Mapping)
        ET.SubElement(source, "host", transport="unix", socket=str(server["path"]))
    else:
        source = ET.SubElement(parent, "source", file=str(protocol["filename"]))
    end_bytes = layer.end_bytes(writable=writable)
    if end_bytes is not None:
        slices = ET.SubElement(source, "slices")
        ET.SubElement(slices, "slice", type="storage", offset="0", size=str(end_bytes))
