"""One struct for each verb: its parameters, their defaults, and their names on the wire."""

from __future__ import annotations

from typing import Any

import msgspec

from diskyard.model.fix import Fix
from diskyard.model.options import (
    CheckOptions,
    CopyOptions,
    CreateDiskOptions,
    CreateSnapshotOptions,
    FixOptions,
    ImageId,
    ImportOptions,
    Options,
    PrepareOptions,
    RateOptions,
    RepoId,
    SetUserDataOptions,
    SizeBytes,
    TeardownOptions,
    wire_name,
)
from diskyard.model.records import ImageKind, ImportFormat, Strategy
from diskyard.model.status import Status


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=wire_name):
    """Base of all requests."""


class ConnectStorageRepository(Request, kw_only=True, frozen=True):
    """Connect a repository on this host under a name of the caller's."""

    repo_id: RepoId
    repo_format: str
    connection_parameters: dict[str, Any] = {}


class DisconnectStorageRepository(Request, kw_only=True, frozen=True):
    """Disconnect a repository from this host."""

    repo_id: RepoId


class CreateStorageRepository(Request, kw_only=True, frozen=True):
    """Make an empty repository in an empty place."""

    repo_format: str
    connection_parameters: dict[str, Any] = {}


class RemoveStorageRepository(Request, kw_only=True, frozen=True):
    """Remove a repository that holds no image."""

    repository_id: RepoId


class ListStorageRepositories(Request, kw_only=True, frozen=True):
    """List the repositories connected on this host, with their room."""


class CreateVirtualDisk(Request, kw_only=True, frozen=True):
    """Create a VirtualDisk, empty or with a Snapshot's bytes."""

    target_repo_id: RepoId
    size: SizeBytes
    base_snapshot_id: ImageId | None = None
    user_data: Any = {}
    options: CreateDiskOptions = CreateDiskOptions()


class CreateSnapshot(Request, kw_only=True, frozen=True):
    """Keep what a VirtualDisk holds now as a Snapshot."""

    target_repo_id: RepoId
    base_virtual_disk_id: ImageId
    user_data: Any = {}
    options: CreateSnapshotOptions = CreateSnapshotOptions()


class CopyImage(Request, kw_only=True, frozen=True):
    """Copy an image, all of it or as the difference to a base in the target repository."""

    target_repo_id: RepoId
    image_id: ImageId
    base_image_id: ImageId | None = None
    user_data: Any = {}
    options: CopyOptions = CopyOptions()


class RemoveImage(Request, kw_only=True, frozen=True):
    """Remove an image; others that read its bytes keep them."""

    repository_id: RepoId
    image_id: ImageId
    options: Options = Options()


class GetImageStatus(Request, kw_only=True, frozen=True):
    """Ask whether an image is optimized, degraded or broken, and what works on it."""

    repository_id: RepoId
    image_id: ImageId


class CheckStorageRepository(Request, kw_only=True, frozen=True):
    """List the fixes that a repository needs; changes nothing."""

    repository_id: RepoId
    options: CheckOptions = CheckOptions()


class FixStorageRepository(Request, kw_only=True, frozen=True):
    """Start a fix that check listed."""

    repository_id: RepoId
    fix: Fix
    options: FixOptions = FixOptions()


class ListImages(Request, kw_only=True, frozen=True):
    """List images, a page at a time, in the order of their ids."""

    repository_id: RepoId
    kind: ImageKind | None = None
    status: Status | None = None
    image_ids: tuple[ImageId, ...] | None = None
    limit: int = 1000
    cursor: str | None = None


class GetImageInfo(Request, kw_only=True, frozen=True):
    """Everything about one image that is for callers."""

    repository_id: RepoId
    image_id: ImageId


class SetUserData(Request, kw_only=True, frozen=True):
    """Replace an image's userData."""

    repository_id: RepoId
    image_id: ImageId
    user_data: Any
    options: SetUserDataOptions = SetUserDataOptions()


class SetStrategy(Request, kw_only=True, frozen=True):
    """Change what an image is optimized for."""

    repository_id: RepoId
    image_id: ImageId
    strategy: Strategy
    options: Options = Options()


class ExtendVirtualDisk(Request, kw_only=True, frozen=True):
    """Make a VirtualDisk larger; what is new reads zeros."""

    repository_id: RepoId
    image_id: ImageId
    size: SizeBytes
    options: Options = Options()


class RevertVirtualDisk(Request, kw_only=True, frozen=True):
    """Give a VirtualDisk a Snapshot's bytes and size; it keeps its id."""

    repository_id: RepoId
    image_id: ImageId
    snapshot_id: ImageId
    options: Options = Options()


class UntrackChanges(Request, kw_only=True, frozen=True):
    """Stop tracking a VirtualDisk's changes since a copy, or since all copies."""

    repository_id: RepoId
    image_id: ImageId
    copy_image_id: ImageId | None = None


class PrepareImage(Request, kw_only=True, frozen=True):
    """Attach an image: what QEMU and libvirt need to open it."""

    repository_id: RepoId
    image_id: ImageId
    options: PrepareOptions = PrepareOptions()


class TeardownImage(Request, kw_only=True, frozen=True):
    """End an attachment; if there is none, nothing happens."""

    repository_id: RepoId
    image_id: ImageId
    options: TeardownOptions = TeardownOptions()


class ImportImage(Request, kw_only=True, frozen=True):
    """Make an image from a file of this host; its format is never guessed."""

    target_repo_id: RepoId
    path: str
    format: ImportFormat
    user_data: Any = {}
    options: ImportOptions = ImportOptions()


class ExportImage(Request, kw_only=True, frozen=True):
    """Write an image to a new file of this host, which gets its name when it is durable."""

    repository_id: RepoId
    image_id: ImageId
    path: str
    format: ImportFormat
    options: RateOptions = RateOptions()


class ListTasks(Request, kw_only=True, frozen=True):
    """List this host's tasks of the last day, of every process."""

    image_id: ImageId | None = None


class GetTask(Request, kw_only=True, frozen=True):
    """One task."""

    task_id: str


class StopTask(Request, kw_only=True, frozen=True):
    """Stop a task; what it has done stays and its fix stays listed."""

    task_id: str


class GetHostInfo(Request, kw_only=True, frozen=True):
    """This host: its id, version, formats and what they can do."""
