"""A transaction: the records that one entry of the log puts and removes, and its author."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from enum import IntEnum

from diskyard.model.identity import HostIdentity
from diskyard.model.looked import NOT_LOOKED, Looked
from diskyard.model.records import Attachment, EntryId, EntryNumber, Image, Record, Volume, entry_id
from diskyard.model.state import State

_MANY = 1000  # with this many changes, it is quicker to build the indexes anew


class Changes(Record, kw_only=True, omit_defaults=True, frozen=True):
    """Records that are put and removed together. Puts are applied first; no record is in both.

    :param closes: nothing is published after this entry: the repository is being removed.
    """

    put_images: tuple[Image, ...] = ()
    put_volumes: tuple[Volume, ...] = ()
    put_attachments: tuple[Attachment, ...] = ()
    remove_images: tuple[str, ...] = ()
    remove_volumes: tuple[str, ...] = ()
    remove_attachments: tuple[str, ...] = ()
    closes: bool = False

    def __bool__(self) -> bool:
        return self.closes or self.count() > 0

    def count(self) -> int:
        """How many records are put or removed."""
        puts = len(self.put_images) + len(self.put_volumes) + len(self.put_attachments)
        return puts + len(self.remove_images) + len(self.remove_volumes) + len(self.remove_attachments)

    def ids(self) -> list[str]:
        """The ids of the records that are put or removed."""
        return [
            *(image.id for image in self.put_images),
            *(volume.id for volume in self.put_volumes),
            *(attachment.id for attachment in self.put_attachments),
            *self.remove_images,
            *self.remove_volumes,
            *self.remove_attachments,
        ]

    def joined(self, others: Iterable[Changes]) -> Changes:
        """These changes and others together. No two of them may name the same record."""
        every = (self, *others)
        return Changes(
            put_images=tuple(record for changes in every for record in changes.put_images),
            put_volumes=tuple(record for changes in every for record in changes.put_volumes),
            put_attachments=tuple(record for changes in every for record in changes.put_attachments),
            remove_images=tuple(key for changes in every for key in changes.remove_images),
            remove_volumes=tuple(key for changes in every for key in changes.remove_volumes),
            remove_attachments=tuple(key for changes in every for key in changes.remove_attachments),
            closes=any(changes.closes for changes in every),
        )


class Part(Record, kw_only=True, frozen=True):
    """The changes of one author in an entry, and who that author is.

    :param request_digest: of the caller's request, for the audit trail.
    """

    verb: str
    actor: str
    request_digest: str | None
    changes: Changes


class Entry(Record, kw_only=True, omit_defaults=True, frozen=True):
    """One entry of the log.

    :param number: its position: it is valid only on top of entry ``number - 1``.
    :param previous: the nonce of that entry; empty for entry 0.
    :param nonce: distinguishes this entry from any other that was ever meant for this number.
    :param request_digest: of the caller's request, for the audit trail.
    :param also: the changes of other callers that came at the same time. No record is named by two
        parts, so an entry changes each record at most once.
    """

    marker: str
    number: EntryNumber
    nonce: str
    previous: str
    time: str
    verb: str
    host: HostIdentity
    actor: str
    request_digest: str | None
    changes: Changes
    also: tuple[Part, ...] = ()

    def parts(self) -> tuple[Part, ...]:
        """The changes of each author."""
        digest, changes = self.request_digest, self.changes
        return Part(verb=self.verb, actor=self.actor, request_digest=digest, changes=changes), *self.also

    def all_changes(self) -> Changes:
        """The changes of all authors together."""
        return self.changes.joined(part.changes for part in self.also) if self.also else self.changes


class Frees(IntEnum):
    """What space an entry frees, and how soon: the sooner, the more of the log's reserve it may use."""

    NOTHING = 0
    LATER = 1  # an image is not wanted any more; the data that others need must be moved first
    WHEN_FIXED = (
        2  # an attachment, a hold or a switch has ended that a fix waited for, or an extend is taken back
    )
    AT_ONCE = 3  # something is removed or doomed, or a fix is being finished


