"""rounded-1.0: storage whose volumes are as logical volumes are. For tests.

A container's length is a multiple of 4 MiB, and what it has when it is made, or gains when it grows, is what
was there before: bytes that are not zero, and others each time. Blocks are never shared. All of that is over
files of a localfs repository, which has the log and the leases too.

In one thing it is not as a logical volume: the container of a qcow2 volume, which begins as long as a unit,
still becomes longer as QEMU writes beyond its end, by as much as QEMU needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diskyard.host import Host
from diskyard.storage import registry
from diskyard.storage.interface import Storage
from diskyard.testing.faults import done_to_inner
from diskyard.testing.rounded.storage import RoundedStorage

FORMAT = "rounded-1.0"
_FILES = registry.FORMATS["localfs-1.0"]


def _connect(parameters: Mapping[str, Any], host: Host) -> Storage:
    return RoundedStorage(_FILES.connect(parameters, host), host)


ROUNDED = replace(
    _FILES,
    name=FORMAT,
    capabilities={**_FILES.capabilities, "reflink": False, "zeroed": False},
    connect=_connect,
    remove=done_to_inner(_FILES.remove),
    require_removable=done_to_inner(_FILES.require_removable),
    set_marker=done_to_inner(_FILES.set_marker),
)
registry.FORMATS[FORMAT] = ROUNDED
