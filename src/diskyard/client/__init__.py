"""The Python form of the API: the verbs as methods, in snake_case."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diskyard.client.yard import Diskyard

if TYPE_CHECKING:
    from diskyard.client.async_yard import AsyncDiskyard

__all__ = ["AsyncDiskyard", "Diskyard"]


def __getattr__(name: str) -> Any:
    """Import the classes that use HTTP only when they are needed."""
    if name == "AsyncDiskyard":
        from diskyard.client.async_yard import AsyncDiskyard

        return AsyncDiskyard
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
