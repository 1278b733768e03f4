"""The only door to the operating system: files, programs, clock, identity."""

from __future__ import annotations

from dataclasses import dataclass

from diskyard.host.clock import Clock
from diskyard.host.commands import Child, Commands, Finished
from diskyard.host.confinement import Limits
from diskyard.host.files import Files
from diskyard.host.identity import (
    ProcessIdentity,
    process_of,
    provably_gone,
    provably_gone_host,
    this_host,
)
from diskyard.host.places import made_s
from diskyard.host.reading import FileEntry, FreeSpace
from diskyard.model.identity import HostIdentity

__all__ = [
    "Child",
    "Clock",
    "Commands",
    "FileEntry",
    "Files",
    "Finished",
    "FreeSpace",
    "Host",
    "HostIdentity",
    "Limits",
    "ProcessIdentity",
    "made_s",
    "process_of",
    "provably_gone",
    "provably_gone_host",
]


@dataclass(frozen=True, slots=True)
class Host:
    """What Diskyard uses of the machine that it runs on; tests replace single parts."""

    identity: HostIdentity
    files: Files
    commands: Commands
    clock: Clock

    @classmethod
    def real(cls) -> Host:
        """This machine."""
        identity = this_host()
        return cls(identity=identity, files=Files(identity), commands=Commands(), clock=Clock())
