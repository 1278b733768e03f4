"""What every mover does last: making files durable, and telling OS errors apart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from diskyard import errors
from diskyard.host import Host
from diskyard.mover.interface import Layer


@contextmanager
def os_errors(doing: str) -> Iterator[None]:
    """Turn an :class:`OSError` into the table's error; ``doing`` as in "growing a volume"."""
    try:
        yield
    except OSError as error:
        raise errors.from_os_error(error, doing) from error


def sync_path(host: Host, path: str) -> None:
    """Make a file's data and length durable, whoever wrote them.

    :raises diskyard.errors.StorageError: the storage failed; what is durable is not known.
    """
    with os_errors(f"making {os.path.basename(path)} durable"):
        fd = host.files.open_for_writing(path)
        try:
            host.files.sync(fd)
        finally:
            os.close(fd)


def sync_layer(host: Host, layer: Layer) -> None:
    """Make a layer durable; one that is no file was flushed by the daemon that wrote it."""
    if layer.path is not None:
        sync_path(host, layer.path)
