"""The verbs that move images in and out as files."""

from __future__ import annotations

from diskyard.model import requests as ask
from diskyard.model.results import Task
from diskyard.model.verbs.shown import MEND, QUEUED, SNAPSHOT
from diskyard.model.verbs.verb import IMAGE, NEW_IMAGE, WRITING, Example, Verb

VERBS = (
    Verb(
        ask.ImportImage,
        "write",
        "operations.transfer",
        result=str,
        starts_tasks=True,
        errors=NEW_IMAGE | {"PathNotAllowed", "UnsafeImage", "ImageInUse"},
        examples=(
            Example(
                "A cloud image, as a Snapshot to create disks from",
                {
                    "targetRepoId": "fast",
                    "path": "/var/lib/diskyard/transfer/debian-12.qcow2",
                    "format": "qcow2",
                    "userData": {"name": "debian-12"},
                    "options": {"as": "snapshot"},
                },
                SNAPSHOT,
            ),
        ),
    ),
    Verb(
        ask.ExportImage,
        "write",
        "operations.export",
        result=Task,
        starts_tasks=True,
        errors=WRITING | IMAGE | {"PathNotAllowed", "NotEmpty", "ImageBroken", "ImageInUse", "LeaseHeld"},
        examples=(
            Example(
                "To a new qcow2 file",
                {
                    "repositoryId": "fast",
                    "imageId": SNAPSHOT,
                    "path": "/var/lib/diskyard/transfer/web-1.qcow2",
                    "format": "qcow2",
                },
                {**MEND, **QUEUED, "verb": "exportImage", "repositoryId": "fast", "imageId": SNAPSHOT},
            ),
        ),
    ),
)
