"""Sources for benchmarks, written as guests write them, and compared by QEMU's own tool."""

from __future__ import annotations

import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nbd
from benchmarks._processes import run
from diskyard.mover.formats.qcow2_header import empty_qcow2
from diskyard.mover.interface import Chain, Layer, VolumeFormat

KiB = 1 << 10
MiB = 1 << 20
PIECE_BYTES = 4 * MiB
STARTS_WITHIN_S = 10.0

Pieces = Sequence[tuple[int, int]]
"""Offsets and lengths."""


def layer(path: Path, format: VolumeFormat, size_bytes: int) -> Layer:
    """A file as a layer, named after itself."""
    return Layer(path.stem, format, {"driver": "file", "filename": str(path)}, str(path), size_bytes)


def graph(chain: Chain, *, read_only: bool = True) -> str:
    """A chain as a file name of QEMU's, with every format and parent named."""
    nested: dict[str, object] | None = None
    for number, one in enumerate(reversed(chain)):
        is_top = number == len(chain) - 1
        below = nested
        nested = {
            "driver": one.format,
            "file": dict(one.protocol),
            "read-only": read_only or not is_top,
        }
        if one.format == "qcow2":
            nested["backing"] = below
    return "json:" + json.dumps(nested)


def paths_of(chain: Chain) -> list[Path]:
    """The files of a chain."""
    return [Path(one.path) for one in chain if one.path is not None]


def whole(size_bytes: int) -> Pieces:
    """All of a disk."""
    return [(offset, min(PIECE_BYTES, size_bytes - offset)) for offset in range(0, size_bytes, PIECE_BYTES)]


def scattered(
    size_bytes: int, share: float, least_bytes: int, most_bytes: int, *, seed: int, align_bytes: int = 4 * KiB
) -> Pieces:
    """Pieces of random length at random distances, which are such a share of a disk, in order."""
    rng = random.Random(seed)
    mean_gap = (least_bytes + most_bytes) / 2 * (1 / share - 1)
    pieces: list[tuple[int, int]] = []
    offset = 0
    while True:
        offset += round(rng.uniform(0, 2 * mean_gap) / align_bytes) * align_bytes
        length = rng.randint(least_bytes // align_bytes, most_bytes // align_bytes) * align_bytes
        if offset + length > size_bytes:
            return pieces
        pieces.append((offset, length))
        offset += length


def bytes_in(pieces: Pieces) -> int:
    """How much all pieces hold."""
    return sum(length for _, length in pieces)


def make_raw(path: Path, size_bytes: int, pieces: Pieces) -> Chain:
    """A new raw file with random data in some places, durable."""
    with path.open("xb") as file:
        file.truncate(size_bytes)
    write_raw(path, pieces)
    return (layer(path, "raw", size_bytes),)


def write_raw(path: Path, pieces: Pieces) -> None:
    """Write random data to a raw file, durably."""
    with path.open("r+b", buffering=0) as file:
        for offset, length in pieces:
            os.pwrite(file.fileno(), os.urandom(length), offset)
        os.fsync(file.fileno())


def make_qcow2(path: Path, size_bytes: int, pieces: Pieces, below: Chain = ()) -> Chain:
    """A new qcow2 over others with random data in some places, written in random order, durable."""
    run("qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size_bytes))
    chain = (layer(path, "qcow2", size_bytes), *below)
    shuffled = list(pieces)
    random.Random(len(shuffled)).shuffle(shuffled)
    with writing(graph(chain, read_only=False)) as disk:
        for offset, length in shuffled:
            disk.pwrite(os.urandom(length), offset)
    return chain


@contextmanager
def writing(name: str) -> Iterator[nbd.NBD]:
    """A connection that writes what QEMU opens by a name, as a guest does; flushed at the end."""
    with tempfile.TemporaryDirectory(prefix="dy-nbd-") as folder:
        socket = os.path.join(folder, "s")
        words = ["qemu-nbd", "--cache=writeback", "--discard=unmap", f"--socket={socket}", name]
        with subprocess.Popen(words) as server:
            try:
                handle = nbd.NBD()
                until_s = time.monotonic() + STARTS_WITHIN_S
                while not os.path.exists(socket) and time.monotonic() < until_s:
                    time.sleep(0.01)
                handle.connect_uri(f"nbd+unix:///?socket={socket}")
                yield handle
                handle.flush()
                handle.shutdown()
            finally:
                server.terminate()


def make_empty_target(one: Layer, *, has_parent: bool) -> None:
    """What a copy is made into: a file as a repository makes it."""
    assert one.path is not None
    with open(one.path, "xb") as file:
        if one.format == "raw":
            file.truncate(one.size_bytes)
        else:
            file.write(empty_qcow2(one.size_bytes, "diskyard:parent" if has_parent else None))


def compare(source: str, target: str) -> None:
    """Compare what QEMU opens by two names.

    :raises Failed: they differ; says where.
    """
    run("qemu-img", "compare", source, target)
