"""The state of a repository at one version of its log: records, and indexes over them.

A :class:`State` is a value: changing it makes another state, which shares what is the same.
Reference counts are indexes here, and are never stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from immutables import Map

from diskyard.model.records import Attachment, Image, Volume
from diskyard.model.tables import Records, in_memory, records_after

Index = Records[frozenset[str]]
_NOTHING: frozenset[str] = frozenset()
_FIELDS = {
    "images": "images",
    "volumes": "volumes",
    "attachments": "attachments",
    "volumes_by_parent": "_volumes_by_parent",
    "images_by_volume": "_images_by_volume",
    "images_by_base": "_images_by_base",
    "attachments_by_volume": "_attachments_by_volume",
    "attachments_by_image": "_attachments_by_image",
    "held": "held",
    "unready": "unready",
}


def _gone(members: Records[None], key: str) -> Records[None]:
    return members.delete(key) if key in members else members


def _with(index: Index, key: str | None, member: str) -> Index:
    return index if key is None else index.set(key, index.get(key, _NOTHING) | {member})


def _without(index: Index, key: str | None, member: str) -> Index:
    if key is None:
        return index
    rest = index.get(key, _NOTHING) - {member}
    return index.set(key, rest) if rest else index.delete(key)


def awaited_base(image: Image) -> str | None:
    """The base of an image that has no volume yet, and so is not among the base's dependents."""
    return None if image.pending is None or image.volume_id is not None else image.pending.base_image_id


def _index(pairs: Iterable[tuple[str | None, str]]) -> Index:
    members: dict[str, set[str]] = {}
    for key, member in pairs:
        if key is not None:
            members.setdefault(key, set()).add(member)
    return Map({key: frozenset(found) for key, found in members.items()})


