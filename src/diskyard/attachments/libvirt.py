"""A libvirt <disk> element with its backing chain spelled out (I7).

The schema is libvirt's own ``domain.rng``. The last, empty ``<backingStore/>`` is what
stops libvirt from following the names in qcow2 headers; the schema does not ask for it.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from diskyard.host import Host
from diskyard.mover.graphs import opens_past_cache
from diskyard.mover.interface import Chain, Layer


def disk_xml(host: Host, chain: Chain, *, read_only: bool, device: str = "vda") -> str:
    """The element for a chain of files."""
    disk = ET.Element("disk", type="file", device="disk")
    # libvirt has one mode for the whole chain.
    past_cache = all(
        opens_past_cache(host, layer, writable=not read_only and layer is chain[0]) for layer in chain
    )
    cache = "none" if past_cache else "writeback"
    ET.SubElement(disk, "driver", name="qemu", type=chain[0].format, cache=cache)
    _add_source(disk, chain[0], bounded=read_only)
    below = disk
    for layer in chain[1:]:
        below = ET.SubElement(below, "backingStore", type="file")
        ET.SubElement(below, "format", type=layer.format)
        _add_source(below, layer, bounded=True)
    ET.SubElement(below, "backingStore")
    ET.SubElement(disk, "target", dev=device, bus="virtio")
    if read_only:
        ET.SubElement(disk, "readonly")
    ET.indent(disk)
    # In lines and printable: in a path there may be marks that turn what people read around.
    text = ET.tostring(disk, encoding="unicode")
    return "".join(c if c.isprintable() or c == "\n" else f"&#{ord(c)};" for c in text)


def _add_source(parent: ET.Element, layer: Layer, *, bounded: bool) -> None:
    source = ET.SubElement(parent, "source", file=layer.path or "")
    if bounded and layer.bound_bytes is not None:
        slices = ET.SubElement(source, "slices")
        ET.SubElement(slices, "slice", type="storage", offset="0", size=str(layer.bound_bytes))
