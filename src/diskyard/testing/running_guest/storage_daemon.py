"""A guest without a machine: a storage daemon has the disks open, a process writes to its exports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from diskyard.testing.running_guest import nbd_writer
from diskyard.testing.running_guest.guest import AT_MOST_S, RunningGuest, option_value

_LAST_WRITE_MOST_S = 2.0


class StorageDaemonGuest(RunningGuest):
    """The quick guest; see :class:`RunningGuest`.

    The storage daemon stands for the guest's QEMU: it has the monitor, and its death is the guest's.
    """

    _writer: subprocess.Popen[bytes] | None = None

    def _start(self) -> None:
        server = self.folder / "nbd"
        server.unlink(missing_ok=True)
        words = ["qemu-storage-daemon"]
        words += ["--chardev", f"socket,id=q,path={option_value(self.monitor)},server=on,wait=off"]
        words += ["--monitor", "chardev=q"]
        words += ["--nbd-server", f"addr.type=unix,addr.path={option_value(server)}"]
        for index, graph in enumerate(self._graphs):
            words += ["--blockdev", json.dumps(graph)]
            export = {"type": "nbd", "id": f"export{index}", "name": f"disk{index}", "writable": True}
            words += ["--export", json.dumps({**export, "node-name": graph["node-name"]})]
        self._start_program(words)
        self._writer = self._start_writer(server)

    def _start_writer(self, server: Path) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", nbd_writer.__name__, "--record", str(self._record_path)]
        words += ["--after", str(self._after), "--gap-s", str(self._gap_ms / 1000)]
        for size in self._first_sizes_bytes:
            words += ["--first-size-bytes", str(size)]
        words += [f"nbd+unix:///disk{index}?socket={server}" for index in range(len(self._graphs))]
        return self._popen(words, "writer-output", stdin=subprocess.PIPE)

    def _stop_writing(self) -> None:
        assert self._writer is not None
        assert self._writer.stdin is not None
        try:
            self._writer.communicate(b"end\n", timeout=_LAST_WRITE_MOST_S)
        except subprocess.TimeoutExpired:
            return  # a job holds its write; the storage daemon's end will answer it

    def _after_the_end(self) -> None:
        if self._writer is None:
            return
        try:
            self._writer.communicate(timeout=AT_MOST_S)
        except subprocess.TimeoutExpired:
            self._writer.kill()
            self._writer.communicate()
            raise AssertionError(f"the writer does not end with its disks: {self._last_words()}") from None
