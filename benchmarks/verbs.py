"""How long createVirtualDisk, createSnapshot and removeImage take to return, durable.

Beside them, in the same run and on the same file system: `virsh vol-create-as` and `vol-delete`,
from start to end and in a virsh that is connected already; `qemu-img create` of an overlay; and the
bare system calls of one transaction (two files written and synced, two links, the folder synced) and
of one volume (a file written and synced, its folder synced). Neither virsh nor qemu-img syncs what it
makes. Each round does one of everything, so that a drift of the machine meets all alike.

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

ENTRY = b"x" * 1500
HEADER = b"x" * (256 << 10)


#: What our figures are to be, as shares of the peer's and of the storage's own.
OF_VIRSH = 1 / 3
OF_SYNCS = 2.0
PEERS = {
    "createVirtualDisk": ("vol-create-as", "vol-create-as, connected"),
    "createSnapshot": ("vol-create-as --backing-vol", "vol-create-as --backing-vol, connected"),
    "removeImage": ("vol-delete", "vol-delete, connected"),
}


def bare_transaction(host: Host, folder: str, number: int) -> None:
    """What putting one entry costs at least: the storage's own share of a commit."""
    paths = [os.path.join(folder, f"{number}.{copy}") for copy in "ab"]
    host.files.publish(paths, ENTRY)


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
    """The peer: volumes of a pool that libvirt knows."""

    def __init__(self, command: Callable[..., object], pool: str, kind: str) -> None:
        self._command, self._pool, self._kind = command, pool, kind

    def works(self, number: int) -> dict[str, Callable[[], object]]:
        """Make a volume and an overlay of it, and remove that."""
        base, overlay = f"{number}{self._kind or 'a'}.qcow2", f"{number}{self._kind or 'a'}-o.qcow2"
        new = ("vol-create-as", self._pool)
        form = ("64M", "--format", "qcow2")
        suffix = f", {self._kind}" if self._kind else ""
        backing = ("--backing-vol", base, "--backing-vol-format", "qcow2")
        return {
            f"vol-create-as{suffix}": lambda: self._command(*new, base, *form),
            f"vol-create-as --backing-vol{suffix}": lambda: self._command(*new, overlay, *form, *backing),
            f"vol-delete{suffix}": lambda: self._command("vol-delete", overlay, "--pool", self._pool),
        }


def virshes(stack: ExitStack, folder: str) -> list[Virsh]:
    """Both ways to use it; none where there is no libvirt."""
    found = stack.enter_context(libvirt())
    if found is None:
        print(MISSING)
        return []
    pool = stack.enter_context(found.pool(Path(folder) / "pool"))
    shell = stack.enter_context(Shell(found))
    return [Virsh(partial(run, *found.storage), pool, ""), Virsh(shell.run, pool, "connected")]


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
        peers = virshes(stack, folder)
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
        for peer in PEERS[verb]:
            if peer in median_ms:
                passes = took_ms <= OF_VIRSH * median_ms[peer]
                rows.append(
                    Row(verb, "ms", took_ms, {f"virsh {peer}": median_ms[peer]}, "<= 1/3 of virsh", passes)
                )
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
