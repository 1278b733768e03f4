"""Real programs with disks open: a QEMU without a guest in it, and a storage daemon that serves over NBD."""

from __future__ import annotations

import json
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from diskyard.host import Host
from diskyard.live.monitor import Monitor, NobodyAnswers
from diskyard.mover.interface import Chain
from diskyard.mover.qemu.graphs import guest_graph, guest_nodes
from diskyard.mover.qemu.nbdclient import NbdClient

PATIENCE_S = 120.0  # on however slow a machine
Graph = dict[str, object]


def monitor_at(address: str, *, host: Host | None = None, timeout_s: float = PATIENCE_S) -> Monitor:
    return Monitor(host or Host.real(), address, greeting_timeout_s=PATIENCE_S, timeout_s=timeout_s)


def graph_of(chain: Chain, attachment_id: str) -> Graph:
    """What a guest is started with."""
    return guest_graph(Host.real(), chain, read_only=False, attachment_id=attachment_id)


class Running(ABC):
    """A program that runs until the context is left.

    :ivar address: of its monitor.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.address = str(folder / "monitor")
        self._log = folder / "program.log"
        self._disks: dict[str, str] = {}

    def __enter__(self) -> Self:
        words = self.words()
        with self._log.open("ab") as log:
            self.child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                with monitor_at(self.address):
                    return self
            except NobodyAnswers:
                assert self.child.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline_s, f"{words[0]} does not begin"
            time.sleep(0.01)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()

    def end(self) -> None:
        """End it as a guest that is shut down does: what was written is flushed."""
        self.child.terminate()
        self.child.wait()

    def open(self, graph: Graph, attachment_id: str) -> None:
        """Open a graph, and let a device or an export have its root."""
        with monitor_at(self.address) as monitor:
            monitor.command("blockdev-add", graph, doing="opening a graph")
            self.use(monitor, str(graph["node-name"]), attachment_id)

    @abstractmethod
    def words(self) -> list[str]:
        """The command line."""

    @abstractmethod
    def use(self, monitor: Monitor, node: str, name: str) -> None:
        """Let a device or an export have a node."""

    @abstractmethod
    def write(self, monitor: Monitor, name: str, offset_bytes: int, byte: int) -> None:
        """Write 64 KiB of a byte, through the device or export."""


class Qemu(Running):
    """qemu-system, stopped before its first instruction.

    :cvar backend: what of a device has the disk open.
    """

    backend: ClassVar[str] = "disk-{}"

    def words(self) -> list[str]:
        return [
            *("qemu-system-x86_64", "-S", "-accel", "tcg", "-M", "q35", "-m", "32", "-nodefaults"),
            *("-display", "none", "-object", "throttle-group,id=limits,x-iops-total=1000000"),
            *("-device", "virtio-scsi-pci,id=bus", "-qmp", f"unix:{self.address},server=on,wait=off"),
        ]

    def use(self, monitor: Monitor, node: str, name: str) -> None:
        device = {"driver": "scsi-hd", "bus": "bus.0", "drive": node, "id": f"disk-{name}"}
        monitor.command("device_add", device, doing="adding a device")

    def write(self, monitor: Monitor, name: str, offset_bytes: int, byte: int) -> None:
        line = f'qemu-io -d {self.backend.format(name)} "write -P {byte} {offset_bytes} 64k"'
        said = monitor.command("human-monitor-command", {"command-line": line}, doing="writing")
        assert said == "", said


class VirtioQemu(Qemu):
    """The same with another kind of device, which is there from the start, as a guest's are."""

    backend = "disk-{}/virtio-backend"

    def __init__(self, folder: Path, graph: Graph, name: str, *, filters: Sequence[Graph] = ()) -> None:
        super().__init__(folder)
        self._graphs = (graph, *filters)
        self._device = f"virtio-blk-pci,drive={self._graphs[-1]['node-name']},id=disk-{name}"

    def words(self) -> list[str]:
        graphs = [word for graph in self._graphs for word in ("-blockdev", json.dumps(graph))]
        return [*super().words(), *graphs, "-device", self._device]


class Daemon(Running):
    """A storage daemon; it serves over NBD, writable."""

    def words(self) -> list[str]:
        socket = f"socket,id=monitor,path={self.address},server=on,wait=off"
        return ["qemu-storage-daemon", "--chardev", socket, "--monitor", "chardev=monitor"]

    def use(self, monitor: Monitor, node: str, name: str) -> None:
        if not self._disks:
            address = {"type": "unix", "data": {"path": str(self._folder / "nbd")}}
            monitor.command("nbd-server-start", {"addr": address}, doing="serving")
        export = {"type": "nbd", "id": name, "node-name": node, "name": name, "writable": True}
        monitor.command("block-export-add", export, doing="exporting")
        self._disks[name] = node

    def write(self, monitor: Monitor, name: str, offset_bytes: int, byte: int) -> None:
        with NbdClient(monitor.host, f"nbd+unix:///{name}?socket={self._folder / 'nbd'}") as client:
            client.write(bytes([byte]) * 65536, offset_bytes)


def node_of(attachment_id: str, volume_id: str) -> str:
    return guest_nodes(attachment_id, volume_id)[0]


def has_node(monitor: Monitor, attachment_id: str, volume_id: str) -> bool:
    """Whether either node of a volume is there at all."""
    answer = monitor.command("x-debug-query-block-graph", doing="looking")
    assert isinstance(answer, dict)
    names = {node["name"] for node in answer["nodes"]}
    return not names.isdisjoint(guest_nodes(attachment_id, volume_id))
