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

    The disk can be used at once, unless the Snapshot is in another repository: then a mend copies
    its bytes first.

    :param target_repo_id: the repoId of the repository in which to make the image.
    :param size: the disk's size in bytes: a multiple of 512, and not less than its Snapshot's.
    :param base_snapshot_id: the Snapshot whose bytes the disk starts with; null for zeros.
    :param user_data: any JSON of at most 16 KiB, stored as sent and never interpreted.
    :param options: how to make it.
    """

    target_repo_id: RepoId
    size: SizeBytes
    base_snapshot_id: ImageId | None = None
    user_data: Any = msgspec.field(default_factory=dict)
    options: CreateDiskOptions = CreateDiskOptions()


class CreateSnapshot(Request, kw_only=True, frozen=True):
    """Keep what a VirtualDisk holds now as a Snapshot.

    The disk and the Snapshot can both be used at once, whatever their size.

    :param target_repo_id: the repoId of the repository that holds the disk; the Snapshot is made there.
    :param base_virtual_disk_id: the disk.
    :param user_data: any JSON of at most 16 KiB, stored as sent and never interpreted.
    :param options: how to make it.
    """

    target_repo_id: RepoId
    base_virtual_disk_id: ImageId
    user_data: Any = msgspec.field(default_factory=dict)
    options: CreateSnapshotOptions = CreateSnapshotOptions()


class CopyImage(Request, kw_only=True, frozen=True):
    """Copy an image, either whole or as the difference to a base in the target repository.

    The call returns when the copy exists. A mend then moves the bytes that the image had at the
    moment of the call; meanwhile the source can be used, and even removed. A Snapshot keeps its id:
    if the target has it already, nothing is copied, and if the target has it broken, a mend restores it.

    :param target_repo_id: the repoId of the repository in which to make the copy.
    :param image_id: the image to copy, in any connected repository.
    :param base_image_id: the copy stores only what differs from this image, and reads the rest from
        it: an image of the target repository, or a Snapshot that is copied there later. The copy
        waits for such a Snapshot; if that never comes, its mend with force stores the whole copy. null
        for a copy that stands by itself.
    :param user_data: any JSON of at most 16 KiB, stored as sent and never interpreted. A copy
        does not inherit its source's.
    :param options: how to copy it.
    """

    target_repo_id: RepoId
    image_id: ImageId
    base_image_id: ImageId | None = None
    user_data: Any = msgspec.field(default_factory=dict)
    options: CopyOptions = CopyOptions()


class RemoveImage(Request, kw_only=True, frozen=True):
    """Remove an image; other images that read its bytes keep them.

    Removing an image that is still being made cancels that work. An image that is attached, or that a copy
    needs as its base and does not read yet, is not removed.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the image.
    :param options: how to do it.
    """

    repository_id: RepoId
    image_id: ImageId
    options: Options = Options()


class GetImageStatus(Request, kw_only=True, frozen=True):
    """Ask whether an image is optimized, degraded or broken, and which task works on it.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the image.
    """

    repository_id: RepoId
    image_id: ImageId


class ListImages(Request, kw_only=True, frozen=True):
    """List images, one page at a time, ordered by id.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param kind: only images of this kind.
    :param status: only images of this status.
    :param image_ids: only these; ids that the repository does not have are left out.
    :param limit: the maximum number of images in a page.
    :param cursor: the nextCursor of the previous page; null for the first page.
    """

    repository_id: RepoId
    kind: ImageKind | None = None
    status: Status | None = None
    image_ids: tuple[ImageId, ...] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=PAGE_LIMIT)] = 1000
    cursor: str | None = None


class GetImageInfo(Request, kw_only=True, frozen=True):
    """Get everything that callers may know about one image.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the image.
    """

    repository_id: RepoId
    image_id: ImageId


class SetUserData(Request, kw_only=True, frozen=True):
    """Replace an image's userData.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the image.
    :param user_data: any JSON of at most 16 KiB, stored as sent and never interpreted.
    :param options: the condition for the change.
    """

    repository_id: RepoId
    image_id: ImageId
    user_data: Any
    options: SetUserDataOptions = SetUserDataOptions()


class SetStrategy(Request, kw_only=True, frozen=True):
    """Change what an image is optimized for.

    The image's bytes are not touched: checkStorageRepository lists the optimize fix that follows.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the image.
    :param strategy: ``space`` to use little space, ``performance`` to be read and written quickly.
    :param options: how to do it.
    """

    repository_id: RepoId
    image_id: ImageId
    strategy: Strategy
    options: Options = Options()


class ExtendVirtualDisk(Request, kw_only=True, frozen=True):
    """Make a VirtualDisk larger; the new part reads as zeros.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the disk.
    :param size: the new size in bytes: a multiple of 512, and not less than the current size.
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

    The data that was kept for tracking can then be merged.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the disk.
    :param copy_image_id: the copy; null for all copies.
    """

    repository_id: RepoId
    image_id: ImageId
    copy_image_id: ImageId | None = None


class PrepareImage(Request, kw_only=True, frozen=True):
    """Attach an image, and get what QEMU and libvirt need to open it.

    A VirtualDisk has at most one writer, over all hosts. While it has none, any number of readers
    may attach it. The attachment lasts until teardownImage, even if the daemon or its host restarts.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the image.
    :param options: for which owner, and how.
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
    """Make an image from a file of this host; the file's format is never guessed.

    The call returns when the image exists. A mend then copies the bytes from the file, which must not
    change until the mend is done. A file that refers to other files is refused.

    :param target_repo_id: the repoId of the repository in which to make the image.
    :param path: absolute path of the file on the daemon's host, inside a directory that the configuration,
        or the caller's token, allows for transfers.
    :param format: the file's format.
    :param user_data: any JSON of at most 16 KiB, stored as sent and never interpreted.
    :param options: how to make it.
    """

    target_repo_id: RepoId
    path: str
    format: ImportFormat
    user_data: Any = msgspec.field(default_factory=dict)
    options: ImportOptions = ImportOptions()


class ExportImage(Request, kw_only=True, frozen=True):
    """Write an image to a new file of this host, which gets its name when it is durable.

    The file contains what the image holds when the task starts.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param image_id: the image.
    :param path: absolute path of the new file on the daemon's host, inside a directory that is allowed for
        transfers. The path must not exist.
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
    """Get one task.

    :param task_id: its id, as a verb, an event or listTasks gave it.
    """

    task_id: str


class StopTask(Request, kw_only=True, frozen=True):
    """Stop a task; the work that it has done stays, and its fix stays listed.

    A task that has ended already is left as it is.

    :param task_id: its id, as a verb, an event or listTasks gave it.
    """

    task_id: str


class GetHostInfo(Request, kw_only=True, frozen=True):
    """Get this host's id, its version, and its repository formats with their capabilities."""


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
