"""The movers' input and output: chains in, bytes moved, checkpoints out.

Terms: a *layer* is one volume as QEMU's block layer opens it; a *chain* is layers from
the top (what a guest writes) to the root; the *view* through a chain is what a guest
reads from its top layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from diskyard import errors
from diskyard.host.container import Container

VolumeFormat = Literal["raw", "qcow2"]
ImportFormat = Literal["raw", "qcow2", "vmdk", "vdi", "vhdx"]
"""What a file that is imported or exported may be; a volume is never one of the last three."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One volume of a chain.

    :param name: the volume's id, unique in a chain and the stem of its node names.
    :param protocol: the QEMU blockdev of the storage below the format, for instance
        ``{"driver": "file", "filename": "/…"}``; without node names.
    :param path: the file, where the volume is one; for guests and for people.
    :param size_bytes: the virtual size that the record gives it.
    :param bound_bytes: where a raw layer ends for readers, if its file is longer than its record.
    :param bounds_writers: it ends there for a guest that writes it too: it is longer only because the storage
        rounds lengths up.
    :param gains_zeros: what its container gains reads zeros, and ends exactly where it is told to.
    :param shared: it is only read, and a guest may begin to write to it meanwhile: QEMU takes no lock
        that would stop the guest. The reader must find out afterwards whether a guest did.
    :param container: the open container for a piece of work (:mod:`diskyard.mover.opening`). This is
        what is read, written and handed to programs, whatever has its name by now.
    """

    name: str
    format: VolumeFormat | ImportFormat
    protocol: Mapping[str, object]
    path: str | None
    size_bytes: int
    bound_bytes: int | None = None
    bounds_writers: bool = False
    gains_zeros: bool = True
    shared: bool = False
    container: Container | None = None

    def end_bytes(self, *, writable: bool) -> int | None:
        """Where it ends for who opens it so, if what holds it goes on; None: where that ends."""
        return self.bound_bytes if self.bounds_writers or not writable else None

    @property
    def fd(self) -> int | None:
        """A descriptor of the container, for reading; None if it has none, or is not open."""
        return None if self.container is None else self.container.fd

    @property
    def open_container(self) -> Container:
        """The open container.

        :raises diskyard.errors.InternalError: it is not open.
        """
        if self.container is None:
            raise errors.InternalError(f"What holds volume {self.name} is used and was not opened.")
        return self.container


Chain = tuple[Layer, ...]
"""Layers, top first; never empty."""


class Monitor(Protocol):
    """How a mover reports what it has done, and learns what it may do."""

    @property
    def rate_limit_bytes_per_s(self) -> int:
        """The limit in bytes per second; 0 for no limit."""

    @property
    def inherit_fds(self) -> Sequence[int]:
        """Descriptors of leases, for children that move data to inherit."""

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        """Report progress of the current stage, often (every 100 ms or 4 MiB is fine).

        :raises Stopped: the work should stop here; the mover cleans up and lets it pass.
        """

    def checkpoint(self, durable_bytes: int) -> None:
        """Report that everything below this offset of the target is durable."""


class Stopped(Exception):
    """The work was told to stop. What is done stays, and the work can be resumed."""
