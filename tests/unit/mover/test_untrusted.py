"""Hostile image files are refused, honest ones are read; whatever is in them, nothing crashes."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diskyard import errors
from diskyard.mover.copying.copy import copy_view
from diskyard.mover.formats.foreign_headers import parse_vdi, parse_vhdx, parse_vmdk
from diskyard.mover.formats.qcow2_header import READ_BYTES, empty_qcow2, parse_untrusted_qcow2
from diskyard.mover.interface import ImportFormat, Layer, Stopped
from diskyard.mover.transfer import export_view, private_copy
from diskyard.mover.untrusted import IMPORT_LIMITS, import_layer, inspect_import, open_untrusted
from tests.unit.mover.bench import MIB, Bench, RecordingMonitor, graph, run

FORMATS: tuple[ImportFormat, ...] = ("raw", "qcow2", "vmdk", "vdi", "vhdx")


def convert(source: Layer, path: Path, format: str, *options: str) -> None:
    flags = [word for option in options for word in ("-o", option)]
    run("qemu-img", "convert", "-O", format, *flags, graph((source,), read_only=True), str(path))


def copy_privately(bench: Bench, source: Path, target: Path) -> None:
    fd = open_untrusted(bench.host, str(source), block_device=False)
    os.close(private_copy(bench.host, fd, str(target), RecordingMonitor()))
    os.close(fd)


@pytest.mark.parametrize(
    ("format", "options"),
    [(format, ()) for format in FORMATS]
    + [
        ("vmdk", ("subformat=streamOptimized",)),
        ("vdi", ("static=on",)),
        ("vhdx", ("subformat=fixed",)),
        ("qcow2", ("compat=0.10",)),
        ("qcow2", ("compression_type=zstd", "extended_l2=on", "cluster_size=16k")),
    ],
)
def test_import_of_an_honest_file(bench: Bench, format: ImportFormat, options: tuple[str, ...]) -> None:
    source = bench.layer("source", "raw", 8 * MIB)
    bench.scatter((source,), 1)
    outside, private = bench.folder / "outside", bench.folder / "private"
    convert(source, outside, format, *options)
    copy_privately(bench, outside, private)
    assert private.read_bytes() == outside.read_bytes()
    size_bytes = inspect_import(bench.host, bench.open(private), format)
    assert size_bytes == 8 * MIB
    target = bench.layer("target", "qcow2", size_bytes)
    copy_view(
        bench.host,
        (import_layer(bench.host, bench.open(private), format, size_bytes),),
        (target,),
        size_bytes,
        start_bytes=0,
        monitor=RecordingMonitor(),
        target_zeroed=True,
        source_limits=IMPORT_LIMITS,
    )
    assert bench.view((target,)) == bench.view((source,))


@pytest.mark.parametrize("format", FORMATS)
def test_export(bench: Bench, format: ImportFormat) -> None:
    root = bench.layer("root", "raw", 8 * MIB)
    bench.scatter((root,), 1)
    top = bench.layer("top", "qcow2", 8 * MIB, (root,))
    bench.scatter((top, root), 2)
    path = bench.folder / "export"
    monitor = RecordingMonitor()
    export_view(bench.host, (top, root), 4 * MIB, str(path), format, monitor)
    assert inspect_import(bench.host, bench.open(path), format) == 4 * MIB
    exported = import_layer(bench.host, bench.open(path), format, 4 * MIB)
    assert bench.view((exported,)) == bench.view((top, root))[: 4 * MIB]
    assert monitor.done_bytes == monitor.total_bytes
    # QEMU tells how far through the image it is, our own copy what of it has to move.
    assert monitor.total_bytes == 4 * MIB if format != "raw" else 0 < monitor.total_bytes < 4 * MIB


def test_a_stopped_export_leaves_nothing(bench: Bench) -> None:
    root = bench.layer("root", "raw", 64 * MIB)
    bench.fill((root,), [(0, 64 * MIB, 1)])
    path = bench.folder / "export"
    monitor = RecordingMonitor(stop_after=2, rate_limit_bytes_per_s=4 * MIB)
    with pytest.raises(Stopped):
        export_view(bench.host, (root,), 64 * MIB, str(path), "qcow2", monitor)
    assert not path.exists()


def test_an_export_does_not_follow_a_link(bench: Bench) -> None:
    root = bench.layer("root", "raw", MIB)
    victim = bench.folder / "victim"
    victim.write_bytes(b"precious")
    (bench.folder / "export").symlink_to(victim)
    with pytest.raises(errors.StorageError):
        export_view(bench.host, (root,), MIB, str(bench.folder / "export"), "raw", RecordingMonitor())
    assert victim.read_bytes() == b"precious"


def test_a_private_copy_keeps_holes(bench: Bench) -> None:
    source = bench.layer("source", "raw", 64 * MIB)
    bench.fill((source,), [(MIB, MIB, 1)])
    target = bench.folder / "private"
    copy_privately(bench, Path(str(source.path)), target)
    assert target.read_bytes() == Path(str(source.path)).read_bytes()
    assert target.stat().st_blocks * 512 <= 2 * MIB


def test_an_odd_raw_file_is_rounded_up(bench: Bench) -> None:
    path = bench.folder / "odd"
    path.write_bytes(b"x" * 1000)
    assert inspect_import(bench.host, bench.open(path), "raw") == 1024
    assert bench.view((import_layer(bench.host, bench.open(path), "raw", 1024),)) == b"x" * 1000 + bytes(24)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_no_file_is_refused_at_once(bench: Bench, format: ImportFormat) -> None:
    os.mkfifo(bench.folder / "fifo")
    (bench.folder / "link").symlink_to("/etc/passwd")
    is_raw = format == "raw"
    for name in ("fifo", "link", ".", "/dev/zero"):
        with pytest.raises(errors.UnsafeImage):
            within(5, partial(open_untrusted, bench.host, str(bench.folder / name), block_device=is_raw))


def within(timeout_s: float, work: Callable[[], object]) -> None:
    """Fail if ``work`` hangs; raise what it raises."""
    raised: list[errors.DiskyardError] = []

    def target() -> None:
        try:
            work()
        except errors.DiskyardError as error:
            raised.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(timeout_s)
    assert not thread.is_alive(), "it hangs"
    if raised:
        raise raised[0]


# -- hostile qcow2 -------------------------------------------------------------------


def create(bench: Bench, *words: str) -> Path:
    path = bench.folder / "hostile"
    run("qemu-img", "create", "-q", *words[:-1], str(path), words[-1])
    return path


def refused(bench: Bench, path: Path, format: ImportFormat = "qcow2") -> str:
    with pytest.raises(errors.UnsafeImage) as caught:
        within(30, lambda: inspect_import(bench.host, bench.open(path), format))
    return caught.value.message


def test_backing_files_are_refused(bench: Bench) -> None:
    backing = ("-f", "qcow2", "-u", "-F", "raw", "-b")
    assert "backing" in refused(bench, create(bench, *backing, "/etc/passwd", "1M"))
    assert "backing" in refused(bench, create(bench, *backing, 'json:{"driver":"null-co"}', "1M"))


def test_data_files_are_refused(bench: Bench) -> None:
    data = f"data_file={bench.folder / 'data'}"
    assert "data file" in refused(bench, create(bench, "-f", "qcow2", "-o", data, "1M"))


def create_encrypted(bench: Bench) -> Path:
    """QEMU measures its own CPU time to choose a key's iterations, and fails where a tick hides it."""
    words = ("--object", "secret,id=s,data=x", "-f", "qcow2", "-o")
    luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    for _ in range(50):
        with contextlib.suppress(AssertionError):
            return create(bench, *words, luks, "1M")
    return create(bench, *words, luks, "1M")


