"""One struct for each verb: its parameters, their defaults, and their names on the wire."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from diskyard.model.options import (
    CopyOptions,
    CreateDiskOptions,
    CreateSnapshotOptions,
    ImageId,
    ImportOptions,
    Options,
    PrepareOptions,
    RateOptions,
    RepoId,
    SetUserDataOptions,
    SizeBytes,
    TeardownOptions,
)
from diskyard.model.records import ImageKind, ImportFormat, Strategy
from diskyard.model.repository_requests import (
    CheckStorageRepository,
    ConnectStorageRepository,
    CreateStorageRepository,
    DisconnectStorageRepository,
    FixStorageRepository,
    ListStorageRepositories,
    RemoveStorageRepository,
    Request,
)
from diskyard.model.status import Status

PAGE_LIMIT = 10_000


class CreateVirtualDisk(Request, kw_only=True, frozen=True):
    """Create a VirtualDisk, empty or with a Snapshot's bytes.

    It can be used at once. Only if the Snapshot is in another repository a mend copies its bytes
    first.

    :param target_repo_id: the repoId of the repository that the new image is to be in.
    :param size: of the disk in bytes: a multiple of 512, and not less than its Snapshot's.
    :param base_snapshot_id: the Snapshot whose bytes the disk starts with; null for zeros.
    :param user_data: any JSON of at most 16 KiB, kept as sent and never read.
    :param options: how to make it.
    """

    target_repo_id: RepoId
    size: SizeBytes
    base_snapshot_id: ImageId | None = None
    user_data: Any = msgspec.field(default_factory=dict)
    options: CreateDiskOptions = CreateDiskOptions()


class CreateSnapshot(Request, kw_only=True, frozen=True):
    """Keep what a VirtualDisk holds now as a Snapshot.

    Both can be used at once, whatever their size.

    :param target_repo_id: the repoId of the repository that the disk is in; the Snapshot is made there.
    :param base_virtual_disk_id: the disk.
    :param user_data: any JSON of at most 16 KiB, kept as sent and never read.
    :param options: how to make it.
    """

    target_repo_id: RepoId
    base_virtual_disk_id: ImageId
    user_data: Any = msgspec.field(default_factory=dict)
    options: CreateSnapshotOptions = CreateSnapshotOptions()


class CopyImage(Request, kw_only=True, frozen=True):
    """Copy an image, all of it or as the difference to a base in the target repository.

    The call returns when the copy exists; a mend then moves its bytes, of the moment of the call,
    while the source can be used and removed. A Snapshot keeps its id: where the target has it
    already nothing is copied.

    :param target_repo_id: the repoId of the repository that the new image is to be in.
    :param image_id: the image to copy, in any repository that is connected.
    :param base_image_id: the copy stores only what differs from this image, and reads the rest from
        it: an image of the target repository, or a Snapshot that is copied there later. null for a
        copy that stands by itself.
    :param user_data: any JSON of at most 16 KiB, kept as sent and never read. A copy
        does not inherit its source's.
    :param options: how to copy it.
    """

    target_repo_id: RepoId
    image_id: ImageId
    base_image_id: ImageId | None = None
    user_data: Any = msgspec.field(default_factory=dict)
    options: CopyOptions = CopyOptions()


class RemoveImage(Request, kw_only=True, frozen=True):
    """Remove an image; others that read its bytes keep them.

    An image that is still being made is cancelled by this.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the image.
    :param options: how to do it.
    """

    repository_id: RepoId
    image_id: ImageId
    options: Options = Options()


class GetImageStatus(Request, kw_only=True, frozen=True):
    """Ask whether an image is optimized, degraded or broken, and what works on it.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the image.
    """

    repository_id: RepoId
    image_id: ImageId


class ListImages(Request, kw_only=True, frozen=True):
    """List images, a page at a time, in the order of their ids.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param kind: only images of this kind.
    :param status: only images of this status.
    :param image_ids: only these; those that are not there are left out.
    :param limit: at most so many images in a page.
    :param cursor: the nextCursor of the page before; null for the first page.
    """

    repository_id: RepoId
    kind: ImageKind | None = None
    status: Status | None = None
    image_ids: tuple[ImageId, ...] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=PAGE_LIMIT)] = 1000
    cursor: str | None = None


class GetImageInfo(Request, kw_only=True, frozen=True):
    """Everything about one image that is for callers.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the image.
    """

    repository_id: RepoId
    image_id: ImageId


class SetUserData(Request, kw_only=True, frozen=True):
    """Replace an image's userData.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the image.
    :param user_data: any JSON of at most 16 KiB, kept as sent and never read.
    :param options: under which condition.
    """

    repository_id: RepoId
    image_id: ImageId
    user_data: Any
    options: SetUserDataOptions = SetUserDataOptions()


class SetStrategy(Request, kw_only=True, frozen=True):
    """Change what an image is optimized for.

    Its bytes are not touched: checkStorageRepository lists the optimize fix that follows from it.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the image.
    :param strategy: ``space`` to store little, ``performance`` to be read and written quickly.
    :param options: how to do it.
    """

    repository_id: RepoId
    image_id: ImageId
    strategy: Strategy
    options: Options = Options()


class ExtendVirtualDisk(Request, kw_only=True, frozen=True):
    """Make a VirtualDisk larger; what is new reads zeros.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the disk.
    :param size: the new size in bytes: a multiple of 512, and not less than it has.
    :param options: how to do it.
    """

    repository_id: RepoId
    image_id: ImageId
    size: SizeBytes
    options: Options = Options()


class RevertVirtualDisk(Request, kw_only=True, frozen=True):
    """Give a VirtualDisk a Snapshot's bytes and size; it keeps its id.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the disk.
    :param snapshot_id: a Snapshot of the same repository.
    :param options: how to do it.
    """

    repository_id: RepoId
    image_id: ImageId
    snapshot_id: ImageId
    options: Options = Options()


class UntrackChanges(Request, kw_only=True, frozen=True):
    """Stop tracking a VirtualDisk's changes since a copy, or since all copies.

    What was kept for it can be merged then.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the disk.
    :param copy_image_id: the copy; null for all.
    """

    repository_id: RepoId
    image_id: ImageId
    copy_image_id: ImageId | None = None


class PrepareImage(Request, kw_only=True, frozen=True):
    """Attach an image: what QEMU and libvirt need to open it.

    A VirtualDisk has one writer anywhere; any number may read when none writes. The attachment
    outlives the daemon and its host's restart, until teardownImage.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the image.
    :param options: for whom, and how.
    """

    repository_id: RepoId
    image_id: ImageId
    options: PrepareOptions = PrepareOptions()


class TeardownImage(Request, kw_only=True, frozen=True):
    """End an attachment; if there is none, nothing happens.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the image.
    :param options: whose attachment it is.
    """

    repository_id: RepoId
    image_id: ImageId
    options: TeardownOptions = TeardownOptions()


class ImportImage(Request, kw_only=True, frozen=True):
    """Make an image from a file of this host; its format is never guessed.

    The call returns when the image exists; a mend then copies its bytes from the file, which must not
    change until that is done. A file that refers to other files is refused.

    :param target_repo_id: the repoId of the repository that the new image is to be in.
    :param path: absolute path of the file on the daemon's host, inside a folder allowed for transfers: by the
        configuration, or by the caller's token.
    :param format: the file's format.
    :param user_data: any JSON of at most 16 KiB, kept as sent and never read.
    :param options: how to make it.
    """

    target_repo_id: RepoId
    path: str
    format: ImportFormat
    user_data: Any = msgspec.field(default_factory=dict)
    options: ImportOptions = ImportOptions()


class ExportImage(Request, kw_only=True, frozen=True):
    """Write an image to a new file of this host, which gets its name when it is durable.

    What is written is what the image holds when the task starts.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the image.
    :param path: absolute path of the new file on the daemon's host, inside a folder allowed for
        transfers. Nothing must have that name.
    :param format: the format to write.
    :param options: how to do it.
    """

    repository_id: RepoId
    image_id: ImageId
    path: str
    format: ImportFormat
    options: RateOptions = RateOptions()


class ListTasks(Request, kw_only=True, frozen=True):
    """List this host's tasks of the last day, of every process.

    :param image_id: only tasks on this image.
    """

    image_id: ImageId | None = None


class GetTask(Request, kw_only=True, frozen=True):
    """One task.

    :param task_id: its id, as a verb, an event or listTasks told it.
    """

    task_id: str


class StopTask(Request, kw_only=True, frozen=True):
    """Stop a task; what it has done stays and its fix stays listed.

    A task that has ended already is left as it is.

    :param task_id: its id, as a verb, an event or listTasks told it.
    """

    task_id: str


class GetHostInfo(Request, kw_only=True, frozen=True):
    """This host: its id, version, formats and what they can do."""


__all__ = [
    "PAGE_LIMIT",
    "CheckStorageRepository",
    "ConnectStorageRepository",
    "CopyImage",
    "CreateSnapshot",
    "CreateStorageRepository",
    "CreateVirtualDisk",
    "DisconnectStorageRepository",
    "ExportImage",
    "ExtendVirtualDisk",
    "FixStorageRepository",
    "GetHostInfo",
    "GetImageInfo",
    "GetImageStatus",
    "GetTask",
    "ImportImage",
    "ListImages",
    "ListStorageRepositories",
    "ListTasks",
    "PrepareImage",
    "RemoveImage",
    "RemoveStorageRepository",
    "Request",
    "RevertVirtualDisk",
    "SetStrategy",
    "SetUserData",
    "StopTask",
    "TeardownImage",
    "UntrackChanges",
]
