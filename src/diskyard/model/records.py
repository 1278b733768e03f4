"""The three kinds of record that a repository's log puts and removes, and their parts.

Every field is durable and is part of the format (``docs/format.md``): a change here is
a new version of the format. Records are frozen values, and nothing in them is derived.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from diskyard.model.identity import HostIdentity

ImageKind = Literal["virtual_disk", "snapshot"]
Visibility = Literal["strong", "weak"]
Strategy = Literal["space", "performance"]
VolumeFormat = Literal["raw", "qcow2"]
ImportFormat = Literal["raw", "qcow2", "vmdk", "vdi", "vhdx"]

USER_DATA_LIMIT_BYTES = 16 * 1024
SECTOR_BYTES = 512
#: Begins the damage that no check of the volume alone can find, nor find gone.
DONE_BY_OTHERS = "another program "
IMAGE_SIZE_LIMIT_BYTES = 63 << 40  # qcow2 overlays were checked up to here

# In Python `$` also matches before a newline at the end, and JSON schemas do not know `\Z`.
UUID_PATTERN = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$(?!\n)"
#: Ids name files and lease bytes. An id of another form is damage, wherever it comes from.
Uuid = Annotated[str, msgspec.Meta(pattern=UUID_PATTERN)]
SizeBytes = Annotated[int, msgspec.Meta(ge=0, le=IMAGE_SIZE_LIMIT_BYTES, multiple_of=SECTOR_BYTES)]
#: The number of an entry. A name has room for 16 hexadecimal digits; msgspec can compare up to this limit.
EntryNumber = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
#: The id of an entry: its number, a dot, and its nonce. It distinguishes the entry from every other, also
#: from an entry with the same number in another history of the repository. In format 1.0, which had
#: numbers only, the nonce is empty, and the id says nothing about the history.
ENTRY_ID_PATTERN = r"^(0|[1-9][0-9]{0,18})\.([0-9a-f]{32})?$(?!\n)"
EntryId = Annotated[str, msgspec.Meta(pattern=ENTRY_ID_PATTERN)]


def entry_id(number: int, nonce: str) -> EntryId:
    """The id of an entry."""
    return f"{number}.{nonce}"


def split_entry_id(entry: EntryId) -> tuple[int, str]:
    """The number and the nonce in the id of an entry."""
    number, _, nonce = entry.partition(".")
    return int(number), nonce


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel", gc=False):
    """Base of everything that the log stores.

    No record refers to anything that refers back to it, so the garbage collector need not visit records:
    with 100,000 images that would take seconds while they are listed.
    """


class Hold(Record, kw_only=True, tag_field="purpose", frozen=True):
    """Something needs a frozen image: its bytes must stay, although no verb returns it."""


class CopyHold(Hold, tag="copy", kw_only=True, frozen=True):
    """A copy reads the image until it is sealed.

    :param target_marker: the repository that the copy is in.
    :param copy_id: the copy's image id there.
    :param work_id: the copy's work when the hold was made; distinguishes two copies of one id.
    :param target_place: the repository's location; a byte copy, which has the same marker, has another.
        Empty in format 1.0.
    :param target_entry: the newest entry of the repository then; a repository that was restored to an
        older state, and went on from there, does not have it.
    """

    target_marker: str
    copy_id: Uuid
    work_id: str
    target_place: str = ""
    target_entry: EntryId | None = None


class TrackHold(Hold, tag="track", kw_only=True, frozen=True):
    """A VirtualDisk tracks its changes since this image, for the next copy to a target.

    :param target_marker: the repository that the copies go to.
    :param disk_id: the VirtualDisk in this repository; the tracker ends with it.
    :param copy_id: the copy that holds the bytes of this image.
    """

    target_marker: str
    disk_id: Uuid
    copy_id: Uuid


AnyHold = CopyHold | TrackHold


class Origin(Record, kw_only=True, frozen=True):
    """Which bytes an image has: those of another image, or its own, at one moment.

    :param image_id: the VirtualDisk or Snapshot that had these bytes.
    :param data_generation: that image's data_generation at the moment.
    """

    marker: str
    image_id: Uuid
    data_generation: EntryId


class Source(Record, kw_only=True, tag_field="kind", frozen=True):
    """Where the bytes of a pending image come from."""


class ImageSource(Source, tag="image", kw_only=True, frozen=True):
    """An image that cannot change: a Snapshot, or the frozen weak image of a VirtualDisk.

    :param marker: the repository in which the image was found at the commit. A Snapshot with this id in
        any other repository may be used too.
    :param image_id: the image there.
    :param captured: which bytes it has. An image with this id and other bytes is not a source.
    :param size_bytes: the size of the image. Both are None in format 1.0.
    """

    marker: str
    image_id: Uuid
    captured: Origin | None = None
    size_bytes: SizeBytes | None = None


class FileSource(Source, tag="file", kw_only=True, frozen=True):
    """A file of one host.

    :param machine_id: the host that has the file.
    :param fingerprint: device, inode, size and times of change at the commit. The file must not change
        until the mend is done.
    :param force: a running QEMU may have the file open for writing: the caller vouches for its bytes.
    """

    machine_id: str
    path: str
    format: ImportFormat
    fingerprint: str
    force: bool = False


class Pending(Record, kw_only=True, frozen=True):
    """What must still be done before the image can be used.

    :param work_id: the work that may seal it; a takeover publishes a new one.
    :param base_image_id: the image in this repository that must become the volume's parent.
    :param rate_limit_bytes_per_s: 0 for none.
    :param track_changes: turn the copy's hold into a tracker when the copy is sealed.
    :param tracked_disk_id: the VirtualDisk that the source was frozen from.
    """

    work_id: str
    source: ImageSource | FileSource
    base_image_id: Uuid | None = None
    rate_limit_bytes_per_s: Annotated[int, msgspec.Meta(ge=0)] = 0
    track_changes: bool = False
    tracked_disk_id: Uuid | None = None


class Image(Record, kw_only=True, frozen=True):
    """A VirtualDisk or a Snapshot.

    :param visibility: no verb returns a weak image; it stays while something needs its bytes.
    :param volume_id: the volume that holds its bytes. None only while it is pending and no
        volume could be made yet.
    :param pending: what must be done before it can be used; None if nothing.
    :param captured_of: the VirtualDisk whose bytes a Snapshot or frozen image captured.
    :param origin: the bytes that it was made from; kept while its own bytes cannot have changed.
    :param captured: the bytes of a Snapshot or frozen image: set when they were captured, and the same
        in every copy. Two images of one id with different bytes differ in it.
    :param data_generation: the entry that last let the bytes change.
    :param held_for: the copies that need its bytes.
    :param consumed_by: the volume that a merge has begun to write into the image's own volume. From then
        on the image can be read only through that volume, and can never be strong or a base again.
    :param request_digest: of the request that made it; a retry with the same id is compared with it.
    :param revision: the entry that last changed what the caller sees.
    """

    id: Uuid
    kind: ImageKind
    visibility: Visibility
    size_bytes: SizeBytes
    volume_id: Uuid | None
    strategy: Strategy
    user_data: Any
    created_at: str
    captured_at: str
    data_generation: EntryId
    revision: EntryId
    pending: Pending | None = None
    origin: Origin | None = None
    captured: Origin | None = None
    captured_of: Uuid | None = None
    held_for: tuple[AnyHold, ...] = ()
    consumed_by: Uuid | None = None
    request_digest: str | None = None
    last_error: str | None = None

    @property
    def is_strong(self) -> bool:
        """Whether verbs return the image."""
        return self.visibility == "strong"


class Building(Record, kw_only=True, frozen=True):
    """A volume that is being made: only the work with this id may seal it.

    :param image_id: the image whose work lease protects it.
    """

    work_id: str
    image_id: Uuid


class Extending(Record, kw_only=True, frozen=True):
    """A volume that is being made longer: until that is sealed, its length is in doubt.

    It belongs to the volume and not to the image, so that whatever freezes, reads or merges the volume
    finds it there, through whichever image it comes.

    :param work_id: the work that may seal it.
    :param size_bytes: the intended size; nobody has requested more than this.
    """

    work_id: str
    size_bytes: SizeBytes


class Volume(Record, kw_only=True, frozen=True):
    """Bytes on the storage, and the image that the volume reads where it holds no bytes itself.

    :param parent_image_id: the only record of parentage that is trusted (I7).
    :param preallocated: its blocks are reserved.
    :param named_by: the entry that first named it; part of its name on the storage.
    :param damage: what a deep check found, or what another program did to it (:data:`DONE_BY_OTHERS`).
    :param extending: an extend of its disk is under way, or was interrupted.
    """

    id: Uuid
    format: VolumeFormat
    parent_image_id: Uuid | None
    size_bytes: SizeBytes
    named_by: EntryId
    preallocated: bool = False
    state: Literal["building", "ready", "doomed"]
    building: Building | None = None
    damage: str | None = None
    extending: Extending | None = None


class Switching(Record, kw_only=True, frozen=True):
    """A running guest is being moved to a new overlay; the log has it there already.

    While an attachment has this, nothing else is done to its disk until the guest was asked where it is.

    :param work_id: of the work that may end it.
    :param image_id: the frozen image, which has ``from_volume_id``. Until this ends it is weak, and its bytes
        may still change.
    :param from_volume_id: what the guest wrote to before.
    :param to_volume_id: the overlay.
    """

    work_id: str
    image_id: Uuid
    from_volume_id: Uuid
    to_volume_id: Uuid


class Attachment(Record, kw_only=True, frozen=True):
    """A guest, or another reader, that uses an image.

    :param owner: the caller's name for it.
    :param volume_ids: every volume that the guest may have open, the one that it writes to first. None of
        them is deleted or merged while the attachment lasts.
    :param live: how the guest can be talked to while it runs; None if it cannot. Where it answers is known to
        its host alone (decision 0045).
    :param switching: the guest's top volume is being changed, or was when that was interrupted.
    """

    id: Uuid
    image_id: Uuid
    host: HostIdentity
    owner: str
    mode: Literal["read_only", "read_write"]
    volume_ids: Annotated[tuple[Uuid, ...], msgspec.Meta(min_length=1)]
    attached_at: str
    live: Literal["qmp"] | None = None
    switching: Switching | None = None