def test_encryption_is_refused(bench: Bench) -> None:
    assert "encrypted" in refused(bench, create_encrypted(bench))


def test_snapshots_are_refused(bench: Bench) -> None:
    path = create(bench, "-f", "qcow2", "1M")
    run("qemu-img", "snapshot", "-c", "one", str(path))
    assert "snapshots" in refused(bench, path)


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (4, b"\0\0\0\1", "version"),
        (20, b"\0\0\0\x20", "clusters"),
        (24, b"\x7f" * 8, "size"),
        (24, (1 << 50).to_bytes(8, "big"), "L1 table is too small"),
        (36, b"\xff" * 4, "L1 table is too large"),
        (40, (1 << 60).to_bytes(8, "big"), "not inside"),
        (48, (1 << 60).to_bytes(8, "big"), "not inside"),
        (56, b"\xff" * 4, "too large"),
        (60, b"\0\1\0\0", "snapshots"),
        (72, b"\x80" + bytes(7), "not known"),
        (100, b"\xff" * 4, "length"),
    ],
)
def test_lying_headers_are_refused(bench: Bench, offset: int, value: bytes, words: str) -> None:
    path = bench.folder / "hostile"
    image = bytearray(empty_qcow2(MIB, None))
    image[offset : offset + len(value)] = value
    path.write_bytes(image)
    assert words in refused(bench, path)


def test_tables_that_point_nowhere_are_refused(bench: Bench) -> None:
    path = bench.folder / "hostile"
    image = bytearray(empty_qcow2(MIB, None))
    struct.pack_into(">Q", image, 3 * 65536, (1 << 63) | (1 << 50))
    path.write_bytes(image)
    assert "tables" in refused(bench, path)
    struct.pack_into(">Q", image, 3 * 65536, (1 << 63) | (1 << 16))
    path.write_bytes(image)
    assert "refuses" in refused(bench, path)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 120), st.binary(min_size=1, max_size=8)), max_size=6),
    st.integers(0, 300),
)
def test_parsing_qcow2_never_crashes(changes: list[tuple[int, bytes]], cut_bytes: int) -> None:
    image = bytearray(empty_qcow2(MIB, "diskyard:x" if cut_bytes % 2 else None))
    for offset, value in changes:
        image[offset : offset + len(value)] = value
    if cut_bytes < 200:
        del image[cut_bytes:]
    reads = []

    def read(offset: int, count: int) -> bytes:
        reads.append(offset + count)
        return bytes(image[offset : offset + count])

    try:
        size_bytes = parse_untrusted_qcow2(read, len(image))
    except errors.UnsafeImage:
        size_bytes = 0
    assert 0 <= size_bytes <= 1 << 61
    assert max(reads) <= READ_BYTES


