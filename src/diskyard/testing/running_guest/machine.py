"""What an emulated guest boots: a Debian kernel, and a file system in memory with one program of ours."""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_PROGRAMS = {"gcc": "gcc and libc6-dev", "cpio": "cpio", "qemu-system-x86_64": "qemu-system-x86"}
_MODULES = ("virtio_pci", "virtio_blk")
_DEPENDENCIES = re.compile(rb"\0depends=([^\0]*)\0")
_WRITER = Path(__file__).with_name("writer.c")
_ELF = b"\x7fELF"
#: How a kernel may be compressed: what its data begin with, and the program that knows it.
_COMPRESSIONS = {
    b"\x02!L\x18": "lz4",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    b"\x1f\x8b\x08": "gzip",
}


class CannotBoot(Exception):
    """There is no kernel here, or not what it takes to build the rest; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What QEMU is told to boot, from :func:`machine`."""

    kernel: Path
    initrd: Path


def machine(cache: Path, roots: Sequence[Path]) -> Machine:
    """Build what is not in the cache yet: once, whichever process comes first.

    :param cache: a folder, which is made if need be. It has what was built last, and nothing older.
    :param roots: where a Debian kernel may be, the best first: each has ``boot`` and ``lib/modules`` in it.
    :raises CannotBoot: see there.
    """
    lacking = [package for program, package in _PROGRAMS.items() if shutil.which(program) is None]
    if lacking:
        raise CannotBoot(f"not installed: {', '.join(lacking)} (scripts/setup --dev installs them)")
    image, modules = _find_kernel(roots)
    parts = [image, *modules, _WRITER, Path(__file__)]
    told = [(str(part), part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
    folder = cache / hashlib.blake2b(repr(told).encode(), digest_size=8).hexdigest()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            for old in cache.iterdir():  # from another kernel, or by a process that was killed
                if old.is_dir():
                    shutil.rmtree(old)
            building = cache / "building"
            building.mkdir()
            _build_kernel(image, building / "kernel")
            _build_initrd(modules, building)
            building.rename(folder)
    return Machine(folder / "kernel", folder / "initrd")


# -- finding ----------------------------------------------------------------------------


def _find_kernel(roots: Sequence[Path]) -> tuple[Path, list[Path]]:
    """A kernel's image, and the modules that it needs, in the order in which they are to be loaded."""
    reasons = []
    for root in roots:
        for image in sorted(root.glob("boot/vmlinuz-*"), reverse=True):
            try:
                _require_x86_64(image)
                return image, _modules(root, image.name.removeprefix("vmlinuz-"))
            except (CannotBoot, OSError) as error:
                reasons.append(f"{image}: {error}")
    raise CannotBoot("; ".join(reasons) or f"no kernel is in {', '.join(map(str, roots))}")


def _require_x86_64(image: Path) -> None:
    """The boot protocol's magic number, and its flag for 64 bits (Documentation/arch/x86/boot.rst)."""
    with image.open("rb") as file:
        head = file.read(0x238)
    if head[0x202:0x206] != b"HdrS" or not head[0x236] & 1:
        raise CannotBoot("it is not for x86-64")


def _modules(root: Path, version: str) -> list[Path]:
    for folder in (root / "lib/modules" / version, root / "usr/lib/modules" / version):
        if folder.is_dir():
            break
    else:
        raise CannotBoot("it has no modules")
    files = {path.name.partition(".")[0].replace("-", "_"): path for path in folder.rglob("*.ko*")}
    listed = (folder / "modules.builtin").read_text().split()
    built_in = {Path(name).stem.replace("-", "_") for name in listed}
    ordered: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in built_in or name in ordered:
            return
        if name not in files:
            raise CannotBoot(f"it has no module {name}")
        found = _DEPENDENCIES.search(_module(files[name]))
        for needed in filter(None, (found[1] if found else b"").decode().split(",")):
            add(needed.replace("-", "_"))
        ordered[name] = files[name]

    for name in _MODULES:
        add(name)
    return list(ordered.values())


def _module(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


# -- building ---------------------------------------------------------------------------


def _build_kernel(image: Path, to: Path) -> None:
    """The kernel as it is without compression, which boots in half the time; else as it is."""
    data = image.read_bytes()
    to.write_bytes(next(_decompressed(data), data))


def _decompressed(data: bytes) -> Iterator[bytes]:
    for magic, program in _COMPRESSIONS.items():
        if shutil.which(program) is None:
            continue
        for found in re.finditer(re.escape(magic), data):
            # What follows the kernel in its file is not for the program, which fails because of it.
            done = subprocess.run(
                [program, "-dc"], input=data[found.start() :], capture_output=True, check=False
            )
            if done.stdout.startswith(_ELF):
                yield done.stdout


def _build_initrd(modules: Sequence[Path], folder: Path) -> None:
    root = folder / "root"
    for name in ("dev", "modules"):
        (root / name).mkdir(parents=True)
    for index, path in enumerate(modules):
        (root / "modules" / f"{index:02}-{path.name.partition('.')[0]}").write_bytes(_module(path))
    _run(["gcc", "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-o", str(root / "init"), str(_WRITER)])
    names = [str(path.relative_to(root)) for path in sorted(root.rglob("*"))]
    words = ["cpio", "--quiet", "--create", "--format=newc", "--directory", str(root)]
    (folder / "initrd").write_bytes(_run(words, "\n".join(names).encode()))
    shutil.rmtree(root)


def _run(words: Sequence[str], given: bytes = b"") -> bytes:
    done = subprocess.run(words, input=given, capture_output=True, check=False)
    if done.returncode:
        raise CannotBoot(f"{words[0]} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
