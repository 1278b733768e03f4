"""Diskyard keeps the disk images of virtual machines, and does not lose them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diskyard.errors import DiskyardError

if TYPE_CHECKING:
    from diskyard.client.async_yard import AsyncDiskyard
    from diskyard.client.yard import Diskyard

KiB, MiB, GiB, TiB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

__all__ = ["AsyncDiskyard", "Diskyard", "DiskyardError", "GiB", "KiB", "MiB", "TiB"]


def __getattr__(name: str) -> Any:
    """Import large modules when they are used: a command's help does not need them."""
    if name == "Diskyard":
        from diskyard.client.yard import Diskyard

        return Diskyard
    if name == "AsyncDiskyard":
        from diskyard.client.async_yard import AsyncDiskyard

        return AsyncDiskyard
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