# -- the others ----------------------------------------------------------------------


def vmdk_with(bench: Bench, change: Callable[[bytearray], None]) -> Path:
    path = create(bench, "-f", "vmdk", "1M")
    image = bytearray(path.read_bytes())
    change(image)
    path.write_bytes(image)
    return path


def test_vmdk_with_capacity_0_is_refused(bench: Bench) -> None:
    def change(image: bytearray) -> None:
        image[12:20] = bytes(8)

    assert "capacity" in refused(bench, vmdk_with(bench, change), "vmdk")


def test_vmdk_descriptors_that_name_files_are_refused(bench: Bench) -> None:
    path = bench.folder / "hostile"
    text = b'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
    path.write_bytes(text + b'RW 8 FLAT "/etc/passwd" 0\n')
    assert "VMDK" in refused(bench, path, "vmdk")
    path.unlink()

    def second_extent(image: bytearray) -> None:
        start = image.index(b"RW ")
        line = b'RW 8 FLAT "/etc/passwd" 0\nRW 2048 SPARSE "x"\n'
        image[start : start + len(line)] = line

    assert "other files" in refused(bench, vmdk_with(bench, second_extent), "vmdk")


def test_vmdk_with_a_parent_is_refused(bench: Bench) -> None:
    parent = bench.folder / "parent.vmdk"
    run("qemu-img", "create", "-q", "-f", "vmdk", str(parent), "1M")
    path = create(bench, "-f", "vmdk", "-F", "vmdk", "-b", str(parent), "1M")
    assert "parent" in refused(bench, path, "vmdk")


def test_vdi_with_a_parent_or_a_lie_is_refused(bench: Bench) -> None:
    for offset, words in ((0x1B8, "parent"), (0x181, "number of blocks"), (0x155, "table")):
        path = create(bench, "-f", "vdi", "1M")
        image = bytearray(path.read_bytes())
        image[offset] = 0xFF
        path.write_bytes(image)
        assert words in refused(bench, path, "vdi")


def test_vhdx_with_a_parent_is_refused(bench: Bench) -> None:
    path = create(bench, "-f", "vhdx", "1M")
    honest = path.read_bytes()
    child = bytearray(honest)
    # The file parameters: the block size of 8 MiB, then flags without a parent.
    start = child.index(struct.pack("<II", 8 << 20, 0), 1 << 20)
    child[start + 4] |= 2
    path.write_bytes(child)
    assert "parent" in refused(bench, path, "vhdx")


@pytest.mark.parametrize("parse", [parse_vmdk, parse_vdi, parse_vhdx])
@pytest.mark.parametrize("format", ["vmdk", "vdi", "vhdx"])
def test_mutated_headers_never_crash(bench: Bench, parse: Callable[..., int], format: str) -> None:
    honest = create(bench, "-f", format, "1M").read_bytes()[: 3 << 20]

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=9)), max_size=5))
    def mutate(changes: list[tuple[int, bytes]]) -> None:
        image = bytearray(honest)
        for offset, value in changes:
            for block in (0, 64 << 10, 128 << 10, 192 << 10, 2 << 20):
                image[block + offset : block + offset + len(value)] = value
        try:
            parse(lambda offset, count: bytes(image[offset : offset + count]), len(image))
        except errors.UnsafeImage:
            return

    mutate()


@pytest.mark.parametrize(
    ("parse", "format"), [(parse_vmdk, "vmdk"), (parse_vdi, "vdi"), (parse_vhdx, "vhdx")]
)
def test_a_file_that_shrinks_while_it_is_read_is_refused(
    bench: Bench, parse: Callable[..., int], format: str
) -> None:
    image = create(bench, "-f", format, "1M").read_bytes()
    reads: list[int] = []

    def read_until(most_reads: int) -> Callable[[int, int], bytes]:
        def read(offset: int, count: int) -> bytes:
            reads.append(offset)
            data = image[offset : offset + count]
            return data if len(reads) <= most_reads else data[:-1]

        return read

    assert parse(read_until(1 << 20), len(image)) == MIB
    for number in range(1, len(reads)):
        reads.clear()
        with pytest.raises(errors.UnsafeImage):
            parse(read_until(number), len(image))


def test_a_program_that_says_much_is_bounded(bench: Bench) -> None:
    # A refcount table of 8 MiB whose every entry is wrong: a line of text for each.
    image = bytearray(empty_qcow2(MIB, None))
    struct.pack_into(">QI", image, 48, len(image), 128)
    path = bench.folder / "hostile"
    path.write_bytes(image + b"\0\0\0\1\0\0\0\1" * (1 << 20))
    assert "refuses the image" in refused(bench, path)
