"""The verbs that give images to guests."""

from __future__ import annotations

from diskyard.model import requests as ask
from diskyard.model.results import Attached
from diskyard.model.verbs.shown import DISK
from diskyard.model.verbs.verb import IMAGE, OPENED, WRITING, Example, Verb

_VOLUME = "/srv/images/volumes/000000000000000c-1c3577cc-b679-4d32-8394-cc0698d30e7e.raw"
_ATTACHED = {
    "imageId": DISK,
    "hostID": "kvm-07",
    "owner": "web-1",
    "mode": "read_write",
    "blockdev": {
        "driver": "raw",
        "read-only": False,
        "cache": {"direct": True},
        "node-name": "dy-5y3xkztnkcslzbcg6n2gnt4dbm",
        "file": {
            "driver": "file",
            "filename": _VOLUME,
            "auto-read-only": True,
            "cache": {"direct": True},
            "node-name": "df-5y3xkztnkcslzbcg6n2gnt4dbm",
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
}

VERBS = (
    Verb(
        ask.PrepareImage,
        "write",
        "operations.attach",
        result=Attached,
        is_of_guests=True,
        errors=WRITING | IMAGE | OPENED | {"NotAVirtualDisk", "LeaseHeld"},
        examples=(
            Example(
                "A disk for a guest",
                {"repositoryId": "fast", "imageId": DISK, "options": {"owner": "web-1"}},
                _ATTACHED,
            ),
            Example(
                "The guest runs, and a monitor of its QEMU is for Diskyard",
                {
                    "repositoryId": "fast",
                    "imageId": DISK,
                    "options": {"owner": "web-1", "live": {"qmp": "/run/web-1/diskyard.qmp"}},
                },
                _ATTACHED,
            ),
        ),
    ),
    Verb(
        ask.TeardownImage,
        "write",
        "operations.attach",
        starts_tasks=True,
        is_of_guests=True,
        errors=WRITING | IMAGE | {"ImageInUse", "LeaseHeld"},
        examples=(
            Example(
                "When the guest has ended",
                {"repositoryId": "fast", "imageId": DISK, "options": {"owner": "web-1"}},
            ),
        ),
    ),
)
