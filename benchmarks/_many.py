"""Repositories of very many images, made quickly: the checkpoint is written by Diskyard's own codec.

Nothing is synced, and every file is sparse: they are for measuring, and are lost without harm.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from diskyard import Diskyard, MiB
from diskyard.host import Host
from diskyard.host.identity import new_uuid
from diskyard.log.checkpoints import Checkpoints, checkpoint_of
from diskyard.log.codec import encode
from diskyard.model.records import Image, ImageKind, Volume, VolumeFormat
from diskyard.model.state import State
from diskyard.model.volume_name import backing_name
from diskyard.mover.formats.qcow2_header import CLUSTER_BYTES, empty_qcow2
from diskyard.repository.repository import volume_name
from diskyard.storage.registry import find_format

FORMAT = "localfs-1.0"
SIZE_BYTES = 64 * MiB
Shape = Literal["mixed", "chain", "fan"]
_WRITTEN_AT = "2026-01-31T12:00:00.000000Z"
_HEADER_BYTES = 4096
_REFCOUNT_BYTES = 512


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its volume."""

    image: Image
    volume: Volume


def make_repository(folder: str, images: int, shape: Shape = "mixed", note: str = "") -> None:
    """A repository in a folder that is not there yet, with so many images.

    :param shape: ``mixed``: of each four images a raw disk, a raw Snapshot, a Snapshot that reads
        it and a disk that reads that; ``chain``: one disk, and Snapshots that each read the one
        before; ``fan``: one raw Snapshot, which all others and a disk read.
    :param note: in the userData of each, for answers that are long.
    """
    host = Host.real()
    place = {"path": folder}
    with Diskyard(state_folder=f"{folder}.state") as yard:
        yard.create_storage_repository(FORMAT, place)
    storage = find_format(FORMAT).connect(place, host)
    found = Checkpoints(storage).newest()
    made = list(_SHAPES[shape](images))
    state = State.of(
        found.state.marker,
        found.state.version,
        found.state.nonce,
        [noted(pair.image, note) for pair in made],
        [pair.volume for pair in made],
    )
    for pair in made:
        path = storage.locate_volume(volume_name(pair.volume)).path
        assert path is not None
        _make_file(path, pair.volume)
    data = encode(checkpoint_of(state, found.checkpoint.nonces))
    for copy in (0, 1):
        storage.rewrite("checkpoint", state.version, copy, data)
    storage.close()


def noted(image: Image, note: str) -> Image:
    """An image with a note in its userData."""
    return msgspec.structs.replace(image, user_data={**image.user_data, "note": note}) if note else image


def _pair(number: int, kind: ImageKind, parent: Pair | None, format: VolumeFormat) -> Pair:
    volume = Volume(
        id=new_uuid(),
        format=format,
        parent_image_id=None if parent is None else parent.image.id,
        size_bytes=SIZE_BYTES,
        named_by="0.",
        state="ready",
    )
    image = Image(
        id=new_uuid(),
        kind=kind,
        visibility="strong",
        size_bytes=SIZE_BYTES,
        volume_id=volume.id,
        strategy="space",
        user_data={"name": f"image {number}", "labels": {"owner": f"customer {number % 97}"}},
        created_at=_WRITTEN_AT,
        captured_at=_WRITTEN_AT,
        data_generation="0.",
        revision="0.",
    )
    return Pair(image, volume)


def _mixed(images: int) -> Iterator[Pair]:
    for number in range(0, images, 4):
        yield _pair(number, "virtual_disk", None, "raw")
        root = _pair(number + 1, "snapshot", None, "raw")
        middle = _pair(number + 2, "snapshot", root, "qcow2")
        yield from (root, middle, _pair(number + 3, "virtual_disk", middle, "qcow2"))


def _chain(images: int) -> Iterator[Pair]:
    below = _pair(0, "snapshot", None, "raw")
    yield below
    for number in range(1, images):
        kind: ImageKind = "snapshot" if number < images - 1 else "virtual_disk"
        below = _pair(number, kind, below, "qcow2")
        yield below


def _fan(images: int) -> Iterator[Pair]:
    root = _pair(0, "snapshot", None, "raw")
    yield root
    for number in range(1, images):
        yield _pair(number, "snapshot" if number < images - 1 else "virtual_disk", root, "qcow2")


_SHAPES = {"mixed": _mixed, "chain": _chain, "fan": _fan}


def _make_file(path: str, volume: Volume) -> None:
    """The file of a volume as Diskyard makes it, without the zeros between what is written."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
    if volume.format == "raw":
        os.ftruncate(fd, volume.size_bytes)
    else:
        data = empty_qcow2(volume.size_bytes, backing_name(volume.parent_image_id))
        os.pwrite(fd, data[:_HEADER_BYTES], 0)
        for begin in (CLUSTER_BYTES, 2 * CLUSTER_BYTES):
            os.pwrite(fd, data[begin : begin + _REFCOUNT_BYTES], begin)
        os.ftruncate(fd, len(data))
    os.close(fd)
