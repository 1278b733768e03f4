"""What images must hold, in the simplest form there is: names, and all of their bytes.

The stateful tests do everything twice, with Diskyard and here, and compare. It knows nothing
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
    :param attached_to: the host that has it prepared, and the graph that was answered.
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
        """The repository and image of a name."""
        repo, _, short = name.partition("/")
        return repo, next(image for image in self.images[repo].values() if self.short(image.id) == short)

    # -- what the verbs mean ---------------------------------------------------------------

    def create_disk(self, repo: str, image_id: str, size_bytes: int, strategy: Strategy) -> ModelImage:
        """An empty disk reads zeros."""
        image = ModelImage(image_id, "virtual_disk", bytes(size_bytes), {}, strategy, True)
        self.images[repo][image_id] = image
        return image

    def create_from(
        self, repo: str, image_id: str, base: ModelImage, size_bytes: int, *, complete: bool
    ) -> None:
        """A disk begins as its base, and goes on with zeros."""
        data = base.data + bytes(size_bytes - len(base.data))
        self.images[repo][image_id] = ModelImage(image_id, "virtual_disk", data, {}, "space", complete)

    def snapshot(self, repo: str, image_id: str, disk: ModelImage) -> None:
        """What the disk holds now."""
        image = ModelImage(image_id, "snapshot", disk.data, {}, disk.strategy, True)
        self.images[repo][image_id] = image

    def copy(self, repo: str, image_id: str, source: ModelImage, kind: ImageKind, user_data: Any) -> None:
        """What the source holds now, whatever the base; a Snapshot that is there stays."""
        if image_id not in self.images[repo]:
            self.images[repo][image_id] = ModelImage(image_id, kind, source.data, user_data, "space", False)

    def write(self, disk: ModelImage, offset_bytes: int, data: bytes) -> None:
        """The disk alone changes."""
        disk.data = disk.data[:offset_bytes] + data + disk.data[offset_bytes + len(data) :]

    def extend(self, disk: ModelImage, size_bytes: int) -> None:
        """What is new reads zeros."""
        disk.data += bytes(size_bytes - len(disk.data))

    def remove(self, repo: str, image: ModelImage) -> None:
        """Others keep their bytes."""
        del self.images[repo][image.id]
