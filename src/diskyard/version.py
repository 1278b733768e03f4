"""The version of this program."""

from __future__ import annotations


def version() -> str:
    """As it is installed; "0" in a source tree that is not."""
    from importlib import metadata  # slow to import

    try:
        return metadata.version("diskyard")
    except metadata.PackageNotFoundError:
        return "0"
