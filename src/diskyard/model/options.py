"""The options of the verbs. They are strict, and have the API's names on the wire."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from diskyard.model.records import IMAGE_SIZE_LIMIT_BYTES, SECTOR_BYTES, UUID_PATTERN, ImportFormat, Strategy

RepoId = Annotated[
    str, msgspec.Meta(min_length=1, max_length=255, description="the caller's name of a repository")
]
ImageId = Annotated[str, msgspec.Meta(pattern=UUID_PATTERN, description="a UUID in lower case")]
SizeBytes = Annotated[
    int,
    msgspec.Meta(
        ge=SECTOR_BYTES,
        le=IMAGE_SIZE_LIMIT_BYTES,
        multiple_of=SECTOR_BYTES,
        description="bytes, a multiple of 512",
    ),
]
Owner = Annotated[str, msgspec.Meta(min_length=1, max_length=255, description="the caller's name of a guest")]
RateLimit = Annotated[int, msgspec.Meta(ge=0, le=1 << 62, description="bytes per second, 0 for none")]
FixType = Literal["clean", "optimize", "merge", "mend"]

_WIRE_NAMES = {"auto_fix": "AutoFix", "as_": "as", "host_id": "hostID"}


def wire_name(name: str) -> str:
    """A field's name on the wire, from its name in Python."""
    return _WIRE_NAMES.get(name) or re.sub("_(.)", lambda found: found[1].upper(), name)


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=wire_name):
    """What every verb with options accepts.

    :param auto_fix: false: only commit, and leave the fixes to checkStorageRepository.
    :param strategy: which of two ways to complete the operation is preferred; null for the
        verb's default.
    :param participating_repositories: search for existing images only in these repositories; null for
        all connected ones. For fixStorageRepository: where a mend may find its source.
    :param image_hints: search for an image only in the repository that is given for it.
    """

    auto_fix: bool = True
    strategy: Strategy | None = None
    participating_repositories: tuple[RepoId, ...] | None = None
    image_hints: dict[ImageId, RepoId] = {}


class CreateSnapshotOptions(Options, kw_only=True, frozen=True):
    """Options of verbs that make an image.

    :param new_image_id: an id that the caller chooses; makes repeating the call safe.
    """

    new_image_id: ImageId | None = None


class CreateDiskOptions(CreateSnapshotOptions, kw_only=True, frozen=True):
    """Options of createVirtualDisk.

    :param optimize_now: continue until the image is optimized, instead of stopping when it can be used.
    :param rate_limit: limit of the work after the commit in bytes per second, 0 for none.
    """

    optimize_now: bool = False
    rate_limit: RateLimit = 0


class KindOptions(CreateDiskOptions, kw_only=True, frozen=True):
    """Options of verbs that make an image from existing bytes.

    :param as_: ``snapshot`` makes the new image immutable.
    """

    as_: Literal["virtual_disk", "snapshot"] | None = None


class ImportOptions(KindOptions, kw_only=True, frozen=True):
    """Options of importImage.

    :param force: accept a file that a running QEMU has open for writing: the caller vouches that
        all its writes are in the file. A file that changes while it is read is still refused.
    """

    force: bool = False


class CopyOptions(KindOptions, kw_only=True, frozen=True):
    """Options of copyImage.

    :param track_changes: keep the freeze point, so that the cost of the next difference depends only on what
        has changed.
    """

    track_changes: bool = False


class RateOptions(Options, kw_only=True, frozen=True):
    """Options of verbs that move bytes in a task.

    :param rate_limit: limit in bytes per second, 0 for none.
    """

    rate_limit: RateLimit = 0


class FixOptions(RateOptions, kw_only=True, frozen=True):
    """Options of fixStorageRepository.

    :param force: release data kept for a copy that cannot be checked from here; delete a volume that
        this history of the repository cannot be shown to have made; cut off what another program has
        added to the volume of a Snapshot; accept the bytes of a volume that another program has changed;
        or remove an entry of the log that follows nothing. The caller vouches that the copy has ended, or
        that nobody needs the data. A mend that waits for the
        base of a copy loses nothing by force: it stores the whole image, without a base. It changes no
        other fix.
    :param run_first: run it before all tasks that wait on this host, whatever its type.
    """

    force: bool = False
    run_first: bool = False


class CheckOptions(Options, kw_only=True, frozen=True):
    """Options of checkStorageRepository.

    :param deep: read every volume's own metadata and both replicas of the log, and record in the
        repository what is damaged: a token needs the scope write for that.
    :param types: only fixes of these types.
    :param image_ids: only fixes of these images.
    """

    deep: bool = False
    types: tuple[FixType, ...] | None = None
    image_ids: tuple[ImageId, ...] | None = None


class SetUserDataOptions(Options, kw_only=True, frozen=True):
    """Options of setUserData.

    :param if_revision: change it only if the image still has this revision, as getImageInfo gave it.
    """

    if_revision: str | None = None


class LiveGuest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to talk to a guest while it runs.

    :param qmp: the path of the socket on which a monitor of its QEMU listens, one that is for Diskyard alone
        (``-qmp unix:PATH,server=on,wait=off``).
    """

    qmp: Annotated[str, msgspec.Meta(min_length=1, max_length=107, description="an absolute path")]


class PrepareOptions(Options, kw_only=True, frozen=True):
    """Options of prepareImage.

    :param read_only: default true for Snapshots, for which false is refused, and false for VirtualDisks.
    :param owner: the caller's name of the guest; the same owner gets the same attachment. It must not contain
        control characters or marks of the direction of text.
    :param serve: ``nbd``: serve the image on a Unix socket, until it is torn down or the serving process
        ends.
    :param live: how to talk to the guest, which runs and has the disk open as this verb returned it. Then
        createSnapshot, copyImage and exportImage work while it runs.
    """

    read_only: bool | None = None
    owner: Owner | None = None
    serve: Literal["nbd"] | None = None
    live: LiveGuest | None = None


class TeardownOptions(Options, kw_only=True, frozen=True):
    """Options of teardownImage.

    :param owner: whose attachment to end; the same default as prepareImage's.
    :param host_id: the host that has the attachment; default this one.
    :param force: end it even if that host may still be using it, a running QEMU has the disk open for
        writing, or another program has left an overlay of it in the repository: the caller vouches
        that this is safe. A guest of this host that can be talked to must have ended all the same.
    """

    owner: Owner | None = None
    host_id: str | None = None
    force: bool = False


__all__ = [
    "CheckOptions",
    "CopyOptions",
    "CreateDiskOptions",
    "CreateSnapshotOptions",
    "FixOptions",
    "FixType",
    "ImageId",
    "ImportFormat",
    "ImportOptions",
    "LiveGuest",
    "Options",
    "Owner",
    "PrepareOptions",
    "RateLimit",
    "RateOptions",
    "RepoId",
    "SetUserDataOptions",
    "SizeBytes",
    "TeardownOptions",
    "wire_name",
]
