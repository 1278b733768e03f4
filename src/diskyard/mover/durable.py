"""What every mover does last: making files durable. And how it reports OS errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diskyard import errors
from diskyard.mover.interface import Layer


@contextmanager
def os_errors(doing: str) -> Iterator[None]:
    """Turn an :class:`OSError` into a Diskyard error; ``doing`` as in "growing a volume"."""
    try:
        yield
    except OSError as error:
        raise errors.from_os_error(error, doing) from error


def resize(layer: Layer, size_bytes: int) -> None:
    """Set the exact length of an open layer's container, durably.

    :raises diskyard.errors.StorageError: the storage failed.
    """
    with os_errors(f"resizing volume {layer.name}"):
        layer.open_container.set_length(size_bytes)
        layer.open_container.sync()


def sync_layer(layer: Layer) -> None:
    """Make the data and length of an open layer durable, whoever wrote them.

    :raises diskyard.errors.StorageError: the storage failed; it is not known what is durable.
    """
    with os_errors(f"making volume {layer.name} durable"):
        layer.open_container.sync()
