"""How long short commands take from start to end: `diskyard --help`, and `diskyard image list`.

The list is of a repository of 100 images, by a daemon and without one; beside it, in turn,
`virsh list` and `virsh vol-list --details` of as many volumes.

    .venv/bin/python -m benchmarks.command [--rounds 21] [--images 100] [--folder …]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks._libvirt import MISSING, Libvirt, libvirt
from benchmarks._processes import run as run_once
from benchmarks._rows import Row, alternately, medians, print_heading, print_rows
from diskyard.testing.daemon_process import DaemonProcess

MiB = 1 << 20
TARGET_MS = 250
PROGRAM = str(Path(sys.executable).with_name("diskyard"))
LISTS = {"by a daemon": (), "embedded": ("--embedded",)}


def command(*words: str, **environment: str) -> Callable[[], None]:
    """Runs a program, which must succeed."""
    variables = {**os.environ, **environment}

    def run() -> None:
        subprocess.run(words, check=True, capture_output=True, env=variables)

    return run


@contextmanager
def virsh_commands(
    found: Libvirt | None, folder: Path, images: int
) -> Iterator[dict[str, Callable[[], None]]]:
    """The peer's commands, with as many volumes as we have images; none where there is no libvirt."""
    if found is None:
        print(MISSING)
        yield {}
        return
    folder.mkdir()
    for number in range(images):
        run_once("qemu-img", "create", "-q", "-f", "qcow2", str(folder / f"{number}.qcow2"), "1M")
    with found.pool(folder) as pool:
        yield {
            "virsh --help": command("virsh", "--help"),
            "virsh list": command(*found.guests, "list", "--all"),
            "virsh vol-list": command(*found.storage, "vol-list", "--details", pool),
        }


def measure(folder: Path, images: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of each command."""
    with DaemonProcess(folder / "d") as daemon, libvirt() as found:
        asked = {"repoFormat": "localfs-1.0", "connectionParameters": daemon.place("fast")}
        daemon.call("createStorageRepository", **asked)
        daemon.call("connectStorageRepository", repoId="fast", **asked)
        for _ in range(images):
            daemon.call("createVirtualDisk", targetRepoId="fast", size=MiB)
        state = {"DISKYARD_STATE_DIR": str(daemon.state_folder)}
        ours = {"--help": command(PROGRAM, "--help", **state)}
        for name, words in LISTS.items():
            ours[f"image list, {name}"] = command(PROGRAM, "image", "list", "fast", *words, **state)
        with virsh_commands(found, folder / "pool", images) as theirs:
            others = {"python -c pass": command(sys.executable, "-c", "pass")}
            return medians(alternately({**ours, **theirs, **others}, rounds))


def rows_of(median_ms: dict[str, float]) -> list[Row]:
    """The table."""

    def of(*names: str) -> dict[str, float]:
        return {name: median_ms[name] for name in names if name in median_ms}

    rows = [Row("diskyard --help", "ms", median_ms["--help"], of("virsh --help", "python -c pass"))]
    for name in LISTS:
        work = f"image list, {name}"
        took_ms = median_ms[work]
        target = f"<= {TARGET_MS} ms"
        rows.append(
            Row(
                f"diskyard {work}",
                "ms",
                took_ms,
                of("virsh list", "virsh vol-list"),
                target,
                took_ms <= TARGET_MS,
            )
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--folder", help="where to measure; its path must be short")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dy-", dir=given.folder) as folder:
        print_heading(Path(folder))
        median_ms = measure(Path(folder), given.images, given.rounds)
    print_rows(
        f"Start to end, median of {given.rounds} runs in turn; {given.images} images", rows_of(median_ms)
    )


if __name__ == "__main__":
    main()
