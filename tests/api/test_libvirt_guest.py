"""A guest of an ordinary libvirtd runs on a disk of Diskyard, by the commands that README shows."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.libvirt_host import LibvirtHost

_README = Path(__file__).resolve().parents[2] / "README.md"
_OPERATING = _README.with_name("docs") / "operating.md"
_SECTOR_BYTES = 512
#: A boot sector that writes itself into the sector after it, and halts: xor ax,ax; mov es,ax; mov bx,7c00h;
#: mov ax,0301h; mov cx,2; mov dh,0; int 13h; hlt; jmp to hlt. The BIOS leaves the disk's number in DL.
_CODE = bytes.fromhex("31c08ec0bb007cb80103b90200b600cd13f4ebfd")
_BOOT_SECTOR = _CODE.ljust(_SECTOR_BYTES - 2, b"\0") + b"\x55\xaa"
_DISK_BYTES = 1 << 20
_GUEST = """<domain type='qemu'><name>web</name><memory unit='MiB'>64</memory>
<os><type>hvm</type></os><on_reboot>destroy</on_reboot><devices/></domain>"""
_POLL_S = 0.05
_AT_MOST_S = 240.0  # only a failure takes so long


@pytest.fixture
def libvirt() -> Iterator[LibvirtHost]:
    with LibvirtHost() as host:
        yield host


def _commands(page: Path, words: str) -> str:
    """The example of a page that has these words."""
    (found,) = [text for text in re.findall(r"(?ms)^```\n(.*?)^```$", page.read_text()) if words in text]
    return str(found)


def test_a_guest_boots_from_a_disk(libvirt: LibvirtHost) -> None:
    work = libvirt.root / "run/work"
    (work / "debian.raw").write_bytes(_BOOT_SECTOR + bytes(_DISK_BYTES - _SECTOR_BYTES))
    (work / "web.xml").write_text(_GUEST)
    libvirt.run(_commands(_README, "repo create localfs-1.0 path=/srv/images\n"))
    # A disk with a Snapshot below it: libvirt has to open both files.
    libvirt.run(
        "qemu-img convert -O qcow2 debian.raw debian.qcow2\n"
        "diskyard image import fast debian.qcow2 --format qcow2 --name debian\n"
        "diskyard snapshot create fast/debian --name installed\n"
        "virsh define web.xml"
    )
    # A repository of before, whose folders nobody else passes, and how docs/operating.md mends it.
    libvirt.run("chmod 750 /srv/images /srv/images/volumes")
    refused = libvirt.run(_commands(_README, "virsh start"), fails=True)
    assert "Permission denied" in refused
    libvirt.run("virsh detach-disk web vda --config")
    libvirt.run(_commands(_OPERATING, "chmod 711 /srv/images"))
    libvirt.run(_commands(_README, "virsh start"))
    _wait_for_the_guests_write(libvirt.root / "srv/images/volumes")
    assert "libvirt-qemu" in libvirt.run('ps -o user:20= -p "$(cat /run/libvirt/qemu/web.pid)"')
    assert "needs no fix" in libvirt.run("diskyard repo check fast")
    assert "a running QEMU has" in libvirt.run("diskyard image teardown fast/debian", fails=True)
    libvirt.run("virsh destroy web")
    libvirt.run(_commands(_README, "image teardown"))
    assert "needs no fix" in libvirt.run("diskyard repo check fast --deep")
    libvirt.run("diskyard image export fast/debian after.raw --format raw")
    after = (work / "after.raw").read_bytes()
    assert after == (2 * _BOOT_SECTOR).ljust(_DISK_BYTES, b"\0")


def _wait_for_the_guests_write(volumes: Path) -> None:
    deadline_s = time.monotonic() + _AT_MOST_S
    while time.monotonic() < deadline_s:
        if any(2 * _BOOT_SECTOR in path.read_bytes() for path in volumes.iterdir()):
            return
        time.sleep(_POLL_S)
    raise AssertionError("the guest never wrote to its disk")
