"""Volumes in a temporary folder, filled and read back by QEMU's tools, never by the code under test."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diskyard.host import Host
from diskyard.mover.formats.qcow2_header import empty_qcow2
from diskyard.mover.interface import Chain, Layer, Stopped, VolumeFormat

MIB = 1 << 20
Writes = Sequence[tuple[int, int, int]]
"""Offset, length, and the byte written."""


class RecordingMonitor:
    """A monitor that keeps what it is told, and may stop the work or run something midway."""

    def __init__(
        self,
        *,
        stop_after: int | None = None,
        stop_at_checkpoint: bool = False,
        rate_limit_bytes_per_s: int = 0,
    ) -> None:
        self.rate_limit_bytes_per_s = rate_limit_bytes_per_s
        self.inherit_fds: Sequence[int] = ()
        self.calls = 0
        self.done_bytes = 0
        self.total_bytes = 0
        self.checkpoints: list[int] = []
        self._stop_after = stop_after
        self._stop_at_checkpoint = stop_at_checkpoint

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        self.calls += 1
        self.done_bytes, self.total_bytes = done_bytes, total_bytes
        if self._stop_after is not None and self.calls > self._stop_after:
            raise Stopped

    def checkpoint(self, durable_bytes: int) -> None:
        self.checkpoints.append(durable_bytes)
        if self._stop_at_checkpoint:
            raise Stopped


@dataclass
class Bench:
    """Makes layers, fills them, and reads the view through them."""

    folder: Path
    host: Host
    fds: list[int] = field(default_factory=list)

    def open(self, path: Path | str) -> int:
        """A descriptor of a file, to read, which is closed when the test ends."""
        self.fds.append(os.open(path, os.O_RDONLY))
        return self.fds[-1]

    def close(self) -> None:
        """Close them."""
        while self.fds:
            os.close(self.fds.pop())

    def layer(self, name: str, format: VolumeFormat, size_bytes: int, below: Chain = ()) -> Layer:
        """A new empty layer over ``below``."""
        path = self.folder / name
        if format == "raw":
            path.touch()
            with path.open("r+b") as file:
                file.truncate(size_bytes)
        else:
            path.write_bytes(empty_qcow2(size_bytes, "diskyard:parent" if below else None))
        protocol = {"driver": "file", "filename": str(path)}
        return Layer(name, format, protocol, str(path), size_bytes)

    def fill(self, chain: Chain, writes: Writes) -> None:
        """Write through the top layer of a chain, as a guest would; byte 0 is a write of zeros."""
        words = []
        for offset, length, byte in writes:
            words += ["-c", f"write -q {'-z' if byte == 0 else f'-P {byte}'} {offset} {length}"]
        run("qemu-io", *words, graph(chain, read_only=False))

    def scatter(self, chain: Chain, seed: int, count: int = 12) -> None:
        """Random writes of random lengths, some of zeros."""
        rng = random.Random(seed)
        size = chain[0].size_bytes
        writes = []
        for _ in range(count):
            offset = rng.randrange(0, size, 512)
            length = min(rng.choice([512, 4096, 65536, 200 * 1024]), size - offset)
            writes.append((offset, length, rng.choice([0, *range(1, 255)])))
        self.fill(chain, writes)

    def view(self, chain: Chain, size_bytes: int | None = None) -> bytes:
        """The view through a chain, read by qemu-img; zeros up to ``size_bytes``."""
        target = self.folder / "view.raw"
        run("qemu-img", "convert", "-O", "raw", graph(chain, read_only=True), str(target))
        data = target.read_bytes()
        target.unlink()
        if size_bytes is None:
            return data
        return data[:size_bytes].ljust(size_bytes, b"\0")


def graph(chain: Chain, *, read_only: bool) -> str:
    """The chain as a ``json:`` name, built apart from the code under test."""
    nested: dict[str, object] | None = None
    for layer in reversed(chain):
        below = nested
        nested = {"driver": layer.format, "file": storage(layer), "read-only": read_only}
        if layer.format == "qcow2":
            nested["backing"] = below
        if below is not None:
            below["read-only"] = True
    return "json:" + json.dumps(nested)


def storage(layer: Layer) -> dict[str, object]:
    """What holds a layer; of one that has no name of its own what it is open on."""
    if layer.path is None and layer.fd is not None:
        return {**layer.protocol, "filename": os.readlink(f"/proc/self/fd/{layer.fd}")}
    return dict(layer.protocol)


def run(*words: str) -> str:
    """Run a tool that must succeed, and return what it prints."""
    finished = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr + finished.stdout
    return finished.stdout


def check(layer: Layer) -> None:
    """Assert that qemu-img finds no error and no leak."""
    if layer.format == "qcow2":
        run("qemu-img", "check", graph((layer,), read_only=True))
