"""The host that did something: a plain value, stored in entries and attachments."""

from __future__ import annotations

import msgspec


class HostIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A host is its machine and its boot; ``host_id`` is its name for people and callers."""

    host_id: str
    machine_id: str
    boot_id: str
