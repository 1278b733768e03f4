"""The verbs that find and finish what was left unfinished."""

from __future__ import annotations

from diskyard.model import requests as ask
from diskyard.model.fix import Fix
from diskyard.model.results import Task
from diskyard.model.verbs.shown import DISK, MEND, QUEUED
from diskyard.model.verbs.verb import READING, Example, Verb

_MERGE_FIX = {
    "fixId": "merge-9214c24e6af5176b33ff3108",
    "type": "merge",
    "description": "merge a removed image down with the volume that reads it",
    "imageId": DISK,
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

VERBS = (
    Verb(
        ask.CheckStorageRepository,
        "read",
        "fixes.check",
        result=list[Fix],
        is_long=True,
        errors=READING | {"NoSpace"},  # a deep check runs programs, and records damage
        examples=(
            Example(
                "Only what can be merged",
                {"repositoryId": "fast", "options": {"types": ["merge"]}},
                [_MERGE_FIX],
            ),
        ),
    ),
    Verb(
        ask.FixStorageRepository,
        "write",
        "operations.fix",
        result=Task,
        starts_tasks=True,
        errors=READING,
        examples=(
            Example(
                "A fix as check listed it",
                {"repositoryId": "fast", "fix": _MERGE_FIX},
                {**MEND, **QUEUED, "verb": "merge", "repositoryId": "fast", "imageId": DISK},
            ),
        ),
    ),
)
