"""The verbs about repositories as a whole."""

from __future__ import annotations

from diskyard.model import requests as ask
from diskyard.model.results import RepositoryInfo
from diskyard.model.verbs.shown import GIB
from diskyard.model.verbs.verb import OPENING, WRITING, Example, Verb

VERBS = (
    Verb(
        ask.CreateStorageRepository,
        "admin",
        "operations.repositories",
        errors=OPENING | {"PathNotAllowed", "NotEmpty", "NoSpace"},
        examples=(
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
    ),
    Verb(
        ask.ConnectStorageRepository,
        "admin",
        "operations.repositories",
        errors=OPENING | {"PathNotAllowed", "RepositoryIdInUse", "RepositoryInUse", "NoSpace"},
        examples=(
            Example(
                "A directory of a local file system",
                {
                    "repoId": "fast",
                    "repoFormat": "localfs-1.0",
                    "connectionParameters": {"path": "/srv/images"},
                },
            ),
        ),
    ),
    Verb(
        ask.ListStorageRepositories,
        "read",
        "operations.repositories",
        result=list[RepositoryInfo],
        is_long=True,
        errors=frozenset(("RepositoryUnavailable",)),
        examples=(
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
    ),
    Verb(
        ask.DisconnectStorageRepository,
        "admin",
        "operations.repositories",
        errors=WRITING | {"RepositoryInUse"},
        examples=(Example("By its name on this host", {"repoId": "fast"}),),
    ),
    Verb(
        ask.RemoveStorageRepository,
        "admin",
        "operations.repositories",
        errors=WRITING | {"PathNotAllowed", "NotEmpty", "RepositoryInUse"},
        examples=(Example("An empty repository", {"repositoryId": "fast"}),),
    ),
)
