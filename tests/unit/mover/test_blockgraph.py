"""The storage daemon: explicit graphs, jobs, and every way in which it can fail."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.host import Commands, Host
from diskyard.mover.interface import Chain
from diskyard.mover.opening import opened_files
from diskyard.mover.qemu.blockgraph import StorageDaemon, layer_sizes_bytes
from diskyard.mover.qemu.graphs import blockdev_graph, guest_graph, guest_nodes
from diskyard.mover.qemu.nbdclient import NbdClient
from tests.live_qemu import LiveQemu
from tests.unit.mover.bench import MIB, Bench, RecordingMonitor, run


def deep_chain(bench: Bench, depth: int) -> Chain:
    chain: Chain = ()
    for index in range(depth):
        chain = (bench.layer(f"layer{index}", "qcow2", MIB, chain), *chain)
    return chain


def test_reads_through_a_deep_chain(bench: Bench) -> None:
    chain = deep_chain(bench, 60)
    bench.fill(chain[-1:], [(0, MIB, 9)])
    with opened_files(bench.host, chain) as files, StorageDaemon(bench.host, (files,)) as daemon:
        uri = daemon.export_nbd(daemon.open_chain(files), writable=False)
        with NbdClient(bench.host, uri) as client:
            assert client.read(0, MIB) == b"\x09" * MIB
            assert client.size_bytes == MIB


def test_the_folder_of_the_socket_is_private_and_goes(bench: Bench) -> None:
    layer = bench.layer("root", "raw", MIB)
    with opened_files(bench.host, (layer,)) as files, StorageDaemon(bench.host, (files,)) as daemon:
        daemon.export_nbd(daemon.open_chain(files), writable=False)
        folder = os.path.dirname(daemon.socket_path)
        assert os.stat(folder).st_mode & 0o077 == 0
    assert not os.path.exists(folder)


@pytest.mark.parametrize("direct", [True, False])
def test_the_nested_graph_serves_every_tool(bench: Bench, direct: bool) -> None:
    chain = deep_chain(bench, 3)
    bench.fill(chain[1:], [(0, 65536, 4)])
    name = "json:" + json.dumps(blockdev_graph(bench.host, chain, read_only=True, direct=direct))
    run("qemu-io", "-r", "-c", "read -P 4 0 65536", name)
    run("qemu-img", "map", name)
    run("qemu-img", "convert", "-O", "raw", name, str(bench.folder / "out"))
    assert (bench.folder / "out").read_bytes() == b"\4" * 65536 + bytes(MIB - 65536)


def test_headers_are_never_followed(bench: Bench) -> None:
    layer = bench.layer("root", "raw", MIB)
    bench.fill((layer,), [(0, MIB, 7)])
    path = bench.folder / "top"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(layer.path), str(path))
    top = replace(layer, name="top", format="qcow2", path=str(path))
    top = replace(top, protocol={"driver": "file", "filename": str(path)})
    with (
        opened_files(bench.host, (top,)) as files,
        StorageDaemon(bench.host, (files,)) as daemon,
        NbdClient(bench.host, daemon.export_nbd(daemon.open_chain(files), writable=False)) as client,
    ):
        assert client.read(0, MIB) == bytes(MIB)


def test_raw_above_a_backing_is_refused(bench: Bench) -> None:
    chain = (bench.layer("top", "raw", MIB), bench.layer("root", "raw", MIB))
    with pytest.raises(errors.InternalError):
        blockdev_graph(bench.host, chain, read_only=True)
    with StorageDaemon(bench.host) as daemon, pytest.raises(errors.InternalError):
        daemon.open_chain(chain)


def test_a_missing_file_is_named(bench: Bench) -> None:
    layer = bench.layer("gone", "raw", MIB)
    os.unlink(str(layer.path))
    with pytest.raises(errors.StorageError, match=r"No such file.*volume gone"):
        layer_sizes_bytes(bench.host, (layer,))


def test_a_full_storage_is_no_space(bench: Bench) -> None:
    source, target = bench.layer("source", "raw", MIB), bench.layer("target", "raw", MIB)
    bench.fill((source,), [(0, MIB, 3)])
    full = {
        "driver": "blkdebug",
        "node-name": "full",
        "image": dict(target.protocol),
        "inject-error": [{"event": "pwritev", "errno": errno.ENOSPC}],
    }
    with opened_files(bench.host, (source,)) as files, StorageDaemon(bench.host, (files,)) as daemon:
        node = daemon.open_chain(files)
        daemon.command("blockdev-add", full, doing="opening")
        arguments = {"device": node, "target": "full", "sync": "full"}
        with pytest.raises(errors.NoSpace):
            daemon.run_job("blockdev-mirror", arguments, RecordingMonitor(), doing="copying")


class Impostor(Commands):
    """Starts a Python program in the daemon's place."""

    def __init__(self, program: str) -> None:
        self._program = program
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self, words: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
        fd = next(word.rpartition("fd=")[2] for word in words if "fd=" in word)
        child = super().start([sys.executable, "-c", self._program, fd], **options)  # type: ignore[arg-type]
        self.children.append(child)
        return child


