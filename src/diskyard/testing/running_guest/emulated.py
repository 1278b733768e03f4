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

    Its disks are virtio's, with the ids ``disk0``, ``disk1``, …, in the order of the graphs.

    :param machine: from :func:`diskyard.testing.running_guest.machine.machine`.
    :param more_words: more of QEMU's command line.
    """

    def __init__(
        self,
        folder: Path,
        graphs: Sequence[Mapping[str, object]],
        machine: Machine,
        *,
        after: int = 0,
        first_sizes_bytes: Sequence[int] | None = None,
        gap_ms: float = 1.0,
        user: str | None = None,
        more_words: Sequence[str] = (),
    ) -> None:
        super().__init__(
            folder, graphs, after=after, first_sizes_bytes=first_sizes_bytes, gap_ms=gap_ms, user=user
        )
        self._machine, self._more_words = machine, list(more_words)

    def _start(self) -> None:
        words = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-M", "q35"]
        words += ["-m", str(_MEMORY_MIB), "-nodefaults", "-display", "none", "-no-reboot"]
        words += ["-kernel", str(self._machine.kernel), "-initrd", str(self._machine.initrd)]
        words += ["-append", " ".join((*_QUICK_BOOT, *self._environment()))]
        words += ["-serial", f"file:{self.folder / 'console-output'}"]
        words += ["-chardev", f"file,id=record,path={option_value(self._record_path)}"]
        words += ["-device", "isa-debugcon,chardev=record,iobase=0xe9"]
        words += ["-qmp", f"unix:{option_value(self.monitor)},server=on,wait=off"]
        for index, graph in enumerate(self._graphs):
            disk = {"driver": "virtio-blk-pci", "id": f"disk{index}", "drive": graph["node-name"]}
            words += ["-blockdev", json.dumps(graph), "-device", json.dumps(disk)]
        self._start_program(words + self._more_words)

    def _environment(self) -> list[str]:
        """What the kernel does not know on its command line is the environment of its first program."""
        sizes = ",".join(map(str, self._first_sizes_bytes))
        return [f"AFTER={self._after}", f"GAP_US={self._gap_ms * 1000:.0f}", f"FIRST_SIZES={sizes}"]

    def _stop_writing(self) -> None:
        """It writes until its machine ends, with a flush after each write: nothing is left to be flushed."""

    def _after_the_end(self) -> None:
        """It has ended with its machine."""
