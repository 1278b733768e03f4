"""A repository format under test: what the format's own test gives to the contract suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from diskyard.host import Host
from diskyard.host.identity import new_nonce, new_uuid
from diskyard.log.store import LogKind
from diskyard.model.records import entry_id
from diskyard.model.volume_name import VolumeName
from diskyard.storage.interface import Storage
from diskyard.storage.registry import find_format

# So that their formats are known wherever places are.
from diskyard.testing import pathless as pathless
from diskyard.testing import rounded as rounded


@dataclass(frozen=True)
class Place:
    """Where a test makes a repository of its own.

    :param parameters: the connection parameters of an empty location.
    :param other_processes: whether another process can connect it too.
    :param copy_path: the path of a replica of an object of the log, for formats that keep them as files:
        tests put other things in its place.
    :param fill: puts something foreign into an empty location; creating must then refuse it.
    :param connect_full: connects it so that the storage has only the space that the format keeps in
        reserve, until something is set; for formats that can be full.
    """

    format: str
    parameters: Mapping[str, Any]
    other_processes: bool = False
    copy_path: Callable[[LogKind, int, int], Path] | None = None
    fill: Callable[[], None] | None = None
    connect_full: Callable[[Event], Storage] | None = None

    def create(self, host: Host | None = None) -> None:
        """Make the repository."""
        find_format(self.format).create(self.parameters, host or Host.real())

    def connect(self, host: Host | None = None) -> Storage:
        """Connect it, as another process or host would."""
        return find_format(self.format).connect(self.parameters, host or Host.real())


def fresh_name(number: int = 1, format: str = "raw", *, nonce: str | None = None) -> VolumeName:
    """The name of a volume that nothing else has.

    :param nonce: of the entry that named it; by default a fresh one.
    """
    named_by = entry_id(number, new_nonce() if nonce is None else nonce)
    return VolumeName(named_by=named_by, volume_id=new_uuid(), format=format)