GREETING = (
    '{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}'
)
NEGOTIATE = f"""
import socket, sys, time
qmp = socket.socket(fileno=int(sys.argv[1]))
qmp.sendall(b'{GREETING}\\n')
qmp.recv(4096)
qmp.sendall(b'{{"return": {{}}}}\\n')
qmp.recv(4096)
"""


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit('cannot start')",
        "import time; time.sleep(60)",
        "import os, sys, time; os.write(int(sys.argv[1]), b'garbage\\n' * 9999); time.sleep(60)",
        "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); import time; time.sleep(60)",
        NEGOTIATE + "sys.exit('out of luck')",
        NEGOTIATE + "time.sleep(60)",
        NEGOTIATE + "qmp.sendall(b'][ garbage\\n'); time.sleep(60)",
        NEGOTIATE + 'qmp.sendall(b\'{"return": 1, "id": "other"}\\n\'); time.sleep(60)',
    ],
)
def test_a_daemon_that_fails_is_an_error_and_gone(bench: Bench, program: str) -> None:
    commands = Impostor(program)
    host = Host(bench.host.identity, bench.host.files, commands, bench.host.clock)
    layer = bench.layer("root", "raw", MIB)
    begin_s = host.clock.monotonic_s()
    with (
        opened_files(host, (layer,)) as files,
        pytest.raises(errors.StorageError),
        StorageDaemon(host, (files,), timeout_s=0.5) as daemon,
    ):
        daemon.open_chain(files)
    assert host.clock.monotonic_s() - begin_s < 20
    assert commands.children[0].returncode is not None


def test_the_last_words_are_in_the_error(bench: Bench) -> None:
    host = replace(bench.host, commands=Impostor(NEGOTIATE + "sys.exit('out of luck')"))
    with (
        opened_files(host, (bench.layer("root", "raw", MIB),)) as files,
        pytest.raises(errors.StorageError, match="out of luck"),
        StorageDaemon(host, (files,)) as daemon,
    ):
        daemon.open_chain(files)


def test_leases_are_inherited(bench: Bench) -> None:
    lease = os.open(bench.folder / "lease", os.O_RDWR | os.O_CREAT)
    assert bench.host.files.try_lock_byte(lease, 0)
    other = os.open(bench.folder / "lease", os.O_RDWR)
    with StorageDaemon(bench.host, inherit_fds=(lease,)):
        os.close(lease)
        assert not bench.host.files.try_lock_byte(other, 0)
    assert bench.host.files.try_lock_byte(other, 0)
    os.close(other)


def test_no_process_and_no_descriptor_is_left(bench: Bench) -> None:
    layer = bench.layer("root", "raw", MIB)
    layer_sizes_bytes(bench.host, (layer,))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        layer_sizes_bytes(bench.host, (layer,))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_two_disks_of_one_snapshot_are_in_one_guest(bench: Bench) -> None:
    """No two of its nodes have one name, and what is below can be merged while both are open."""
    base = bench.layer("base", "qcow2", MIB)
    middle = bench.layer("middle", "qcow2", MIB, (base,))
    bench.fill((middle, base), [(0, 65536, 4)])
    first = (bench.layer("one", "qcow2", MIB, (middle, base)), middle, base)
    second = (bench.layer("two", "qcow2", MIB, (middle, base)), middle, base)
    with StorageDaemon(bench.host) as daemon:
        for chain, read_only in ((first, False), (second, True)):
            graph = guest_graph(bench.host, chain, read_only=read_only, attachment_id=chain[0].name)
            daemon.command("blockdev-add", graph, doing="opening a graph")
        one = guest_nodes("one", "one")[0]
        daemon.command("blockdev-del", {"node-name": guest_nodes("two", "two")[0]}, doing="closing one")
        job = {
            "device": one,
            "top-node": guest_nodes("one", "middle")[0],
            "base-node": guest_nodes("one", "base")[0],
            "backing-file": "diskyard:base",
        }
        daemon.run_job("block-commit", job, RecordingMonitor(), doing="merging under a guest")
    run("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 4 0 65536", str(base.path))


def test_a_running_guest_leaves_what_is_below_to_other_readers(bench: Bench) -> None:
    base = bench.layer("base", "qcow2", MIB)
    top = bench.layer("top", "qcow2", MIB, (base,))
    graph = guest_graph(bench.host, (top, base), read_only=False, attachment_id="a")
    with LiveQemu("json:" + json.dumps(graph)):
        run("qemu-io", "-r", "-f", "qcow2", "-c", "read 0 512", str(base.path))
