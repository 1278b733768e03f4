"""What every mover does last: making files durable, and distinguishing OS errors."""

from __future__ import annotations

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


def sync_layer(host: Host, layer: Layer) -> None:
    """Make the data and length of an open layer durable, whoever wrote them.

    One that is no file was flushed by the daemon that wrote it.

    :raises diskyard.errors.StorageError: the storage failed; what is durable is not known.
    """
    if layer.fd is not None:
        with os_errors(f"making volume {layer.name} durable"):
            host.files.sync(layer.fd)
