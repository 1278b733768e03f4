"""The options of the verbs: strict, with the names of the API on the wire."""

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
    """The name on the wire of a field's name in Python."""
    return _WIRE_NAMES.get(name) or re.sub("_(.)", lambda found: found[1].upper(), name)


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=wire_name):
    """What every verb with options accepts.

    :param auto_fix: false: commit only, and leave the fixes to checkStorageRepository.
    :param strategy: which of two ways to complete the same operation is valued; null for
        the verb's default.
    :param participating_repositories: look for existing images only in these; null for all that are
        connected. For fixStorageRepository: where a mend finds its source.
    :param image_hints: look for an image only in the repository given for it.
    """

    auto_fix: bool = True
    strategy: Strategy | None = None
    participating_repositories: tuple[RepoId, ...] | None = None
    image_hints: dict[ImageId, RepoId] = {}


class CreateSnapshotOptions(Options, kw_only=True, frozen=True):
    """Options of what makes an image.

    :param new_image_id: the caller's id; makes repeating the call safe.
    """

    new_image_id: ImageId | None = None


class CreateDiskOptions(CreateSnapshotOptions, kw_only=True, frozen=True):
    """Options of createVirtualDisk.

    :param optimize_now: go on to optimized instead of stopping at the first usable state.
    :param rate_limit: bytes per second of the work after the commit, 0 for none.
    """

    optimize_now: bool = False
    rate_limit: RateLimit = 0


class KindOptions(CreateDiskOptions, kw_only=True, frozen=True):
    """Options of what makes an image from other bytes.

    :param as_: ``snapshot`` makes the new image immutable.
    """

    as_: Literal["virtual_disk", "snapshot"] | None = None


class ImportOptions(KindOptions, kw_only=True, frozen=True):
    """Options of importImage.

    :param force: also a file that a running QEMU has open for writing: the caller answers for that
        all it has written is in the file. A file that changes while it is read is refused all the same.
    """

    force: bool = False


class CopyOptions(KindOptions, kw_only=True, frozen=True):
    """Options of copyImage.

    :param track_changes: keep the freeze point, so that the next difference costs what changed.
    """

    track_changes: bool = False


class RateOptions(Options, kw_only=True, frozen=True):
    """Options of what moves bytes in a task.

    :param rate_limit: bytes per second, 0 for none.
    """

    rate_limit: RateLimit = 0


class FixOptions(RateOptions, kw_only=True, frozen=True):
    """Options of fixStorageRepository.

    :param force: release data kept for a copy that cannot be looked at from here, delete a volume that
        this history of the repository cannot be shown to have made, cut off what another program has
        added to the volume of a Snapshot, or remove an entry of the log that follows nothing. The
        caller vouches that the copy has ended, or that nobody needs the data. It changes no other fix.
    :param run_first: run it before all that waits on this host, whatever its type.
    """

    force: bool = False
    run_first: bool = False


class CheckOptions(Options, kw_only=True, frozen=True):
    """Options of checkStorageRepository.

    :param deep: read every volume's own metadata and both copies of the log, and note in the
        repository what is damaged: a token needs the scope write for that.
    :param types: only fixes of these types.
    :param image_ids: only fixes of these images.
    """

    deep: bool = False
    types: tuple[FixType, ...] | None = None
    image_ids: tuple[ImageId, ...] | None = None


class SetUserDataOptions(Options, kw_only=True, frozen=True):
    """Options of setUserData.

    :param if_revision: change it only if the image still has this revision, as getImageInfo told it.
    """

    if_revision: str | None = None


class PrepareOptions(Options, kw_only=True, frozen=True):
    """Options of prepareImage.

    :param read_only: a Snapshot is read-only whatever this says; default true for Snapshots.
    :param owner: the caller's name of the guest; the same owner gets the same attachment. It has no control
        characters, nor marks of the direction of text.
    :param serve: ``nbd``: serve the image on a Unix socket while the caller stays.
    """

    read_only: bool | None = None
    owner: Owner | None = None
    serve: Literal["nbd"] | None = None


class TeardownOptions(Options, kw_only=True, frozen=True):
    """Options of teardownImage.

    :param owner: whose attachment; the same default as prepareImage's.
    :param host_id: the host whose attachment it is; default this one.
    :param force: also if that host may still be using it, a running QEMU has the disk open for
        writing, or another program has left an overlay of it in the repository: the caller answers
        for that.
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
