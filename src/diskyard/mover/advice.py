"""Advice for an image file that is refused: each refusal has its own remedy, or none.

The programs in the advice open every file that the image names. Only the owner of the image can know
whether they may.
"""

from __future__ import annotations

from typing import Literal

Foreign = Literal["qcow2", "vmdk", "vdi", "vhdx"]

LIES = "Do not trust this file: no program that makes such files writes this."
NOT_WHOLE = (
    "It was not copied or written to its end, or was damaged since: fetch it again from where it was "
    "made, and compare the lengths."
)
BACKING = (
    "If you know where it comes from: where the files that it names are, 'qemu-img convert -O qcow2 FILE "
    "NEW' writes all its data into one file. Import that."
)
ENCRYPTED = (
    "If you have its key, write an unencrypted file: 'qemu-img convert' with --object secret and "
    "--image-opts. Import that."
)
SNAPSHOTS = (
    "'qemu-img convert -O qcow2 FILE NEW' writes only its present state, or with -l NAME that of one of its "
    "snapshots; or remove them with 'qemu-img snapshot -d NAME FILE'. Then import it."
)
NOT_CLOSED = (
    "The program that wrote it was killed. While nothing has it open, 'qemu-img check -r all FILE' repairs "
    "it. Then import it."
)
DAMAGED = (
    "Fetch it again from where it was made. If there is no other copy, 'qemu-img check -r all COPY' repairs "
    "what it can in a copy of it; what is lost stays lost."
)
VMDK_EXTENTS = (
    "Its data is in other files. If you know where it comes from: where they all are, 'qemu-img convert "
    "-f vmdk -O qcow2 FILE NEW' writes one file. Import that as qcow2."
)
VMDK_PARENT = (
    "It has only what changed since its parent. Consolidate the snapshots where it was made, or use "
    "'qemu-img convert -f vmdk -O qcow2 FILE NEW' there. Then import that."
)
VDI_PARENT = (
    "It has only what changed since its parent. 'VBoxManage clonemedium disk FILE NEW' where it was made "
    "writes a stand-alone disk. Import that."
)
VHDX_PARENT = (
    "It has only what changed since its parent. Merge them where it was made (Merge-VHD), or write a "
    "stand-alone disk (Convert-VHD). Then import that."
)
VHDX_LOG = (
    "It was not closed properly. Open and close it once where it was made, or let 'qemu-img check -r all "
    "FILE' replay its log while nothing has it open. Then import it."
)
TOO_DEAR = (
    "Reading it takes more time or memory than an image from an unknown source may use. If you know where it "
    "comes from, 'qemu-img convert -O raw FILE NEW' reads it without limits. Import that as raw."
)

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"(\xb5/\xfd": "zstd",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
}
_FOREIGN: tuple[tuple[int, bytes, Foreign], ...] = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"vhdxfile", "vhdx"),
)
_TAR = (257, b"ustar")


def convert(format: Foreign) -> str:
    """Advice for an image in a form that Diskyard does not read."""
    return (
        f"If you know where it comes from: 'qemu-img convert -f {format} -O qcow2 FILE NEW' writes it in a "
        "form that Diskyard reads. Import that as qcow2."
    )


def not_of_format(head: bytes, format: Foreign) -> str:
    """Advice for a file that does not have the format that the caller gave.

    :param head: the file's beginning.
    """
    for at, magic, found in _FOREIGN:
        if found != format and head[at : at + len(magic)] == magic:
            return f"It looks like a {found} file: give {found} as its format."
    if head[_TAR[0] : _TAR[0] + len(_TAR[1])] == _TAR[1]:
        return "It is a tar archive, like an OVA: unpack it with 'tar xf FILE', and import the disks in it."
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            return f"It is compressed with {name}: unpack it, and import what comes out."
    if not head:
        return "It is empty: fetch it again from where it was made."
    return (
        "Give the format that the file has; for a file that you trust, 'qemu-img info FILE' shows it. A file "
        "that is not an image of a known format is raw."
    )
