"""The repositories, images and fixes that the examples of several verbs use."""

from __future__ import annotations

GIB = 1 << 30
DISK = "5b1c9f0e-3a44-4d0c-8f2e-6f5f6a0f7d11"
SNAPSHOT = "c2d8a7f4-90b1-4c55-9d1e-2f7f0a6f9e52"
COPY = "8e0d2b36-7f1a-4b7e-a0c3-51d6c1f8b903"
TASK = "8cf5b9ef-453e-4c7f-a361-79088329d29c"
MEND = {
    "taskId": TASK,
    "verb": "mend",
    "repositoryId": "backup",
    "imageId": COPY,
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

QUEUED = {
    "state": "queued",
    "stage": "",
    "percent": -1,
    "doneBytes": 0,
    "totalBytes": 0,
    "rateBytesPerS": 0,
    "remainingS": None,
    "startedAt": None,
}
