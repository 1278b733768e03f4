"""What a running guest's disks are, and what can be done to them, whoever runs the guest."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from diskyard.live.process import Process
from diskyard.mover.interface import Layer


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a running guest.

    :param attachment_id: with a volume's id it gives the names of the volume's nodes.
    :param volume_ids: all volumes that the guest may have open for this disk, in no order.
    """

    attachment_id: str
    volume_ids: Collection[str]


@dataclass(frozen=True, slots=True)
class Move:
    """The switch of a disk to an overlay.

    :param top_id: the volume that the guest writes to so far.
    :param overlay: a qcow2 volume that the guest's program does not have open as a disk; durable, and of
        exactly the size that the guest sees.
    """

    attachment_id: str
    top_id: str
    overlay: Layer


@dataclass(frozen=True, slots=True)
class Seen:
    """A disk as the running program reads it now.

    :param chain: the volumes that it reads, top first; empty if no device and no export of the program uses
        any volume of the disk.
    :param foreign: the names of nodes above, between or below these, or beside them over the same volumes,
        that are not the disk's: somebody else has changed its chain. Filters do not count, such as limits of
        speed or what jobs insert.
    :param job: a block job that uses a node of the disk or of its chain, in words; None if there is none.
    :param is_running: whether the guest runs. It does not while it is stopped, nor before its start.
    :param idle: volumes whose nodes nothing uses, as an interrupted switch leaves them.
    """

    chain: tuple[str, ...]
    foreign: tuple[str, ...]
    job: str | None
    is_running: bool
    idle: tuple[str, ...] = ()


class LiveGraph(Protocol):
    """The disks of one running guest. Used by one thread, and by nobody else meanwhile.

    Every method raises :class:`~diskyard.errors.StorageError` if the program refuses, or does not answer.
    """

    @property
    def process(self) -> Process:
        """The process that runs the guest. Nothing that was seen applies to another."""

    def look(self, disk: Disk) -> Seen:
        """See how a disk is read now. Nothing changes, except that ended jobs of Diskyard's are dismissed."""

    def switch(self, moves: Sequence[Move]) -> None:
        """Switch all disks at one moment, except those whose top is the overlay already.

        On return the guest writes to the overlays, and what it wrote before is durable in the volumes below.
        After an error that is no :class:`~diskyard.errors.UnknownOutcome` no disk has been switched.

        :raises diskyard.errors.UnknownOutcome: the disks may have been switched or may still be. Nothing may
            be undone until :meth:`look` tells: QEMU does one command of a monitor at a time, and drops those
            of a client that has gone, so that it then answers how the switch ended.
        :raises diskyard.errors.LeaseHeld: a block job uses one of the disks.
        :raises diskyard.errors.ImageInUse: the top of a disk is not the volume that the move names.
        :raises diskyard.errors.NoSpace: the storage is full.
        """

    def forget(self, attachment_id: str, volume_id: str) -> None:
        """Close a volume that :meth:`look` calls idle. Nothing happens if it is not open.

        :raises diskyard.errors.StorageError: something uses the volume.
        """

    def stop(self) -> None:
        """Let the guest stand still.

        :raises diskyard.errors.Unsupported: the program runs no guest.
        """

    def go_on(self) -> None:
        """Let the guest go on.

        :raises diskyard.errors.Unsupported: the program runs no guest.
        """
