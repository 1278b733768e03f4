"""The version of this program."""

from __future__ import annotations


def version() -> str:
    """The installed version; "0" in a source tree that is not installed."""
    from importlib import metadata  # slow to import

    try:
        return metadata.version("diskyard")
    except metadata.PackageNotFoundError:
        return "0"
