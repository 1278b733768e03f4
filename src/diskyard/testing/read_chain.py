"""Reading an image's bytes without QEMU: quickly, and by other code than the one that wrote them.

It understands only what Diskyard's own volumes contain (QEMU's docs/interop/qcow2.txt). For anything
else an assertion fails.
"""

from __future__ import annotations

import struct

from diskyard.mover.interface import Layer
from diskyard.repository.repository import Repository, volume_name

_COMPRESSED, _COPIED, _ZERO = 1 << 62, 1 << 63, 1
_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00


def read_image(repo: Repository, image_id: str) -> bytes:
    """All bytes of an image, read from its chain, at the newest state of its repository."""
    state = repo.state()
    image = state.images[image_id]
    data = bytearray(image.size_bytes)
    volumes = [volume for _, volume in state.chain(image)]
    for volume, layer in reversed(list(zip(volumes, repo.chain(state, image), strict=True))):
        stored = repo.stored(volume)
        assert stored is not None
        content = repo.storage.read_volume(volume_name(volume), 0, stored.length_bytes)
        _lay_over(data, layer, content)
    return bytes(data)


def _lay_over(data: bytearray, layer: Layer, content: bytes) -> None:
    if layer.format == "raw":
        size_bytes = min(len(content), layer.size_bytes, len(data))
        data[:size_bytes] = content[:size_bytes]
    else:
        size_bytes = _lay_qcow2_over(data, content)
    # Nothing from below shows beyond the end of a layer.
    data[size_bytes:] = bytes(len(data) - size_bytes)


def _lay_qcow2_over(data: bytearray, content: bytes) -> int:
    magic, version = struct.unpack_from(">4sI", content)
    assert (magic, version) == (b"QFI\xfb", 3)
    cluster_bits, size_bytes, encrypted = struct.unpack_from(">IQI", content, 20)
    l1_entries, l1_offset = struct.unpack_from(">IQ", content, 36)
    incompatible = struct.unpack_from(">Q", content, 72)[0]
    assert not encrypted
    assert not incompatible, f"incompatible features {incompatible:#x}"
    cluster_bytes = 1 << cluster_bits
    shown_bytes: int = min(size_bytes, len(data))
    per_table = cluster_bytes // 8
    for number, l1_entry in enumerate(struct.unpack_from(f">{l1_entries}Q", content, l1_offset)):
        if not l1_entry & _OFFSET_MASK:
            continue
        table = struct.unpack_from(f">{per_table}Q", content, l1_entry & _OFFSET_MASK)
        if not any(table):  # mostly
            continue
        for index, entry in [(index, entry) for index, entry in enumerate(table) if entry]:
            start = (number * per_table + index) * cluster_bytes
            length = min(cluster_bytes, shown_bytes - start)
            if length <= 0:
                continue
            assert not entry & _COMPRESSED
            if entry & _ZERO:
                data[start : start + length] = bytes(length)
            else:
                offset = entry & _OFFSET_MASK
                cluster = content[offset : offset + length]
                data[start : start + length] = cluster.ljust(length, b"\0")
    return shown_bytes
