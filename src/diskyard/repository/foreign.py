"""What other programs have left in a repository, and which of our volumes it belongs to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass

from diskyard.model.records import Volume
from diskyard.model.state import State
from diskyard.mover.formats.qcow2_snapshots import backing_name
from diskyard.repository.repository import Repository, volume_name
from diskyard.storage.interface import Foreign


@dataclass(frozen=True, slots=True)
class ForeignFile:
    """Something in a repository that is not Diskyard's.

    :param overlay_of: the id of the volume that it is an overlay of, according to the name in its header,
        directly or through another foreign file; None if it is no such overlay.
    """

    name: str
    allocated_bytes: int
    overlay_of: str | None


def foreign_files(repo: Repository, state: State) -> list[ForeignFile]:
    """What others have put into a repository. A file is opened only to read its header."""
    listed = repo.storage.list_foreign()
    if not listed:
        return []
    backed = {item.name: _backing(repo, item) for item in listed}
    volumes = {str(volume_name(volume)): volume.id for volume in state.volumes.values()}
    overlays = {name: found for name, backing in backed.items() if (found := _named_in(backing, volumes))}
    for _ in listed:  # overlays of overlays: each pass finds those one link further away
        by_file_name = {os.path.basename(name): volume_id for name, volume_id in overlays.items()}
        further = {
            name: by_file_name[os.path.basename(backing)]
            for name, backing in backed.items()
            if name not in overlays and backing is not None and os.path.basename(backing) in by_file_name
        }
        if not further:
            break
        overlays |= further
    return [
        ForeignFile(_for_people(item.name), item.allocated_bytes, overlays.get(item.name)) for item in listed
    ]


def overlays_of(repo: Repository, state: State, volume_ids: Iterable[str]) -> list[str]:
    """The names of the foreign files that are overlays of any of some volumes."""
    wanted = frozenset(volume_ids)
    return [found.name for found in foreign_files(repo, state) if found.overlay_of in wanted]


def snapshots_wait_for(repo: Repository, volume: Volume) -> str:
    """What a fix that would lose the internal snapshots in a volume waits for."""
    file = repo.storage.locate_volume(volume_name(volume)).protocol
    # Without its backing file, because the name in the header is not for programs.
    alone = json.dumps({"driver": volume.format, "backing": None, "file": file}, separators=(",", ":"))
    return (
        f"a user has made internal snapshots in volume {volume.id}: while no program has it open, delete "
        f"them; qemu-img snapshot -l 'json:{alone}' lists them, and -d NAME in place of -l deletes one"
    )


def _for_people(name: str) -> str:
    """A name as text. On the storage a name may be any bytes."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _backing(repo: Repository, item: Foreign) -> str | None:
    path = item.path
    if path is None:
        return None
    try:
        return backing_name(lambda offset, size: repo.host.files.read_at(path, offset, size))
    except OSError:
        return None  # it has gone meanwhile, or cannot be read: it is listed all the same


def _named_in(backing: str | None, volumes: dict[str, str]) -> str | None:
    """The volume whose file a backing name leads to, as a path or within ``json:{…}``."""
    if backing is None:
        return None
    exact = volumes.get(os.path.basename(backing))
    return exact or next((volume_id for name, volume_id in volumes.items() if name in backing), None)
