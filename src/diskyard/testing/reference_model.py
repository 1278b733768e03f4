"""What images must hold, in the simplest form: names, and all of their bytes.

The stateful tests do everything twice, with Diskyard and here, and compare. The model knows nothing
of volumes, chains, logs or fixes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diskyard.model.records import ImageKind, Strategy


@dataclass
class ModelImage:
    """One image as its caller knows it.

    :param complete: whether it has been seen usable; from then on it must stay so.
    :param attached_to: the host that has it prepared, and the graph that the host got.
    """

    id: str
    kind: ImageKind
    data: bytes
    user_data: Any
    strategy: Strategy
    complete: bool
    attached_to: tuple[int, dict[str, object]] | None = None


@dataclass
class ReferenceModel:
    """The images of some repositories, by repository and id; story names are short."""

    images: dict[str, dict[str, ModelImage]]
    _count: int = 0
    _short: dict[str, str] = field(default_factory=dict)

    # -- names ------------------------------------------------------------------------

    def fresh_id(self, letter: str) -> str:
        """The next image id: the same in every run of the same story."""
        self._count += 1
        image_id = f"{self._count:08x}-0000-4000-8000-000000000000"
        self._short[image_id] = f"{letter}{self._count}"
        return image_id

    def short(self, image_id: str | None) -> str:
        """The name of an image in a story."""
        return self._short.get(image_id or "", "-")

    def names(
        self, *, kind: ImageKind | None = None, complete: bool | None = None, attached: bool | None = None
    ) -> list[str]:
        """``repository/name`` of images, in the order in which they were made."""
        return [
            f"{repo}/{self.short(image.id)}"
            for repo, images in self.images.items()
            for image in images.values()
            if kind in (None, image.kind)
            and complete in (None, image.complete)
            and attached in (None, image.attached_to is not None)
        ]

    def find(self, name: str) -> tuple[str, ModelImage]:
        """The repository and image with a name."""
        repo, _, short = name.partition("/")
        return repo, next(image for image in self.images[repo].values() if self.short(image.id) == short)

    # -- the meaning of the verbs -----------------------------------------------------------

    def create_disk(self, repo: str, image_id: str, size_bytes: int, strategy: Strategy) -> ModelImage:
        """Create an empty disk, which reads as zeros."""
        image = ModelImage(image_id, "virtual_disk", bytes(size_bytes), {}, strategy, True)
        self.images[repo][image_id] = image
        return image

    def create_from(
        self, repo: str, image_id: str, base: ModelImage, size_bytes: int, *, complete: bool
    ) -> None:
        """Create a disk that begins as its base, and goes on with zeros."""
        data = base.data + bytes(size_bytes - len(base.data))
        self.images[repo][image_id] = ModelImage(image_id, "virtual_disk", data, {}, "space", complete)

    def snapshot(self, repo: str, image_id: str, disk: ModelImage) -> None:
        """Take a Snapshot of what the disk holds now."""
        image = ModelImage(image_id, "snapshot", disk.data, {}, disk.strategy, True)
        self.images[repo][image_id] = image

    def copy(self, repo: str, image_id: str, source: ModelImage, kind: ImageKind, user_data: Any) -> None:
        """Copy what the source holds now, whatever the base. A Snapshot that exists already stays."""
        if image_id not in self.images[repo]:
            self.images[repo][image_id] = ModelImage(image_id, kind, source.data, user_data, "space", False)

    def write(self, disk: ModelImage, offset_bytes: int, data: bytes) -> None:
        """Write to a disk. Only the disk changes."""
        disk.data = disk.data[:offset_bytes] + data + disk.data[offset_bytes + len(data) :]

    def extend(self, disk: ModelImage, size_bytes: int) -> None:
        """Extend a disk; the new part reads as zeros."""
        disk.data += bytes(size_bytes - len(disk.data))

    def remove(self, repo: str, image: ModelImage) -> None:
        """Remove an image. Other images keep their bytes."""
        del self.images[repo][image.id]
