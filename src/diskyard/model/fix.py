"""Fixes: what check lists and fix runs, with the opaque part that says what to do."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from diskyard.model.options import FixType
from diskyard.model.records import AnyHold, EntryId


class Action(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel", tag_field="do"
):
    """What a fix does, and to what. Everything else is planned again when the fix runs."""


class CleanVolume(Action, tag="cleanVolume", frozen=True):
    """Delete a doomed volume, or one whose work was abandoned, and forget its record.

    :param volume_id: the volume.
    """

    volume_id: str


class CleanGarbage(Action, tag="cleanGarbage", frozen=True):
    """Delete a volume that the log does not name.

    :param name: of the volume on the storage.
    """

    name: str


class CleanLeftover(Action, tag="cleanLeftover", frozen=True):
    """Delete a temporary file of a process that has ended.

    :param name: of the file.
    """

    name: str


class CleanProgress(Action, tag="cleanProgress", frozen=True):
    """Forget the progress of an image that is not worked on any more.

    :param image_id: the image.
    """

    image_id: str


class CleanAttachment(Action, tag="cleanAttachment", frozen=True):
    """Remove an attachment whose host is provably gone.

    :param attachment_id: the attachment.
    """

    attachment_id: str


class CleanSwitch(Action, tag="cleanSwitch", frozen=True):
    """End an interrupted switch of a running guest: ask the guest where it is, then complete or undo it.

    :param attachment_id: the attachment of the guest.
    """

    attachment_id: str


class CleanChanged(Action, tag="cleanChanged", frozen=True):
    """Accept what another program did to a volume, by force only: its images have the bytes that it has now.

    :param volume_id: the volume.
    """

    volume_id: str


class CleanHold(Action, tag="cleanHold", frozen=True):
    """Release a frozen image from a copy that is over.

    :param image_id: the frozen image.
    :param hold: for whom it was frozen.
    """

    image_id: str
    hold: AnyHold


class CleanReplica(Action, tag="cleanTwin", frozen=True):
    """Write a missing or damaged replica of an entry or checkpoint again.

    :param kind: which of the two it is.
    :param number: of the entry or checkpoint.
    """

    kind: Literal["entry", "checkpoint"]
    number: int


class CleanStray(Action, tag="cleanStray", frozen=True):
    """Remove an entry of the log that follows nothing, by force only.

    :param entry: which one.
    """

    entry: EntryId


class CleanSize(Action, tag="cleanSize", frozen=True):
    """Settle the length of a volume whose file is longer than its record says.

    An interrupted extend is taken back. The size that a guest's QEMU gave its disk is taken over. What
    another program added to a Snapshot's volume is cut off, by force only.

    :param volume_id: the volume.
    """

    volume_id: str


class NameForeign(Action, tag="nameForeign", frozen=True):
    """Do nothing: a foreign file is in the repository, and only people can decide what to do with it.

    :param name: of the file, in the repository.
    """

    name: str


class NameSnapshots(Action, tag="nameSnapshots", frozen=True):
    """Do nothing: a user has made internal snapshots in a volume, and only people can give them up.

    :param volume_id: the volume.
    """

    volume_id: str


class Merge(Action, tag="merge", frozen=True):
    """Merge a weak image with the one volume that depends on it.

    :param image_id: the weak image.
    """

    image_id: str


class Optimize(Action, tag="optimize", frozen=True):
    """Build the better representation of a degraded image.

    :param image_id: the image.
    """

    image_id: str


class Mend(Action, tag="mend", frozen=True):
    """Complete a pending image, or restore one whose volume is missing or damaged.

    :param image_id: the image.
    """

    image_id: str


AnyAction = (
    CleanVolume
    | CleanGarbage
    | CleanLeftover
    | CleanProgress
    | CleanAttachment
    | CleanSwitch
    | CleanChanged
    | CleanHold
    | CleanReplica
    | CleanStray
    | CleanSize
    | NameForeign
    | NameSnapshots
    | Merge
    | Optimize
    | Mend
)


class FixData(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The opaque part of a fix: which repository, and what to do there.

    :param marker: the repository's identity, the same on every host.
    :param action: what to do.
    """

    marker: str
    action: AnyAction


class Fix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Something that check found, and that fixStorageRepository can run.

    :param fix_id: the same for the same finding, on every host.
    :param type: ``mend`` completes or restores an image; ``merge`` joins a removed image with the one volume
        that reads it; ``optimize`` builds what suits an image's strategy; ``clean`` deletes what nobody
        needs.
    :param description: what was found, for people.
    :param image_id: the image it is about, if the caller can see that image.
    :param runnable: whether it can run on this host now. A fix that only people can decide on never can.
    :param waits_for: why it cannot run.
    :param held_by: the host that works on it now.
    :param frees_bytes: space that it frees; null if not known.
    :param moves_bytes: bytes that it reads and writes; null if not known.
    :param needs_bytes: free space that it needs while it runs; null if not known.
    :param data: opaque; send the whole fix back as received.
    """

    fix_id: str
    type: FixType
    description: str
    image_id: str | None
    runnable: bool
    waits_for: str | None
    held_by: str | None
    frees_bytes: int | None
    moves_bytes: int | None
    needs_bytes: int | None
    data: FixData


def fix_type(action: AnyAction) -> FixType:
    """The one of the four types that an action belongs to."""
    if isinstance(action, Merge):
        return "merge"
    if isinstance(action, Optimize):
        return "optimize"
    return "mend" if isinstance(action, Mend) else "clean"


def fix_id(data: FixData) -> str:
    """The id of a fix: its type, and a hash of its target."""
    digest = hashlib.blake2b(msgspec.json.encode(data, order="sorted"), digest_size=12)
    return f"{fix_type(data.action)}-{digest.hexdigest()}"


def outlook(fix: Fix) -> str:
    """Whether a fix can run now, or what it waits for, in words for people."""
    if fix.runnable:
        return "can run"
    why = fix.waits_for or (f"{fix.held_by} works on it" if fix.held_by else "")
    return f"waits: {why}" if why else "waits"
