"""A libvirt <disk> element with its backing chain spelled out (I7).

The schema is libvirt's own ``domain.rng``. The last, empty ``<backingStore/>`` is what
stops libvirt from following the names in qcow2 headers; the schema does not ask for it.
"""

from __future__ import annotations

from xml.etree import ElementTree

from diskyard.mover.interface import Chain, Layer


def disk_xml(chain: Chain, *, read_only: bool, device: str = "vda") -> str:
    """The element for a chain of files."""
    disk = ElementTree.Element("disk", type="file", device="disk")
    ElementTree.SubElement(disk, "driver", name="qemu", type=chain[0].format, cache="none")
    _add_source(disk, chain[0])
    below = disk
    for layer in chain[1:]:
        below = ElementTree.SubElement(below, "backingStore", type="file")
        ElementTree.SubElement(below, "format", type=layer.format)
        _add_source(below, layer)
    ElementTree.SubElement(below, "backingStore")
    ElementTree.SubElement(disk, "target", dev=device, bus="virtio")
    if read_only:
        ElementTree.SubElement(disk, "readonly")
    ElementTree.indent(disk)
    return ElementTree.tostring(disk, encoding="unicode")


def _add_source(parent: ElementTree.Element, layer: Layer) -> None:
    ElementTree.SubElement(parent, "source", file=layer.path or "")
