"""What emulated guests boot, built from packages of different kinds."""

from __future__ import annotations

import lzma
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diskyard.testing.running_guest.machine import CannotBoot, machine

VERSION = "6.12.1-cloud-amd64"


@pytest.fixture(autouse=True)
def needed() -> None:
    if not all(map(shutil.which, ("gcc", "cpio", "qemu-system-x86_64"))):
        pytest.skip("gcc, cpio or qemu-system-x86 is not installed (scripts/setup --dev)")


def package(root: Path, *, xz: bool = False, x86_64: bool = True, modules: str = "lib/modules") -> Path:
    """The files of a kernel's package, as far as they are looked at."""
    image = bytearray(1024)
    image[0x202:0x206] = b"HdrS"
    image[0x236] = x86_64
    (root / "boot").mkdir(parents=True)
    (root / "boot" / f"vmlinuz-{VERSION}").write_bytes(image)
    folder = root / modules / VERSION
    (folder / "kernel").mkdir(parents=True)
    (folder / "modules.builtin").write_text("kernel/drivers/virtio/virtio-ring.ko\n")
    needs = {"virtio": "virtio_ring", "virtio_blk": "virtio", "virtio_pci": "virtio-pci-dev,virtio"}
    for name, depends in {**needs, "virtio-pci-dev": "", "unneeded": ""}.items():
        told = b"\x7fELF\0depends=" + depends.encode() + b"\0name=" + name.encode() + b"\0"
        path = folder / "kernel" / f"{name}.ko"
        if xz:
            path.with_suffix(".ko.xz").write_bytes(lzma.compress(told))
        else:
            path.write_bytes(told)
    return root


@pytest.mark.parametrize("xz", [False, True])
@pytest.mark.parametrize("modules", ["lib/modules", "usr/lib/modules"])
def test_modules_are_in_the_order_in_which_they_are_loaded(tmp_path: Path, xz: bool, modules: str) -> None:
    built = machine(
        tmp_path / "cache", [tmp_path / "none", package(tmp_path / "root", xz=xz, modules=modules)]
    )
    words = ["cpio", "--extract", "--quiet", "--make-directories", "--directory", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    subprocess.run(words, input=built.initrd.read_bytes(), check=True)
    files = sorted((tmp_path / "out" / "modules").iterdir())
    assert [path.name for path in files] == [
        "00-virtio-pci-dev",
        "01-virtio",
        "02-virtio_pci",
        "03-virtio_blk",
    ]
    assert all(path.read_bytes().startswith(b"\x7fELF") for path in files)
    assert (tmp_path / "out" / "init").stat().st_mode & 0o111


def test_it_is_built_once(tmp_path: Path) -> None:
    root = package(tmp_path / "root")
    with ThreadPoolExecutor() as threads:
        both = list(threads.map(lambda _: machine(tmp_path / "cache", [root]), range(2)))
    assert both[0] == both[1]
    made = both[0].initrd.stat()
    assert machine(tmp_path / "cache", [root]).initrd.stat() == made


def test_only_what_was_built_last_is_kept(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    old, new = (machine(cache, [package(tmp_path / name)]) for name in ("old", "new"))
    assert set(cache.iterdir()) == {cache / "lock", new.kernel.parent}
    assert set(new.kernel.parent.iterdir()) == {new.kernel, new.initrd}
    assert not old.kernel.exists()


def test_a_kernel_is_decompressed_if_what_knows_it_is_installed(tmp_path: Path) -> None:
    if shutil.which("xz") is None:
        pytest.skip("xz is not installed")
    root = package(tmp_path / "root")
    image = root / "boot" / f"vmlinuz-{VERSION}"
    image.write_bytes(image.read_bytes() + lzma.compress(b"\x7fELF, the kernel") + b"and what follows")
    assert machine(tmp_path / "cache", [root]).kernel.read_bytes() == b"\x7fELF, the kernel"


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(CannotBoot, match="no kernel is in "):
        machine(tmp_path, [tmp_path / "none"])
    with pytest.raises(CannotBoot, match="it is not for x86-64"):
        machine(tmp_path, [package(tmp_path / "arm", x86_64=False)])
    root = package(tmp_path / "root")
    (root / "lib/modules" / VERSION / "kernel" / "virtio_blk.ko").unlink()
    with pytest.raises(CannotBoot, match="it has no module virtio_blk"):
        machine(tmp_path, [root])
    shutil.rmtree(root / "lib")
    with pytest.raises(CannotBoot, match="it has no modules"):
        machine(tmp_path, [root])
