"""What each verb means for the images, in the simplest terms: the stages of :mod:`possibilities`.

Nothing here knows of volumes, chains, logs or fixes. A verb that makes an image under an id of the
caller's does nothing if that image exists: it is safe to request it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from diskyard.model.records import ImageKind, Strategy
from diskyard.testing.possibilities import Images, Key, Known, Stage

Stages = list[Stage]


def _usable(images: Images, image_id: str, first: str) -> tuple[Key, Known] | None:
    """An image that can be read, in one repository before the others."""
    found = [(key, image) for key, image in images.items() if key[1] == image_id and image.complete]
    found = [(key, image) for key, image in found if image.kind == "snapshot" or image.attached_to is None]
    return min(found, key=lambda item: item[0][0] != first, default=None)


def _put(key: Key, make: Callable[[Images, Any], Known], *, of_read: bool = False) -> Stage:
    """The image exists, made now or before.

    :param of_read: made from what was read before; nothing was read if the image existed already.
    """

    def stage(images: Images, remembered: Any) -> tuple[Images, Any]:
        if key in images or (of_read and remembered is None):
            return images, remembered
        return {**images, key: make(images, remembered)}, remembered

    return stage


def _read(key: Key | None, source_id: str, first: str) -> Stage:
    """Remember what an image holds now; nothing if the image that is to be made exists already."""

    def stage(images: Images, remembered: Any) -> tuple[Images, Any] | None:
        if key is not None and key in images:
            return images, None
        found = _usable(images, source_id, first)
        return None if found is None else (images, found)

    return stage


def _change(key: Key, change: Callable[[Known], Known], *, free: bool = True, usable: bool = True) -> Stage:
    """One image changes.

    :param free: only if no guest has it attached.
    :param usable: only if it can be read.
    """

    def stage(images: Images, remembered: Any) -> tuple[Images, Any] | None:
        image = images.get(key)
        if image is None or (free and image.attached_to is not None) or (usable and not image.complete):
            return None
        return {**images, key: change(image)}, remembered

    return stage


def create_disk(key: Key, size_bytes: int, strategy: Strategy) -> Stages:
    """An empty disk reads as zeros."""
    return [_put(key, lambda _i, _r: Known("virtual_disk", bytes(size_bytes), {}, strategy, True))]


def create_from(key: Key, base_id: str, size_bytes: int) -> Stages:
    """A disk begins as its base and goes on with zeros; it is usable at once if the base is here."""

    def make(_images: Images, found: tuple[Key, Known]) -> Known:
        (repo, _), base = found
        data = base.data + bytes(size_bytes - len(base.data))
        return Known("virtual_disk", data, {}, "space", repo == key[0])

    return [_read(key, base_id, key[0]), _put(key, make, of_read=True)]


def import_image(key: Key, data: bytes, kind: ImageKind) -> Stages:
    """The image holds what the file holds."""
    return [_put(key, lambda _i, _r: Known(kind, data, {}, "space", False))]


def snapshot(key: Key, disk: Key) -> Stages:
    """The Snapshot holds what the disk holds now."""

    def stage(images: Images, remembered: Any) -> tuple[Images, Any] | None:
        if key in images:
            return images, remembered
        source = images.get(disk)
        if source is None or not source.complete or source.attached_to is not None:
            return None
        return {**images, key: Known("snapshot", source.data, {}, source.strategy, True)}, remembered

    return [stage]


def copy(key: Key, source_id: str, kind: ImageKind, user_data: Any) -> Stages:
    """The copy holds what the source holds at one moment, whatever the base."""
    return [
        _read(key, source_id, key[0]),
        _put(key, lambda _i, found: Known(kind, found[1].data, user_data, "space", False), of_read=True),
    ]


def revert(disk: Key, snapshot_id: str) -> Stages:
    """The disk holds what the Snapshot holds."""

    def stage(images: Images, found: tuple[Key, Known]) -> tuple[Images, Any] | None:
        return _change(disk, lambda image: replace(image, data=found[1].data))(images, found)

    return [_read(None, snapshot_id, disk[0]), stage]


def extend(disk: Key, size_bytes: int) -> Stages:
    """The new part reads as zeros; nothing is cut off."""

    def stage(images: Images, remembered: Any) -> tuple[Images, Any] | None:
        if disk in images and len(images[disk].data) > size_bytes:
            return None
        longer = _change(
            disk, lambda image: replace(image, data=image.data + bytes(size_bytes - len(image.data)))
        )
        return longer(images, remembered)

    return [stage]


def remove(key: Key) -> Stages:
    """Other images keep their bytes."""

    def stage(images: Images, remembered: Any) -> tuple[Images, Any] | None:
        if key not in images or images[key].attached_to is not None:
            return None
        return {other: image for other, image in images.items() if other != key}, remembered

    return [stage]


def set_user_data(key: Key, user_data: Any) -> Stages:
    """The userData is kept as sent."""
    return [_change(key, lambda image: replace(image, user_data=user_data), free=False, usable=False)]


def set_strategy(key: Key, strategy: Strategy) -> Stages:
    """No byte changes."""
    return [_change(key, lambda image: replace(image, strategy=strategy), free=False, usable=False)]


def untrack(key: Key) -> Stages:
    """Nothing changes that a caller sees."""
    return [_change(key, lambda image: image, free=False, usable=False)]


def attach(key: Key, host: int) -> Stages:
    """A guest of this host has the image attached."""
    return [_change(key, lambda image: replace(image, attached_to=host))]


def detach(key: Key) -> Stages:
    """Nobody has the image attached."""
    return [_change(key, lambda image: replace(image, attached_to=None), free=False, usable=False)]


def export(key: Key) -> Stages:
    """Remember what the file must hold."""
    return [_read(None, key[1], key[0])]


def write(key: Key, offset_bytes: int, data: bytes) -> Callable[[Images], Images]:
    """A guest's write: the disk alone changes."""

    def change(images: Images) -> Images:
        disk = images[key]
        written = disk.data[:offset_bytes] + data + disk.data[offset_bytes + len(data) :]
        return {**images, key: replace(disk, data=written)}

    return change


def guests_are_gone(images: Images) -> Images:
    """The machine has restarted."""
    return {key: replace(image, attached_to=None) for key, image in images.items()}
