"""Names of temporary files, which identify the process that made them."""

from __future__ import annotations

import re

from diskyard.host.identity import ProcessIdentity

_TEMPORARY_PREFIX = "tmp."
_TEMPORARY_NAME = re.compile(r"tmp\.([0-9a-f]{32})\.([0-9a-f]{32})\.([0-9]+)\.([0-9]+)\.([0-9]+)\.[0-9]+")


def temporary_name(process: ProcessIdentity, counter: int) -> str:
    """A name for a temporary file that identifies the process that made it."""
    return (
        f"{_TEMPORARY_PREFIX}{process.machine_id}.{process.boot_id}"
        f".{process.pid_namespace}.{process.pid}.{process.start_ticks}.{counter}"
    )


def temporary_owner(name: str) -> ProcessIdentity | None:
    """The process that made a temporary file of this name; None if it is not such a name."""
    if not name.startswith(_TEMPORARY_PREFIX):  # quicker, where very many other names are checked
        return None
    found = _TEMPORARY_NAME.fullmatch(name)
    if found is None:
        return None
    return ProcessIdentity(
        machine_id=found[1],
        boot_id=found[2],
        pid_namespace=int(found[3]),
        pid=int(found[4]),
        start_ticks=int(found[5]),
    )
