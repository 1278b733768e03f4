"""A guest's writes, done in memory at the same time; and an image's bytes as QEMU's tools read them."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Mapping, Sequence

SECTOR_BYTES = 512
_CLUSTER_SECTORS = 128
MOST_BYTES = 2 << 20
#: Marks a program of a guest or a judge, so that it is not taken for one of Diskyard's.
OUTSIDER = "DISKYARD_OUTSIDER"


class ProgramFailed(AssertionError):
    """A program of QEMU could not use the result of prepareImage."""


def any_size(rng: random.Random) -> int:
    """A size for an image; mostly not a multiple of a cluster."""
    sectors = (1, 7, 127, 128, 129, rng.randrange(1, 1500), rng.randrange(1, 1500), 1024)
    return SECTOR_BYTES * rng.choice(sectors)


def resized(data: bytes, size_bytes: int) -> bytes:
    """Cut off, or with zeros added at the end."""
    return data[:size_bytes].ljust(size_bytes, b"\0")


def scribble(data: bytes, rng: random.Random) -> tuple[list[str], list[bytes]]:
    """Some writes of a guest: commands of qemu-io, and what the disk holds after each of them.

    They may overlap. If a guest dies between two of them, a sector may hold what it has neither before all
    of them nor after all of them.
    """
    after, commands, states = bytearray(data), [], []
    sectors = len(data) // SECTOR_BYTES
    for _ in range(rng.randrange(1, 5)):
        first = rng.randrange(sectors)
        count = min(sectors - first, rng.choice([1, 8, 128, 129, rng.randrange(1, 600)]))
        if rng.random() < 0.3:  # whole clusters
            first -= first % _CLUSTER_SECTORS
            count = min(sectors - first, _CLUSTER_SECTORS * rng.randrange(1, 4))
        start, length = first * SECTOR_BYTES, count * SECTOR_BYTES
        how = rng.choice(["write", "write", "write", "zero", "unmap"])
        pattern = rng.randrange(1, 256) if how == "write" else 0
        words = {"write": f"write -P {pattern}", "zero": "write -z", "unmap": "write -z -u"}[how]
        commands.append(f"{words} {start} {length}")
        after[start : start + length] = bytes([pattern]) * length
        states.append(bytes(after))
    return [*commands, "flush"], states


def write_as_guest(blockdev: Mapping[str, object], commands: Sequence[str]) -> None:
    """Run commands of qemu-io on a graph.

    :raises ProgramFailed: a command failed; a part of it may have been done.
    """
    words = ["qemu-io"]
    for command in commands:
        words += ["-c", command]
    _run([*words, "json:" + json.dumps(blockdev)])


def read_as_guest(blockdev: Mapping[str, object]) -> bytes:
    """All bytes of a graph.

    :raises ProgramFailed: they cannot be read.
    """
    return convert("json:" + json.dumps(blockdev))


def convert(name: str, *options: str) -> bytes:
    """All bytes of the image that qemu-img opens by a name.

    :raises ProgramFailed: they cannot be read.
    """
    # Memory without a name, so that nothing is left if this process is killed.
    with os.fdopen(os.memfd_create("read"), "rb") as file:
        _run(["qemu-img", "convert", *options, "-O", "raw", name, f"/proc/{os.getpid()}/fd/{file.fileno()}"])
        return file.read()


def _run(words: Sequence[str]) -> None:
    # env(1) sets the mark, so that others see it from the program's first moment.
    ran = subprocess.run(
        ["env", f"{OUTSIDER}=1", *words],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    said = ran.stdout + ran.stderr
    if ran.returncode or "failed" in said:
        raise ProgramFailed(f"{' '.join(words)[:2000]}: status {ran.returncode}: {said[-2000:]}")


def difference(found: bytes, wanted: bytes) -> str:
    """Where bytes differ, in words."""
    if found == wanted:
        return "equal"
    shorter = min(len(found), len(wanted))
    starts = range(0, shorter, SECTOR_BYTES)
    wrong = [at for at in starts if found[at : at + SECTOR_BYTES] != wanted[at : at + SECTOR_BYTES]]
    words = f"{len(found)} bytes for {len(wanted)}, {len(wrong)} sectors differ"
    if not wrong:
        return words
    first = wrong[0]
    shown, due = found[first : first + 8].hex(), wanted[first : first + 8].hex()
    return f"{words}, the first at {first}: {shown} for {due}"


def is_mixture(found: bytes, wanted: Sequence[bytes]) -> bool:
    """Whether each sector is from one of these: a guest may have died between two writes."""
    same = [one for one in wanted if len(one) == len(found)]
    return bool(same) and all(
        any(found[at : at + SECTOR_BYTES] == one[at : at + SECTOR_BYTES] for one in same)
        for at in range(0, len(found), SECTOR_BYTES)
    )
