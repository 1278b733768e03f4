"""The verb about this host."""

from __future__ import annotations

from diskyard.model import requests as ask
from diskyard.model.results import HostInfo
from diskyard.model.verbs.verb import Example, Verb

VERBS = (
    Verb(
        ask.GetHostInfo,
        "read",
        "operations.host",
        result=HostInfo,
        examples=(
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
                                "path": "absolute path of a folder on a local file system",
                                "sharedByOneHost": "true: no other host uses the file system, …",
                                "owner": "when it is created: the user, by name or number, …",
                                "group": "when it is created: the group, by name or number, …",
                                "mode": "when it is created: octal, of the folders that guests pass; …",
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
    ),
)
