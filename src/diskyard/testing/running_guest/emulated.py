"""A guest that is a machine: emulated, with a Debian kernel and our own program that writes to its disks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from diskyard.testing.running_guest.guest import RunningGuest, option_value
from diskyard.testing.running_guest.machine import Machine

_MEMORY_MIB = 192
_QUICK_BOOT = ("console=ttyS0", "quiet", "panic=-1", "nokaslr", "mitigations=off", "no_timer_check")


class EmulatedGuest(RunningGuest):
    """The slow and real guest; see :class:`RunningGuest`. It has booted when its context is entered.

    Its disks are virtio's, with the ids ``disk0``, ``disk1``, …: those of the graphs, then those that other
    processes serve.

    :param machine: from :func:`diskyard.testing.running_guest.machine.machine`.
    :param vhost_user: for each disk that another process serves as vhost-user-blk, its socket. If the server
        ends, the guest waits for another one on the same socket.
    :param more_words: more of QEMU's command line.
    """

    def __init__(
        self,
        folder: Path,
        graphs: Sequence[Mapping[str, object]],
        machine: Machine,
        *,
        vhost_user: Sequence[Path] = (),
        after: int = 0,
        first_sizes_bytes: Sequence[int] | None = None,
        gap_ms: float = 1.0,
        user: str | None = None,
        more_words: Sequence[str] = (),
    ) -> None:
        first_sizes_bytes = first_sizes_bytes or [0] * (len(graphs) + len(vhost_user))
        super().__init__(
            folder, graphs, after=after, first_sizes_bytes=first_sizes_bytes, gap_ms=gap_ms, user=user
        )
        self._machine, self._vhost_user, self._more_words = machine, vhost_user, list(more_words)

    def _start(self) -> None:
        words = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max"]
        # Memory that whoever serves a disk can be let into.
        words += ["-object", f"memory-backend-memfd,id=memory,size={_MEMORY_MIB}M,share=on"]
        words += ["-M", "q35,memory-backend=memory", "-m", str(_MEMORY_MIB)]
        words += ["-nodefaults", "-display", "none", "-no-reboot"]
        words += ["-kernel", str(self._machine.kernel), "-initrd", str(self._machine.initrd)]
        words += ["-append", " ".join((*_QUICK_BOOT, *self._environment()))]
        words += ["-serial", f"file:{self.folder / 'console-output'}"]
        words += ["-chardev", f"file,id=record,path={option_value(self._record_path)}"]
        words += ["-device", "isa-debugcon,chardev=record,iobase=0xe9"]
        words += ["-qmp", f"unix:{option_value(self.monitor)},server=on,wait=off"]
        for index, graph in enumerate(self._graphs):
            words += ["-blockdev", json.dumps(graph)]
            words += _disk(index, driver="virtio-blk-pci", drive=graph["node-name"])
        for index, path in enumerate(self._vhost_user, len(self._graphs)):
            words += ["-chardev", f"socket,id=server{index},path={option_value(path)},reconnect=1"]
            words += _disk(index, driver="vhost-user-blk-pci", chardev=f"server{index}")
        self._start_program(words + self._more_words)

    def _environment(self) -> list[str]:
        """What the kernel does not know on its command line is the environment of its first program."""
        sizes = ",".join(map(str, self._first_sizes_bytes))
        return [f"AFTER={self._after}", f"GAP_US={self._gap_ms * 1000:.0f}", f"FIRST_SIZES={sizes}"]

    def _stop_writing(self) -> None:
        """It writes until its machine ends, with a flush after each write: nothing is left to be flushed."""

    def _after_the_end(self) -> None:
        """It has ended with its machine."""


def _disk(index: int, **device: object) -> list[str]:
    """All in JSON: devices that are not are added before those that are, and the order is the guest's."""
    return ["-device", json.dumps({"id": f"disk{index}", **device})]
