"""The verbs about images."""

from __future__ import annotations

from diskyard.model import requests as ask
from diskyard.model.results import ImageInfo, ImagePage, ImageStatus
from diskyard.model.verbs.shown import COPY, DISK, GIB, SNAPSHOT, TASK
from diskyard.model.verbs.verb import IMAGE, NEW_IMAGE, OPENED, READING, WRITING, Example, Verb

_NEW = "f3a6d5c8-1b2e-4f70-8c9d-0e1f2a3b4c5d"

_IMAGE_INFO = {
    "imageId": DISK,
    "kind": "virtual_disk",
    "sizeBytes": 10 * GIB,
    "exclusiveBytes": 196608,
    "sharedBytes": 2147483648,
    "strategy": "space",
    "status": "optimized",
    "createdAt": "2025-11-20T10:15:02.113094Z",
    "capturedAt": "2025-11-20T10:15:02.113094Z",
    "userData": {"name": "web-1", "labels": ["web"]},
    "revision": "41.5d1f0c9e7b3a4a6f8c2d1e0f9a8b7c6d",
    "tracking": [],
    "attachments": [
        {
            "hostID": "kvm-07",
            "owner": "web-1",
            "mode": "read_write",
            "attachedAt": "2025-11-20T10:16:40.500312Z",
            "live": False,
            "switching": False,
        }
    ],
}

VERBS = (
    Verb(
        ask.CreateVirtualDisk,
        "write",
        "operations.create",
        result=str,
        starts_tasks=True,
        errors=NEW_IMAGE | IMAGE | OPENED | {"NotASnapshot"},
        examples=(
            Example(
                "An empty disk; safe to repeat because the caller chose its id",
                {
                    "targetRepoId": "fast",
                    "size": 10 * GIB,
                    "userData": {"name": "web-1"},
                    "options": {"newImageId": _NEW},
                },
                _NEW,
            ),
            Example(
                "A disk with a Snapshot's bytes",
                {"targetRepoId": "fast", "size": 10 * GIB, "baseSnapshotId": SNAPSHOT},
                DISK,
            ),
        ),
    ),
    Verb(
        ask.CreateSnapshot,
        "write",
        "operations.create",
        result=str,
        errors=NEW_IMAGE | IMAGE | OPENED | {"NotAVirtualDisk"},
        examples=(Example("Of a disk", {"targetRepoId": "fast", "baseVirtualDiskId": DISK}, SNAPSHOT),),
    ),
    Verb(
        ask.CopyImage,
        "write",
        "operations.copy",
        result=str,
        starts_tasks=True,
        errors=NEW_IMAGE | IMAGE | OPENED | {"NotASnapshot", "NotAVirtualDisk"},
        examples=(
            Example(
                "A Snapshot into another repository, as the difference to one copied before",
                {
                    "targetRepoId": "backup",
                    "imageId": SNAPSHOT,
                    "baseImageId": "0c4d3e2f-1a0b-4998-8776-655443322110",
                },
                SNAPSHOT,
            ),
            Example(
                "What a disk holds now, as an immutable copy, at most 50 MiB per second",
                {
                    "targetRepoId": "backup",
                    "imageId": DISK,
                    "options": {"as": "snapshot", "trackChanges": True, "rateLimit": 52428800},
                },
                COPY,
            ),
        ),
    ),
    Verb(
        ask.ListImages,
        "read",
        "operations.queries",
        result=ImagePage,
        is_long=True,
        errors=READING,
        examples=(
            Example(
                "The first page of the disks",
                {"repositoryId": "fast", "kind": "virtual_disk", "limit": 100},
                {"images": [_IMAGE_INFO], "nextCursor": None},
            ),
        ),
    ),
    Verb(
        ask.GetImageInfo,
        "read",
        "operations.queries",
        result=ImageInfo,
        errors=READING | IMAGE,
        examples=(Example("One disk", {"repositoryId": "fast", "imageId": DISK}, _IMAGE_INFO),),
    ),
    Verb(
        ask.GetImageStatus,
        "read",
        "operations.queries",
        result=ImageStatus,
        errors=READING | IMAGE,
        examples=(
            Example(
                "A copy whose bytes are still coming",
                {"repositoryId": "backup", "imageId": COPY},
                {
                    "status": "broken",
                    "hostID": "kvm-07",
                    "stage": "1/1",
                    "percent_complete": 62,
                    "last_error": "",
                    "taskId": TASK,
                },
            ),
        ),
    ),
    Verb(
        ask.SetUserData,
        "write",
        "operations.change",
        is_of_guests=True,
        errors=WRITING | IMAGE | {"RevisionMismatch"},
        examples=(
            Example(
                "Only if nobody has changed it since it was read",
                {
                    "repositoryId": "fast",
                    "imageId": DISK,
                    "userData": {"name": "web-1", "labels": ["web", "blue"]},
                    "options": {"ifRevision": "41.5d1f0c9e7b3a4a6f8c2d1e0f9a8b7c6d"},
                },
            ),
        ),
    ),
    Verb(
        ask.SetStrategy,
        "write",
        "operations.change",
        errors=WRITING | IMAGE,
        examples=(
            Example("For speed", {"repositoryId": "fast", "imageId": DISK, "strategy": "performance"}),
        ),
    ),
    Verb(
        ask.ExtendVirtualDisk,
        "write",
        "operations.sizes",
        errors=WRITING | IMAGE | OPENED | {"NotAVirtualDisk", "LeaseHeld"},
        examples=(Example("To 20 GiB", {"repositoryId": "fast", "imageId": DISK, "size": 20 * GIB}),),
    ),
    Verb(
        ask.RevertVirtualDisk,
        "write",
        "operations.change",
        starts_tasks=True,
        errors=WRITING | IMAGE | OPENED | {"NotAVirtualDisk", "NotASnapshot", "LeaseHeld"},
        examples=(
            Example("To a Snapshot", {"repositoryId": "fast", "imageId": DISK, "snapshotId": SNAPSHOT}),
        ),
    ),
    Verb(
        ask.UntrackChanges,
        "write",
        "operations.change",
        starts_tasks=True,
        errors=WRITING | IMAGE | {"NotAVirtualDisk"},
        examples=(Example("Since all copies", {"repositoryId": "fast", "imageId": DISK}),),
    ),
    Verb(
        ask.RemoveImage,
        "write",
        "operations.change",
        starts_tasks=True,
        errors=WRITING | IMAGE | {"ImageInUse"},
        examples=(Example("A Snapshot", {"repositoryId": "fast", "imageId": SNAPSHOT}),),
    ),
)