class Draft:
    """A state under change: planners write their changes to it.

    :param nonce: of the entry that the changes would become. Who only looks what a plan would say
        needs none: nothing of such a draft is published.
    :param missing: what a look at the storage has found, for plans that need one.
    :ivar state: the state with all changes so far.
    """

    def __init__(self, state: State, nonce: str = "", missing: Looked = NOT_LOOKED) -> None:
        self._nonce = nonce
        self.missing = missing
        self.before = state
        self.state = state
        self.images_touched: dict[str, None] = {}
        self.volumes_touched: dict[str, None] = {}
        self.attachments_touched: dict[str, None] = {}

    @property
    def entry(self) -> EntryId:
        """The id of the entry that these changes would become; records use it for "now" in this history."""
        return entry_id(self.before.version + 1, self._nonce)

    def put_image(self, image: Image) -> None:
        """Add or change an image."""
        self.touch_image(image.id)
        self.state = self.state.put_image(image)
        self.touch_image(image.id)

    def remove_image(self, image_id: str) -> None:
        """Remove an image."""
        self.touch_image(image_id)
        self.state = self.state.remove_image(image_id)

    def put_volume(self, volume: Volume) -> None:
        """Add or change a volume."""
        self.touch_volume(volume.id)
        self.state = self.state.put_volume(volume)
        self.touch_volume(volume.id)

    def remove_volume(self, volume_id: str) -> None:
        """Remove a volume's record. Its data must be gone already."""
        self.touch_volume(volume_id)
        self.state = self.state.remove_volume(volume_id)

    def put_attachment(self, attachment: Attachment) -> None:
        """Add or change an attachment. What it names no longer may now be free."""
        self.attachments_touched[attachment.id] = None
        was = self.state.attachments.get(attachment.id)
        self.state = self.state.put_attachment(attachment)
        self._touch_named(() if was is None else set(was.volume_ids) - set(attachment.volume_ids))

    def remove_attachment(self, attachment_id: str) -> None:
        """Remove an attachment. What it named may now be free."""
        self.attachments_touched[attachment_id] = None
        self._touch_named(self.state.attachments[attachment_id].volume_ids)
        self.state = self.state.remove_attachment(attachment_id)

    def _touch_named(self, volume_ids: Iterable[str]) -> None:
        for volume_id in volume_ids:
            if volume_id in self.state.volumes:
                self.touch_volume(volume_id)
                for image_id in self.state.images_on(volume_id):
                    self.touch_image(image_id)

    def close(self) -> None:
        """Let nothing be published after these changes."""
        self.state = replace(self.state, closed=True)

    def frees(self) -> Frees:
        """What space the changes free, and how soon; nothing if they only add, or add an attachment."""
        before, changes = self.before, self.changes()
        puts = ((changes.put_images, before.images), (changes.put_volumes, before.volumes))
        removes = changes.remove_images or changes.remove_volumes
        dooms = any(volume.state == "doomed" for volume in changes.put_volumes)
        adds = any(not _settles(before.attachments.get(a.id), a) for a in changes.put_attachments)
        if changes.closes or (removes and not adds):
            return Frees.AT_ONCE
        if adds or any(r.id not in known for put, known in puts for r in put):
            return Frees.NOTHING
        if dooms:
            return Frees.AT_ONCE
        if changes.put_attachments:
            return Frees.WHEN_FIXED
        if any(_takes_back(before.volumes[volume.id], volume) for volume in changes.put_volumes):
            return Frees.WHEN_FIXED
        if changes.remove_attachments or any(
            len(image.held_for) < len(before.images[image.id].held_for) for image in changes.put_images
        ):
            return Frees.WHEN_FIXED
        weaker = any(before.images[i.id].is_strong and not i.is_strong for i in changes.put_images)
        return Frees.LATER if weaker else Frees.NOTHING

    def touch_image(self, image_id: str) -> None:
        """Note that an image, and the volume that it points at, must be normalised again."""
        self.images_touched[image_id] = None
        image = self.state.images.get(image_id)
        if image is not None and image.volume_id is not None:
            self.volumes_touched[image.volume_id] = None

    def touch_volume(self, volume_id: str) -> None:
        """Note that a volume, and the parent that it reads, must be normalised again."""
        self.volumes_touched[volume_id] = None
        volume = self.state.volumes.get(volume_id)
        if volume is not None and volume.parent_image_id is not None:
            self.images_touched[volume.parent_image_id] = None

    def changes(self) -> Changes:
        """The difference between the state before and the state now."""
        before, after = self.before, self.state
        images, volumes, attachments = self.images_touched, self.volumes_touched, self.attachments_touched
        return Changes(
            put_images=tuple(
                after.images[key]
                for key in images
                if key in after.images and after.images[key] != before.images.get(key)
            ),
            put_volumes=tuple(
                after.volumes[key]
                for key in volumes
                if key in after.volumes and after.volumes[key] != before.volumes.get(key)
            ),
            put_attachments=tuple(
                after.attachments[key]
                for key in attachments
                if key in after.attachments and after.attachments[key] != before.attachments.get(key)
            ),
            remove_images=tuple(k for k in images if k in before.images and k not in after.images),
            remove_volumes=tuple(k for k in volumes if k in before.volumes and k not in after.volumes),
            remove_attachments=tuple(
                k for k in attachments if k in before.attachments and k not in after.attachments
            ),
            closes=after.closed and not before.closed,
        )


def _settles(old: Attachment | None, new: Attachment) -> bool:
    """Whether an attachment's switch has ended: its disk cannot be used otherwise."""
    return old is not None and old.switching is not None and new.switching is None


def _takes_back(old: Volume, new: Volume) -> bool:
    return old.extending is not None and new.extending is None and new.size_bytes == old.size_bytes


def apply(state: State, entry: Entry) -> State:
    """The state after an entry that is valid on top of ``state``.

    :raises KeyError: the entry removes a record that is not there.
    """
    changes = entry.all_changes()
    closed = state.closed or changes.closes
    if changes.count() > _MANY:
        return replace(_apply_many(state, changes), version=entry.number, nonce=entry.nonce, closed=closed)
    for image in changes.put_images:
        state = state.put_image(image)
    for volume in changes.put_volumes:
        state = state.put_volume(volume)
    for attachment in changes.put_attachments:
        state = state.put_attachment(attachment)
    for image_id in changes.remove_images:
        state = state.remove_image(image_id)
    for volume_id in changes.remove_volumes:
        state = state.remove_volume(volume_id)
    for attachment_id in changes.remove_attachments:
        state = state.remove_attachment(attachment_id)
    return replace(state, version=entry.number, nonce=entry.nonce, closed=closed)


def _apply_many(state: State, changes: Changes) -> State:
    """The same, with indexes built from scratch: one by one, n records of one key would take n² steps."""
    images, volumes = dict(state.images.items()), dict(state.volumes.items())
    attachments = dict(state.attachments.items())
    images.update((image.id, image) for image in changes.put_images)
    volumes.update((volume.id, volume) for volume in changes.put_volumes)
    attachments.update((attachment.id, attachment) for attachment in changes.put_attachments)
    for image_id in changes.remove_images:
        del images[image_id]
    for volume_id in changes.remove_volumes:
        del volumes[volume_id]
    for attachment_id in changes.remove_attachments:
        del attachments[attachment_id]
    return State.of(
        state.marker, state.version, state.nonce, images.values(), volumes.values(), attachments.values()
    )
