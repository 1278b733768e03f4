"""qcow2 files that refer to other files, lie about themselves, or are just odd."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace

from diskyard.testing.hostile_images.cases import HONEST, SIZE_BYTES, STRETCHES, Case, boundaries, case
from diskyard.testing.hostile_images.picture import Picture
from diskyard.testing.hostile_images.qcow2_file import (
    COPIED,
    FIELDS,
    Qcow2,
    build,
    deflated,
    extension,
    zstandard,
)
from diskyard.testing.hostile_images.site import Site

_BACKING_FORMAT, _DATA_FILE_NAME = 0xE2792ACA, 0x44415441
_LUKS, _BITMAPS, _FEATURES = 0x0537BE77, 0x23852875, 0x6803F857
_ZEROS = Picture(SIZE_BYTES, {})
#: Fields of which every other value must be refused.
_STRICT = {
    "magic", "backing_offset", "cluster_bits", "crypt", "l1_offset", "refcount_offset", "snapshots",
    "incompatible",
}  # fmt: skip


def qcow2_cases() -> Iterator[Case]:
    """All cases."""
    yield from _honest()
    yield from _fields()
    yield from _references()
    yield from _extensions()
    yield from _snapshots()
    yield from _l1_and_l2()
    yield from _refcounts()
    yield from _compressed()
    yield from _truncated()
    yield from _huge()


def _qcow2(
    name: str, data: bytes | bytearray, holds: Picture | None = None, *, may_be_refused: bool = False
) -> Case:
    return case(name, "qcow2", data, holds, may_be_refused=may_be_refused)


def _honest() -> Iterator[Case]:
    yield _qcow2("version 2", build(version=2).data, HONEST)
    for bits in (9, 12, 16, 21):
        yield _qcow2(f"clusters of 2^{bits} bytes", build(cluster_bits=bits).data, HONEST)
    yield _qcow2("extended L2 entries", build(cluster_bits=16, extended=True).data, HONEST)
    yield _qcow2("one sector", build(size_bytes=512).data, HONEST.resized(512))
    yield _qcow2(
        "a size inside a cluster", build(size_bytes=(1 << 20) - 512).data, HONEST.resized((1 << 20) - 512)
    )
    yield _qcow2("size 0", build(size_bytes=0).data)
    for bits in (0, 8, 22, 30, 31, 63, 64):
        yield _qcow2(f"cluster_bits {bits}", build().with_field("cluster_bits", bits))
    far = {(1 << 40) - 4096: b"far" * 1024, 5 << 30: b"near" * 128}
    size = 1 << 40
    yield _qcow2(
        "1 TiB with two clusters",
        build(size_bytes=size, stretches=far).data,
        Picture.of(size, far),
    )


def _fields() -> Iterator[Case]:
    honest = build()
    end = len(honest.data)
    # The last cluster begins with zeros, so it looks like an L1 table that names nothing.
    image_of_zeros = honest.clusters[15]
    for name, (offset, width) in FIELDS.items():
        is_value = int.from_bytes(honest.data[offset : offset + width], "big")
        special = (end, end - 65536, 512, 65536, 65537) if width == 8 else (3, 22, 64)
        for value in boundaries(width, is_value, *special):
            holds = None if name in _STRICT else _with_size(name, value)
            if (name, value) == ("l1_offset", image_of_zeros):
                holds = _ZEROS
            yield _qcow2(f"{name} {value:#x}", honest.with_field(name, value), holds, may_be_refused=True)


def _with_size(field: str, value: int) -> Picture | None:
    if field == "version" and value not in (2, 3):
        return None
    if field != "size":
        return HONEST
    return HONEST.resized(value) if value and value % 512 == 0 and value <= 512 << 20 else None


def _references() -> Iterator[Case]:
    names: dict[str, Callable[[Site], str]] = {
        "absolute": lambda site: str(site.secret),
        "relative": lambda site: f"../bait/{site.secret.name}",
        "file:": lambda site: f"file:{site.secret}",
        "json:": lambda site: 'json:{"driver":"file","filename":"' + str(site.secret) + '"}',
        "nbd:": lambda site: f"nbd://127.0.0.1:{site.port}/x",
        "http:": lambda site: f"http://127.0.0.1:{site.port}/x",
        "FIFO": lambda site: str(site.fifo),
        "device": lambda site: "/dev/zero",
        "/etc/shadow": lambda site: "/etc/shadow",
        "fd": lambda site: "/dev/fd/0",
        "ours": lambda site: "diskyard:00000000-0000-0000-0000-000000000000",
        "itself": lambda site: "itself",
        "without a name": lambda site: "",
    }
    for kind in names:
        for version in (2, 3):
            for in_data in (False, True):

                def with_backing(site: Site, kind: str = kind, version: int = version) -> bytearray:
                    return _backed(build(version=version), names[kind](site))

                def with_data_file(site: Site, kind: str = kind) -> bytearray:
                    return _with_data_file(names[kind](site))

                if not in_data:
                    yield case(f"backing file {kind}, version {version}", "qcow2", with_backing)
                elif version == 3:
                    yield case(f"data file {kind}", "qcow2", with_data_file)
    for offset in (1, 512, 1 << 16, 1 << 20, 1 << 40):
        image = Qcow2(build().with_field("backing_offset", offset), 0, 0, 0, 0, {}, {})
        yield _qcow2(f"backing file's name at {offset}", image.with_field("backing_size", 1023))
    for bits in (1 << 2, 1 << 2 | 1, 1 << 2 | 1 << 4):
        yield _qcow2(f"data file without a name, bits {bits:#x}", build().with_field("incompatible", bits))


def _backed(image: Qcow2, name: str) -> bytearray:
    data = image.with_bytes(1024, name.encode())
    struct.pack_into(">QI", data, 8, 1024, len(name))
    # Nothing is allocated, so whatever is read would be the backing file's.
    data[image.l1_offset : image.l1_offset + 8] = bytes(8)
    return data


def _with_data_file(name: str, *, is_raw: bool = True) -> bytearray:
    image = build(extensions=extension(_DATA_FILE_NAME, name.encode()))
    data = image.with_field("incompatible", 1 << 2)
    struct.pack_into(">Q", data, FIELDS["autoclear"][0], 2 if is_raw else 0)
    return data


def _extensions() -> Iterator[Case]:
    def extended(name: str, extensions: bytes, may_be_refused: bool = True) -> Case:
        data = build(extensions=extensions).data
        return _qcow2(f"extension: {name}", data, HONEST, may_be_refused=may_be_refused)

    yield extended("backing format only", extension(_BACKING_FORMAT, b"raw"))
    yield extended("data file's name without the bit", extension(_DATA_FILE_NAME, b"/etc/shadow"))
    yield extended("feature names", extension(_FEATURES, bytes(48) * 2), may_be_refused=False)
    yield extended("unknown", extension(0x12345678, b"x" * 100), may_be_refused=False)
    for length in (1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 8, (1 << 32) - 1):
        for kind in (_BACKING_FORMAT, _DATA_FILE_NAME, _FEATURES, _BITMAPS, _LUKS, 0x12345678):
            yield extended(f"{kind:#x} of {length} bytes", extension(kind, b"x" * 8, length))
    yield extended("key without encryption", extension(_LUKS, struct.pack(">QQ", 1 << 60, 1 << 60)))
    honest = build()
    endless = bytearray(honest.data)
    endless[112:65536] = extension(0x12345678, b"") * ((65536 - 112) // 8)
    yield _qcow2("extensions without an end", endless, HONEST, may_be_refused=True)
    for count, size, offset in (
        (1, 1 << 20, 65536), (65535, 1 << 25, 65536), (1 << 31, 1 << 60, 1 << 60), (1, 24, 0), (0, 0, 0),
        (1, 24, len(honest.data) + 65536),
    ):  # fmt: skip
        bitmaps = extension(_BITMAPS, struct.pack(">IIQQ", count, 0, size, offset))
        image = build(extensions=bitmaps)
        data = image.with_field("autoclear", 1)
        yield _qcow2(f"{count} bitmaps of {size} bytes at {offset}", data, HONEST, may_be_refused=True)


def _snapshots() -> Iterator[Case]:
    image = build()
    for count, offset in ((1, len(image.data)), (65536, 65536), (65537, 0), ((1 << 32) - 1, 1 << 62)):
        data = image.with_field("snapshots", count)
        struct.pack_into(">Q", data, 64, offset)
        yield _qcow2(f"{count} snapshots at {offset}", data)
    for method in (1, 2):
        for version in (2, 3):
            data = build(version=version).with_field("crypt", method)
            yield _qcow2(f"encryption {method}, version {version}", data)
    luks = build(extensions=extension(_LUKS, struct.pack(">QQ", 1 << 16, 1 << 20)))
    yield _qcow2("encryption 2 with a header elsewhere", luks.with_field("crypt", 2))


def _l1_and_l2() -> Iterator[Case]:
    image = build()
    end, l2_offset = len(image.data), min(image.l2_entries.values())
    places = {
        "the header": 0, "the refcount table": image.refcount_offset, "a refcount block":
        image.refcount_block_offset, "the L1 table": image.l1_offset, "its L2 table": l2_offset,
        "the data of another": image.clusters[3], "inside a cluster": l2_offset + 512,
        "the end of the file": end, "1 TiB": 1 << 40, "2^55": 1 << 55, "2^56 less 512": (1 << 56) - 512,
    }  # fmt: skip
    for what, at in (("L1", image.l1_offset), ("L2", image.l2_entries[0])):
        for where, offset in places.items():
            for flag in (COPIED, 0):
                if (what, where) == ("L1", "its L2 table"):
                    # Without the flag it is the same cluster: an inconsistency, and the same bytes.
                    holds, may = HONEST, True
                elif where == "the header":
                    # An entry of 0 means that nothing is allocated.
                    holds = _ZEROS if what == "L1" else HONEST_WITHOUT_FIRST
                    may = True
                else:
                    holds, may = None, False
                name = f"{what} entry to {where}{'' if flag else ', not copied'}"
                yield _qcow2(name, image.with_entry(at, offset | flag), holds, may_be_refused=may)
        yield _qcow2(f"{what} entry with reserved bits", image.with_entry(at, (1 << 64) - 1))
    shared = Qcow2(image.with_entry(image.l2_entries[15], image.clusters[3]), 65536, 0, 0, 0, {}, {})
    twice = Qcow2(shared.with_entry(image.l2_entries[3], image.clusters[3]), 65536, 0, 0, 0, {}, {})
    counted = twice.with_bytes(2 * 65536 + image.clusters[3] // 65536 * 2, b"\0\2")
    middle = STRETCHES[192 << 10]
    both = Picture.of(SIZE_BYTES, {0: STRETCHES[0], 192 << 10: middle, 960 << 10: middle})
    yield _qcow2("two L2 entries to one cluster that is counted once", twice.data)
    yield _qcow2("two L2 entries to one cluster that is counted twice", counted, both, may_be_refused=True)
    zero = image.with_entry(image.l2_entries[0], image.clusters[0] | COPIED | 1)
    yield _qcow2("a zero cluster with data below", zero, HONEST_WITHOUT_FIRST)
    old = build(version=2)
    flagged = old.with_entry(old.l2_entries[0], old.clusters[0] | COPIED | 1)
    yield _qcow2("a zero cluster in version 2", flagged, HONEST_WITHOUT_FIRST, may_be_refused=True)
    subs = build(extended=True)
    at = subs.l2_entries[0] + 8
    yield _qcow2("subclusters both data and zero", subs.with_entry(at, (1 << 64) - 1))
    yield _qcow2("subclusters of zeros", subs.with_entry(at, ((1 << 32) - 1) << 32), HONEST_WITHOUT_FIRST)


HONEST_WITHOUT_FIRST = Picture.of(SIZE_BYTES, {offset: data for offset, data in STRETCHES.items() if offset})


def _refcounts() -> Iterator[Case]:
    image = build()
    table, block = image.refcount_offset, image.refcount_block_offset
    places = {
        "nothing": 0, "itself": table, "the header": 512, "L1": image.l1_offset,
        "the data": image.clusters[0],
        "the end": len(image.data), "2^60": 1 << 60, "2^63": 1 << 63, "inside a cluster": block + 512,
    }  # fmt: skip
    for name, offset in places.items():
        yield _qcow2(f"refcount table to {name}", image.with_entry(table, offset))
    for entry in (1, 1023):
        second = image.with_entry(table + 8 * entry, block)
        yield _qcow2(f"refcount block named twice, by entry {entry}", second)
    clusters = len(image.data) // 65536
    for index in range(clusters):
        yield _qcow2(f"refcount 0 of cluster {index}", image.with_bytes(block + 2 * index, b"\0\0"))
    leaked = image.with_bytes(block + 2 * clusters, b"\0\1" * 100)
    yield _qcow2("refcounts beyond the file", leaked, HONEST, may_be_refused=True)
    leaked = image.with_bytes(block + 2 * image.clusters[0] // 65536, b"\xff\xff")
    yield _qcow2("a refcount of 65,535", leaked, HONEST, may_be_refused=True)


def _compressed() -> Iterator[Case]:
    for bits in (9, 12, 16, 21):
        data = build(compress=deflated, cluster_bits=bits).data
        yield _qcow2(f"zlib, clusters of 2^{bits} bytes", data, HONEST)
    yield _qcow2("zlib, version 2", build(compress=deflated, version=2).data, HONEST)
    yield _qcow2("zlib, extended L2 entries", build(compress=deflated, extended=True).data, HONEST)
    zstd = build(compress=zstandard, compression_type=1)
    yield _qcow2("zstd", zstd.data, HONEST)
    for kind in (2, 255):
        yield _qcow2(f"compression type {kind}", zstd.with_bytes(104, bytes((kind,))))
    frame = zstd.clusters[0]
    yield _qcow2("zstd without its magic", zstd.with_bytes(frame, bytes(4)))
    yield _qcow2("zstd that claims 4 GiB", zstd.with_bytes(frame + 5, b"\xff" * 4))
    yield _qcow2("zlib read as zstd", build(compress=deflated, compression_type=1).data)
    wrong: dict[str, Callable[[bytes], bytes]] = {
        "random bytes": lambda _: random_bytes(3000),
        "nothing but zeros": lambda _: bytes(512),
        "half of it": lambda _: deflated(random_bytes(65536))[: 1 << 15],
        "too little": lambda cluster: deflated(cluster[: len(cluster) // 2]),
    }
    for name, compress in wrong.items():
        yield _qcow2(f"zlib: {name}", build(compress=compress).data)
    bomb = build(compress=lambda cluster: deflated(cluster + bytes(64 << 20)))
    yield _qcow2("zlib: a bomb of 64 MiB a cluster", bomb.data, HONEST, may_be_refused=True)
    image = build(compress=deflated)
    shift = 62 - 8
    for name, entry in {
        "beyond the file": 1 << 62 | 1 << 40,
        "at the file's end": 1 << 62 | len(image.data),
        "in the header": 1 << 62 | 512,
        "in the L2 table": 1 << 62 | min(image.l2_entries.values()),
        "as long as can be, from its end": 1 << 62 | 255 << shift | len(image.data) - 512,
        "everywhere": (1 << 63) - 1,
    }.items():
        yield _qcow2(f"zlib: a cluster {name}", image.with_entry(image.l2_entries[0], entry))


def random_bytes(count: int) -> bytes:
    """The same random bytes every time."""
    return b"".join((number * 2654435761 % (1 << 32)).to_bytes(4, "big") for number in range(count // 4))


def _truncated() -> Iterator[Case]:
    image = build()
    edges = {0, 1, 3, 4, 8, 71, 72, 80, 103, 104, 111, 112, 512, 4096}
    for edge in range(65536, len(image.data), 65536):
        edges |= {edge - 1, edge, edge + 1, edge + 512}
    last = image.clusters[15]
    for edge in sorted(edge for edge in edges if edge <= last):
        # After a cut at the start of the last table or cluster, QEMU reads zeros; its check notices.
        yield _qcow2(f"cut after {edge} bytes", image.data[:edge])
    short = Picture.of(SIZE_BYTES, {k: v for k, v in STRETCHES.items() if k < 1 << 19})
    for edge in (last + 1, last + 512, len(image.data) - 512):
        # A last cluster that the file does not hold completely reads as zeros; QEMU writes such files.
        yield _qcow2(f"cut after {edge} bytes", image.data[:edge], short, may_be_refused=True)
    yield _qcow2("with a tail", image.data + random_bytes(1000), HONEST, may_be_refused=True)


def _huge() -> Iterator[Case]:
    """Files that would take a long time or much memory."""
    for name, data, length_bytes in (
        ("512-byte clusters in a file of 256 GiB", build(cluster_bits=9).data, 1 << 38),
        ("a file of 8 EiB", build().data, (1 << 63) - 4096),
    ):
        yield case(name, "qcow2", data, HONEST, length_bytes=length_bytes, may_be_refused=True)
    size = 63 << 40
    nothing = build(size_bytes=size, stretches={})
    yield replace(_qcow2("63 TiB of nothing", nothing.data, Picture(size, {})), is_slow=True)
    yield _qcow2("over 63 TiB", build(size_bytes=size + (1 << 30), stretches={}).data)
    for size in (1 << 62, (1 << 63) - 512, (1 << 64) - 512):
        yield _qcow2(f"{size} bytes on 64 KiB", build().with_field("size", size))
    wide = build(cluster_bits=9, size_bytes=100 << 30, stretches={})
    holds = Picture(100 << 30, {})
    yield replace(_qcow2("an L1 table of 25 MiB for nothing", wide.data, holds), is_slow=True)
