"""How long createVirtualDisk, createSnapshot and removeImage take to return, durable.

Beside them, in the same run and on the same file system: `virsh vol-create-as` and `vol-delete` from
start to end; the same with what they did synced, as ours is, since virsh does not; and that in a virsh
which has connected before, as a program with libvirt's library has. Then `qemu-img create` of an
overlay, and the bare system calls of one transaction (two files written and synced, two links, the
folder synced) and of one volume (a file written and synced, its folder synced). Each round does one of
everything, so that a drift of the machine meets all alike.

    .venv/bin/python -m benchmarks.verbs [--rounds 200] [--folder /path/on/the/storage]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks._libvirt import MISSING, Shell, libvirt
from benchmarks._processes import run
from benchmarks._rows import Row, medians, print_heading, print_rows, timed_ms
from diskyard import Diskyard, MiB
from diskyard.host import Host
from diskyard.host.identity import new_uuid
from diskyard.host.publishing import publish

ENTRY = b"x" * 1500
HEADER = b"x" * (256 << 10)


#: What our figures are to be, as shares of the peer's and of the storage's own.
OF_VIRSH = 1 / 3
OF_SYNCS = 2.0
#: The peer's command for each verb; ``WAYS`` says how it is given.
PEERS = {
    "createVirtualDisk": "vol-create-as",
    "createSnapshot": "vol-create-as --backing-vol",
    "removeImage": "vol-delete",
}
AS_IT_IS, SYNCED, CONNECTED = "", ", synced", ", synced, connected before"
WAYS = (AS_IT_IS, SYNCED, CONNECTED)


def bare_transaction(host: Host, folder: str, number: int) -> None:
    """What putting one entry costs at least: the storage's own share of a commit."""
    paths = [os.path.join(folder, f"{number}.{copy}") for copy in "ab"]
    publish(host.files, paths, ENTRY)


def bare_volume(host: Host, folder: str, number: int) -> None:
    """What making one empty overlay costs at least."""
    fd = host.files.create(os.path.join(folder, f"{number}.volume"))
    host.files.write(fd, HEADER)
    host.files.sync(fd)
    os.close(fd)
    host.files.sync_folder(folder)


def qemu_img(folder: str, number: int) -> None:
    """The peer: an overlay made by QEMU's own tool, which does not sync it."""
    base = os.path.join(folder, "base.raw")
    path = os.path.join(folder, f"{number}.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, path], check=True)


class Virsh:
    """The peer: volumes of a pool that libvirt knows.

    :param way: how it is used: started for each command or not, and what it made synced or not.
    """

    def __init__(self, host: Host, command: Callable[..., object], pool: str, folder: str, way: str) -> None:
        self._host, self._command, self._way = host, command, way
        self._pool, self._folder = pool, folder

    def works(self, number: int) -> dict[str, Callable[[], object]]:
        """Make a volume and an overlay of it, and remove that."""
        base = f"{number}-{WAYS.index(self._way)}.qcow2"
        overlay = f"overlay-{base}"
        form = ("64M", "--format", "qcow2")
        backing = ("--backing-vol", base, "--backing-vol-format", "qcow2")
        return {
            f"vol-create-as{self._way}": partial(self._make, base, *form),
            f"vol-create-as --backing-vol{self._way}": partial(self._make, overlay, *form, *backing),
            f"vol-delete{self._way}": partial(self._delete, overlay),
        }

    def _make(self, name: str, *words: str) -> None:
        self._command("vol-create-as", self._pool, name, *words)
        if self._way != AS_IT_IS:
            fd = self._host.files.open_for_writing(os.path.join(self._folder, name))
            self._host.files.sync(fd)
            os.close(fd)
            self._host.files.sync_folder(self._folder)

    def _delete(self, name: str) -> None:
        self._command("vol-delete", name, "--pool", self._pool)
        if self._way != AS_IT_IS:
            self._host.files.sync_folder(self._folder)


def virshes(stack: ExitStack, host: Host, folder: str) -> list[Virsh]:
    """All ways to use it; none where there is no libvirt."""
    found = stack.enter_context(libvirt())
    if found is None:
        print(MISSING)
        return []
    place = os.path.join(folder, "pool")
    pool = stack.enter_context(found.pool(Path(place)))
    shell, program = stack.enter_context(Shell(found)), partial(run, *found.storage)
    commands: dict[str, Callable[..., object]] = {AS_IT_IS: program, SYNCED: program, CONNECTED: shell.run}
    return [Virsh(host, command, pool, place, way) for way, command in commands.items()]


def measure(folder: str, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each kind of work, round by round."""
    host = Host.real()
    with open(os.path.join(folder, "base.raw"), "wb") as base:
        base.truncate(64 * MiB)
    yard = Diskyard(state_folder=os.path.join(folder, "state"))
    place = {"path": os.path.join(folder, "repository")}
    yard.create_storage_repository("localfs-1.0", place)
    yard.connect_storage_repository("r", "localfs-1.0", place)
    times_ms: dict[str, list[float]] = {}

    def note(works: dict[str, Callable[[], object]]) -> None:
        for name, work in works.items():
            times_ms.setdefault(name, []).append(timed_ms(work))

    def verbs() -> dict[str, Callable[[], object]]:
        disk = new_uuid()
        asked, commit_only = {"new_image_id": disk}, {"auto_fix": False}
        return {
            "createVirtualDisk": lambda: yard.create_virtual_disk("r", 64 * MiB, options=asked),
            "createSnapshot": lambda: yard.create_snapshot("r", disk),
            "removeImage": lambda: yard.remove_image("r", disk, options=commit_only),
        }

    with ExitStack() as stack:
        peers = virshes(stack, host, folder)
        for number in range(rounds):
            note(verbs())
            note({"bare transaction": partial(bare_transaction, host, folder, number)})
            note({"bare volume": partial(bare_volume, host, folder, number)})
            note({"qemu-img create": partial(qemu_img, folder, number)})
            for peer in peers:
                note(peer.works(number))
    yard.close()
    return times_ms


def rows_of(median_ms: dict[str, float]) -> list[Row]:
    """The table: each verb beside the storage's own share, and beside each peer."""
    entry, volume = median_ms["bare transaction"], median_ms["bare volume"]
    bare = {
        "createVirtualDisk": 2 * entry + volume,
        "createSnapshot": 2 * entry + volume,
        "removeImage": entry,
    }
    rows = []
    for verb, syncs_ms in bare.items():
        took_ms = median_ms[verb]
        target, passes = f"<= {OF_SYNCS:.0f} x the syncs alone", took_ms <= OF_SYNCS * syncs_ms
        rows.append(Row(verb, "ms", took_ms, {"syncs alone": syncs_ms}, target, passes))
        peer = PEERS[verb]
        peers = {f"{peer}{way}": median_ms[f"{peer}{way}"] for way in WAYS if f"{peer}{way}" in median_ms}
        if peers:
            passes = took_ms <= OF_VIRSH * peers[peer]
            rows.append(Row(verb, "ms", took_ms, peers, f"<= 1/3 of virsh {peer}", passes))
    overlay_ms = median_ms["qemu-img create"]
    rows.append(Row("createSnapshot", "ms", median_ms["createSnapshot"], {"qemu-img create": overlay_ms}))
    return rows


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--folder", default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="diskyard-bench-") as folder:
        print_heading(Path(folder))
        times_ms = measure(folder, arguments.rounds)
    print_rows(f"To return, durable: median of {arguments.rounds} rounds", rows_of(medians(times_ms)))


if __name__ == "__main__":
    main()
