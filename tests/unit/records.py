"""Records for tests: whole, with nothing that a test does not say."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any

from diskyard.model.identity import HostIdentity
from diskyard.model.looked import Looked
from diskyard.model.records import Attachment, Building, CopyHold, Image, Volume
from diskyard.model.state import State
from diskyard.model.transaction import Draft

NOW = "2024-01-01T00:00:00.000000Z"
ENTRY = "1.0123456789abcdef0123456789abcdef"
HOST = HostIdentity(host_id="host", machine_id="machine", boot_id="boot")
MARKER = "marker"


def uid(name: str) -> str:
    """The id that stands for a name, where records are written and read: there it is a UUID."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def image(id: str, volume_id: str | None, **more: Any) -> Image:
    """A strong Snapshot unless ``more`` says otherwise."""
    fields: dict[str, Any] = {
        "kind": "snapshot",
        "visibility": "strong",
        "size_bytes": 4096,
        "strategy": "space",
        "user_data": {},
        "created_at": NOW,
        "captured_at": NOW,
        "data_generation": ENTRY,
        "revision": ENTRY,
    }
    return Image(id=id, volume_id=volume_id, **{**fields, **more})


def disk(id: str, volume_id: str | None, **more: Any) -> Image:
    """A strong VirtualDisk."""
    return image(id, volume_id, kind="virtual_disk", **more)


def weak(id: str, volume_id: str | None, **more: Any) -> Image:
    """A weak image."""
    return image(id, volume_id, visibility="weak", **more)


def volume(id: str, parent: str | None = None, **more: Any) -> Volume:
    """A ready volume: raw, or qcow2 over a parent."""
    fields: dict[str, Any] = {
        "format": "raw" if parent is None else "qcow2",
        "size_bytes": 4096,
        "named_by": ENTRY,
        "state": "ready",
    }
    return Volume(id=id, parent_image_id=parent, **{**fields, **more})


def building(id: str, image_id: str, parent: str | None = None, **more: Any) -> Volume:
    """A volume that work ``w`` makes for an image."""
    return volume(id, parent, state="building", building=Building(work_id="w", image_id=image_id), **more)


def attachment(id: str, image_id: str, *volume_ids: str, **more: Any) -> Attachment:
    """A writer's attachment on this test's host."""
    fields: dict[str, Any] = {"host": HOST, "owner": "vm", "mode": "read_write", "attached_at": NOW}
    return Attachment(id=id, image_id=image_id, volume_ids=volume_ids, **{**fields, **more})


def copy_hold(copy_id: str = "copy") -> CopyHold:
    """A hold of a copy elsewhere."""
    return CopyHold(target_marker="elsewhere", copy_id=copy_id, work_id="w")


def state(*records: Image | Volume | Attachment, version: int = 10) -> State:
    """The state with these records."""
    return State.of(
        MARKER,
        version,
        "nonce",
        [found for found in records if isinstance(found, Image)],
        [found for found in records if isinstance(found, Volume)],
        [found for found in records if isinstance(found, Attachment)],
    )


def draft_on(found: State, nonce: str = "", missing: Collection[str] = ()) -> Draft:
    """A draft of whoever has looked, and found all volumes but these."""
    return Draft(found, nonce, Looked(found.volumes, missing))