@dataclass(frozen=True, slots=True)
class State:
    """All records after entry ``version``.

    :param nonce: of that entry.
    :param held: the ids of images that have holds.
    :param unready: the ids of volumes that are building or doomed.
    :param closed: that entry was the last one: the repository is being removed.
    """

    marker: str
    version: int
    nonce: str
    images: Records[Image] = Map()
    volumes: Records[Volume] = Map()
    attachments: Records[Attachment] = Map()
    _volumes_by_parent: Index = Map()
    _images_by_volume: Index = Map()
    _images_by_base: Index = Map()
    _attachments_by_volume: Index = Map()
    _attachments_by_image: Index = Map()
    held: Records[None] = Map()
    unready: Records[None] = Map()
    closed: bool = False

    @classmethod
    def of(
        cls,
        marker: str,
        version: int,
        nonce: str,
        images: Iterable[Image] = (),
        volumes: Iterable[Volume] = (),
        attachments: Iterable[Attachment] = (),
    ) -> State:
        """The state with these records. This is quicker than adding them one by one."""
        image_list, volume_list, attachment_list = list(images), list(volumes), list(attachments)
        return cls(
            marker=marker,
            version=version,
            nonce=nonce,
            images=Map({image.id: image for image in image_list}),
            volumes=Map({volume.id: volume for volume in volume_list}),
            attachments=Map({attachment.id: attachment for attachment in attachment_list}),
            _volumes_by_parent=_index((v.parent_image_id, v.id) for v in volume_list),
            _images_by_volume=_index((i.volume_id, i.id) for i in image_list),
            _images_by_base=_index((awaited_base(i), i.id) for i in image_list),
            _attachments_by_volume=_index((v, a.id) for a in attachment_list for v in a.volume_ids),
            _attachments_by_image=_index((a.image_id, a.id) for a in attachment_list),
            held=Map({image.id: None for image in image_list if image.held_for}),
            unready=Map({volume.id: None for volume in volume_list if volume.state != "ready"}),
        )

    # -- changing ----------------------------------------------------------------

    def put_image(self, image: Image) -> State:
        """This state with a new or changed image."""
        old = self.images.get(image.id)
        index = self._images_by_volume
        if old is None or old.volume_id != image.volume_id:
            if old is not None:
                index = _without(index, old.volume_id, image.id)
            index = _with(index, image.volume_id, image.id)
        waiting, base = self._images_by_base, awaited_base(image)
        old_base = None if old is None else awaited_base(old)
        if old_base != base:
            waiting = _with(_without(waiting, old_base, image.id), base, image.id)
        return replace(
            self,
            images=self.images.set(image.id, image),
            _images_by_volume=index,
            _images_by_base=waiting,
            held=self.held.set(image.id, None) if image.held_for else _gone(self.held, image.id),
        )

    def remove_image(self, image_id: str) -> State:
        """This state without an image that it has."""
        image = self.images[image_id]
        return replace(
            self,
            images=self.images.delete(image_id),
            _images_by_volume=_without(self._images_by_volume, image.volume_id, image_id),
            _images_by_base=_without(self._images_by_base, awaited_base(image), image_id),
            held=_gone(self.held, image_id),
        )

    def put_volume(self, volume: Volume) -> State:
        """This state with a new or changed volume."""
        old = self.volumes.get(volume.id)
        index = self._volumes_by_parent
        if old is None or old.parent_image_id != volume.parent_image_id:
            if old is not None:
                index = _without(index, old.parent_image_id, volume.id)
            index = _with(index, volume.parent_image_id, volume.id)
        is_ready = volume.state == "ready"
        return replace(
            self,
            volumes=self.volumes.set(volume.id, volume),
            _volumes_by_parent=index,
            unready=_gone(self.unready, volume.id) if is_ready else self.unready.set(volume.id, None),
        )

    def remove_volume(self, volume_id: str) -> State:
        """This state without a volume that it has."""
        return replace(
            self,
            volumes=self.volumes.delete(volume_id),
            _volumes_by_parent=_without(
                self._volumes_by_parent, self.volumes[volume_id].parent_image_id, volume_id
            ),
            unready=_gone(self.unready, volume_id),
        )

    def put_attachment(self, attachment: Attachment) -> State:
        """This state with a new attachment. To change one, remove it first."""
        state = self.remove_attachment(attachment.id) if attachment.id in self.attachments else self
        by_volume = state._attachments_by_volume
        for volume_id in attachment.volume_ids:
            by_volume = _with(by_volume, volume_id, attachment.id)
        return replace(
            state,
            attachments=state.attachments.set(attachment.id, attachment),
            _attachments_by_volume=by_volume,
            _attachments_by_image=_with(state._attachments_by_image, attachment.image_id, attachment.id),
        )

    def remove_attachment(self, attachment_id: str) -> State:
        """This state without an attachment that it has."""
        attachment = self.attachments[attachment_id]
        by_volume = self._attachments_by_volume
        for volume_id in attachment.volume_ids:
            by_volume = _without(by_volume, volume_id, attachment_id)
        return replace(
            self,
            attachments=self.attachments.delete(attachment_id),
            _attachments_by_volume=by_volume,
            _attachments_by_image=_without(self._attachments_by_image, attachment.image_id, attachment_id),
        )

    def whole(self) -> State:
        """This state with all of its records in memory, for callers that visit each record and its links."""
        if all(isinstance(records, Map) for records in self.tables().values()):
            return self
        return self.with_tables({name: in_memory(records) for name, records in self.tables().items()})

    # -- asking --------------------------------------------------------------------

    def tables(self) -> dict[str, Records[Any]]:
        """The records, and the indexes over them, by name."""
        return {name: getattr(self, field) for name, field in _FIELDS.items()}

    def with_tables(self, tables: Mapping[str, Records[Any]]) -> State:
        """This state with other tables that hold the same records."""
        fields: dict[str, Any] = {_FIELDS[name]: records for name, records in tables.items()}
        return replace(self, **fields)

    def images_after(self, image_id: str) -> Iterator[Image]:
        """The images with greater ids, in order, each read when it is needed; with ``""``, all images."""
        return records_after(self.images, image_id)

    def dependents(self, image_id: str) -> frozenset[str]:
        """The ids of the volumes that have the image as their parent."""
        return self._volumes_by_parent.get(image_id, _NOTHING)

    def waiting_for(self, base_id: str) -> frozenset[str]:
        """The ids of the pending images that have no volume yet, and will read this image once they have."""
        return self._images_by_base.get(base_id, _NOTHING)

    def images_on(self, volume_id: str) -> frozenset[str]:
        """The ids of the images that point at the volume."""
        return self._images_by_volume.get(volume_id, _NOTHING)

    def attachments_naming(self, volume_id: str) -> frozenset[str]:
        """The ids of the attachments whose graph contains the volume."""
        return self._attachments_by_volume.get(volume_id, _NOTHING)

    def attachments_of(self, image_id: str) -> list[Attachment]:
        """The attachments of an image, oldest first."""
        found = [self.attachments[key] for key in self._attachments_by_image.get(image_id, _NOTHING)]
        return sorted(found, key=lambda attachment: (attachment.attached_at, attachment.id))

    def writer_of(self, image_id: str) -> Attachment | None:
        """The attachment that may write to the image, if there is one."""
        return next((a for a in self.attachments_of(image_id) if a.mode == "read_write"), None)

    def chain(self, image: Image) -> Iterator[tuple[Image, Volume]]:
        """The image and its volume, then that volume's parent and its volume, down to the root.

        It ends early at a parent that has no volume yet: such a chain cannot be read.
        """
        current: Image | None = image
        while current is not None and current.volume_id is not None:
            volume = self.volumes[current.volume_id]
            yield current, volume
            parent_id = volume.parent_image_id
            current = None if parent_id is None else self.images[parent_id]

    def volume_chain(self, volume: Volume) -> list[Volume]:
        """The volume and the volumes that it reads, top first."""
        parent_id = volume.parent_image_id
        below = [] if parent_id is None else [v for _, v in self.chain(self.images[parent_id])]
        return [volume, *below]
