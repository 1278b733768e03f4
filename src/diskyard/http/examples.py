"""One or more examples of every verb: the request and the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GIB = 1 << 30
_DISK = "5b1c9f0e-3a44-4d0c-8f2e-6f5f6a0f7d11"
_SNAPSHOT = "c2d8a7f4-90b1-4c55-9d1e-2f7f0a6f9e52"
_COPY = "8e0d2b36-7f1a-4b7e-a0c3-51d6c1f8b903"
_NEW = "f3a6d5c8-1b2e-4f70-8c9d-0e1f2a3b4c5d"
_TASK = "8cf5b9ef-453e-4c7f-a361-79088329d29c"


@dataclass(frozen=True, slots=True)
class Example:
    """One call.

    :param shows: what it is an example of.
    :param request: the parameters as sent.
    :param answer: what is answered, if all goes well.
    """

    shows: str
    request: dict[str, Any]
    answer: Any = None


_MERGE_FIX = {
    "fixId": "merge-9214c24e6af5176b33ff3108",
    "type": "merge",
    "description": "merge a removed image down with the volume that reads it",
    "imageId": _DISK,
    "runnable": True,
    "waitsFor": None,
    "heldBy": None,
    "freesBytes": 0,
    "movesBytes": 262144,
    "needsBytes": 262144,
    "data": {
        "marker": "9962ce45e6884c7692c6478d6fdf8595",
        "action": {"do": "merge", "imageId": "462e9af7-dd6d-4e88-a47e-e18f031c9e0f"},
    },
}

_VOLUME = "/srv/images/volumes/000000000000000c-1c3577cc-b679-4d32-8394-cc0698d30e7e.raw"

_IMAGE_INFO = {
    "imageId": _DISK,
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
        }
    ],
}

_MEND = {
    "taskId": _TASK,
    "verb": "mend",
    "repositoryId": "backup",
    "imageId": _COPY,
    "state": "running",
    "stage": "1/1",
    "percent": 62,
    "doneBytes": 1331691520,
    "totalBytes": 2147483648,
    "rateBytesPerS": 209715200,
    "remainingS": 4,
    "changed": None,
    "error": None,
    "queuedAt": "2025-11-20T10:15:02.113094Z",
    "startedAt": "2025-11-20T10:15:02.115210Z",
    "endedAt": None,
}

_QUEUED = {
    "state": "queued",
    "stage": "",
    "percent": -1,
    "doneBytes": 0,
    "totalBytes": 0,
    "rateBytesPerS": 0,
    "remainingS": None,
    "startedAt": None,
}

EXAMPLES: dict[str, tuple[Example, ...]] = {
    "connectStorageRepository": (
        Example(
            "A directory of a local file system",
            {
                "repoId": "fast",
                "repoFormat": "localfs-1.0",
                "connectionParameters": {"path": "/srv/images"},
            },
        ),
    ),
    "disconnectStorageRepository": (Example("By its name on this host", {"repoId": "fast"}),),
    "createStorageRepository": (
        Example(
            "In a directory that is empty or does not exist",
            {"repoFormat": "localfs-1.0", "connectionParameters": {"path": "/srv/images"}},
        ),
        Example(
            "For the users of a group",
            {
                "repoFormat": "localfs-1.0",
                "connectionParameters": {
                    "path": "/srv/shared",
                    "owner": "vmadmin",
                    "group": "images",
                    "mode": "0751",
                },
            },
        ),
    ),
    "removeStorageRepository": (Example("An empty repository", {"repositoryId": "fast"}),),
    "listStorageRepositories": (
        Example(
            "One repository",
            {},
            [
                {
                    "repoId": "fast",
                    "repoFormat": "localfs-1.0",
                    "capacityBytes": 1000204886016,
                    "usedBytes": 2148925440,
                    "freeBytes": 812739297280,
                    "provisionedBytes": 20 * GIB,
                    "reclaimableBytes": 0,
                    "mergeableBytes": 0,
                    "retainedBytes": 0,
                    "strongBytes": 2148925440,
                    "buildingBytes": 0,
                    "health": "ok",
                    "sdmHost": None,
                    "connectionParameters": {"path": "/srv/images"},
                }
            ],
        ),
    ),
    "createVirtualDisk": (
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
            {"targetRepoId": "fast", "size": 10 * GIB, "baseSnapshotId": _SNAPSHOT},
            _DISK,
        ),
    ),
    "createSnapshot": (
        Example("Of a disk", {"targetRepoId": "fast", "baseVirtualDiskId": _DISK}, _SNAPSHOT),
    ),
    "copyImage": (
        Example(
            "A Snapshot into another repository, as the difference to one copied before",
            {
                "targetRepoId": "backup",
                "imageId": _SNAPSHOT,
                "baseImageId": "0c4d3e2f-1a0b-4998-8776-655443322110",
            },
            _SNAPSHOT,
        ),
        Example(
            "What a disk holds now, as an immutable copy, at most 50 MiB per second",
            {
                "targetRepoId": "backup",
                "imageId": _DISK,
                "options": {"as": "snapshot", "trackChanges": True, "rateLimit": 52428800},
            },
            _COPY,
        ),
    ),
    "importImage": (
        Example(
            "A cloud image, as a Snapshot to create disks from",
            {
                "targetRepoId": "fast",
                "path": "/var/lib/diskyard/transfer/debian-12.qcow2",
                "format": "qcow2",
                "userData": {"name": "debian-12"},
                "options": {"as": "snapshot"},
            },
            _SNAPSHOT,
        ),
    ),
    "exportImage": (
        Example(
            "To a new qcow2 file",
            {
                "repositoryId": "fast",
                "imageId": _SNAPSHOT,
                "path": "/var/lib/diskyard/transfer/web-1.qcow2",
                "format": "qcow2",
            },
            {**_MEND, **_QUEUED, "verb": "exportImage", "repositoryId": "fast", "imageId": _SNAPSHOT},
        ),
    ),
    "listImages": (
        Example(
            "The first page of the disks",
            {"repositoryId": "fast", "kind": "virtual_disk", "limit": 100},
            {"images": [_IMAGE_INFO], "nextCursor": None},
        ),
    ),
    "getImageInfo": (Example("One disk", {"repositoryId": "fast", "imageId": _DISK}, _IMAGE_INFO),),
    "getImageStatus": (
        Example(
            "A copy whose bytes are still coming",
            {"repositoryId": "backup", "imageId": _COPY},
            {
                "status": "broken",
                "hostID": "kvm-07",
                "stage": "1/1",
                "percent_complete": 62,
                "last_error": "",
                "taskId": _TASK,
            },
        ),
    ),
    "setUserData": (
        Example(
            "Only if nobody has changed it since it was read",
            {
                "repositoryId": "fast",
                "imageId": _DISK,
                "userData": {"name": "web-1", "labels": ["web", "blue"]},
                "options": {"ifRevision": "41.5d1f0c9e7b3a4a6f8c2d1e0f9a8b7c6d"},
            },
        ),
    ),
    "setStrategy": (
        Example("For speed", {"repositoryId": "fast", "imageId": _DISK, "strategy": "performance"}),
    ),
    "extendVirtualDisk": (
        Example("To 20 GiB", {"repositoryId": "fast", "imageId": _DISK, "size": 20 * GIB}),
    ),
    "revertVirtualDisk": (
        Example("To a Snapshot", {"repositoryId": "fast", "imageId": _DISK, "snapshotId": _SNAPSHOT}),
    ),
    "untrackChanges": (Example("Since all copies", {"repositoryId": "fast", "imageId": _DISK}),),
    "removeImage": (Example("A Snapshot", {"repositoryId": "fast", "imageId": _SNAPSHOT}),),
    "prepareImage": (
        Example(
            "A disk for a guest",
            {"repositoryId": "fast", "imageId": _DISK, "options": {"owner": "web-1"}},
            {
                "imageId": _DISK,
                "hostID": "kvm-07",
                "owner": "web-1",
                "mode": "read_write",
                "blockdev": {
                    "driver": "raw",
                    "read-only": False,
                    "cache": {"direct": True},
                    "file": {
                        "driver": "file",
                        "filename": _VOLUME,
                        "read-only": False,
                        "cache": {"direct": True},
                    },
                },
                "path": _VOLUME,
                "format": "raw",
                "nbdUri": None,
                "libvirtXml": '<disk type="file" device="disk">\n'
                '  <driver name="qemu" type="raw" cache="none" />\n'
                f'  <source file="{_VOLUME}" />\n'
                "  <backingStore />\n"
                '  <target dev="vda" bus="virtio" />\n'
                "</disk>",
            },
        ),
    ),
    "teardownImage": (
        Example(
            "When the guest has ended",
            {"repositoryId": "fast", "imageId": _DISK, "options": {"owner": "web-1"}},
        ),
    ),
    "checkStorageRepository": (
        Example(
            "Only what can be merged",
            {"repositoryId": "fast", "options": {"types": ["merge"]}},
            [_MERGE_FIX],
        ),
    ),
    "fixStorageRepository": (
        Example(
            "A fix as check listed it",
            {"repositoryId": "fast", "fix": _MERGE_FIX},
            {**_MEND, **_QUEUED, "verb": "merge", "repositoryId": "fast", "imageId": _DISK},
        ),
    ),
    "listTasks": (Example("On one image", {"imageId": _COPY}, [_MEND]),),
    "getTask": (Example("A mend that runs", {"taskId": _TASK}, _MEND),),
    "stopTask": (Example("By its id", {"taskId": _TASK}),),
    "getHostInfo": (
        Example(
            "This host",
            {},
            {
                "hostID": "kvm-07",
                "version": "0.1.0",
                "formats": [
                    {
                        "name": "localfs-1.0",
                        "parameters": {
                            "path": "absolute path of a directory on a local file system",
                            "sharedByOneHost": "true: no other host uses the file system, …",
                            "owner": "for creation only: the user, by name or number, …",
                            "group": "for creation only: the group, by name or number, …",
                            "mode": "for creation only: octal mode of the directories that guests pass; …",
                        },
                        "capabilities": {
                            "reflink": None,
                            "preallocation": True,
                            "zeroed": True,
                            "shared": False,
                            "needsSdm": False,
                            "overlaysGrow": False,
                            "enforcedLeases": True,
                        },
                    }
                ],
                "connections": [
                    {
                        "repoId": "fast",
                        "repoFormat": "localfs-1.0",
                        "connectionParameters": {"path": "/srv/images"},
                    }
                ],
            },
        ),
    ),
}
