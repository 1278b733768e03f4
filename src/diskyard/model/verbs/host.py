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
                                "path": "absolute path of a directory on a local file system",
                                "sharedByOneHost": "true: no other host uses the file system, …",
                                "owner": "for creation only: the user, by name or number, …",
                                "group": "for creation only: the group, by name or number, …",
                                "mode": "for creation only: octal mode of the guests' directories; …",
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
