"""A libvirt <disk> element with its backing chain spelled out (I7).

The schema is libvirt's own ``domain.rng``. The last, empty ``<backingStore/>`` is what
stops libvirt from following the names in qcow2 headers; the schema does not ask for it.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from diskyard.host import Host
from diskyard.mover.blockgraph import ends_inside_a_sector
from diskyard.mover.interface import Chain, Layer


def disk_xml(host: Host, chain: Chain, *, read_only: bool, device: str = "vda") -> str:
    """The element for a chain of files."""
    disk = ET.Element("disk", type="file", device="disk")
    cache = "writeback" if not read_only and ends_inside_a_sector(host, chain[0]) else "none"
    ET.SubElement(disk, "driver", name="qemu", type=chain[0].format, cache=cache)
    _add_source(disk, chain[0])
    below = disk
    for layer in chain[1:]:
        below = ET.SubElement(below, "backingStore", type="file")
        ET.SubElement(below, "format", type=layer.format)
        _add_source(below, layer)
    ET.SubElement(below, "backingStore")
    ET.SubElement(disk, "target", dev=device, bus="virtio")
    if read_only:
        ET.SubElement(disk, "readonly")
    ET.indent(disk)
    return ET.tostring(disk, encoding="unicode")


def _add_source(parent: ET.Element, layer: Layer) -> None:
    ET.SubElement(parent, "source", file=layer.path or "")
