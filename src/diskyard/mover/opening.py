"""Opening the files of layers, once for each piece of work, and passing them to QEMU's programs.

Anyone who may write to a repository's directory can put a link, or another file, in a volume's place at any
moment. So a QEMU program is never given a name. It inherits a descriptor of the file that was opened
and checked here, and opens ``/dev/fd/N``, which the kernel resolves to that very file. So the program gets
an open file of its own, in the mode that it needs, and gets it again when it changes the mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from diskyard import errors
from diskyard.host import Host
from diskyard.host.container import open_file
from diskyard.mover.durable import os_errors
from diskyard.mover.interface import Chain, Layer


@contextmanager
def opened_files(host: Host, chain: Chain) -> Iterator[Chain]:
    """A chain with its files open, for the time of the context. Files that are open already stay open.

    :raises diskyard.errors.StorageError: one cannot be opened, or is not a regular file.
    :raises diskyard.errors.UnsafeImage: one has other names too.
    """
    with ExitStack() as stack:
        yield tuple(_opened(stack, host, layer) for layer in chain)


def _opened(stack: ExitStack, host: Host, layer: Layer) -> Layer:
    if layer.path is None or layer.container is not None:
        return layer
    with os_errors(f"opening volume {layer.name}"):
        container = stack.enter_context(open_file(host.files, layer.path))
    return replace(layer, container=container)


def file_of(layer: Layer) -> int:
    """The descriptor of a layer's file.

    :raises diskyard.errors.InternalError: it has no open one.
    """
    if layer.fd is None:
        raise errors.InternalError(f"The file of volume {layer.name} is used and was not opened.")
    return layer.fd


def descriptors(*chains: Chain) -> list[int]:
    """The descriptors that a program must inherit to open these chains, each once."""
    return list(dict.fromkeys(layer.fd for chain in chains for layer in chain if layer.fd is not None))


def storage_told(layer: Layer) -> Mapping[str, object]:
    """The blockdev of a layer's storage, for a program that inherits its descriptor."""
    if layer.path is None and layer.fd is None:
        return layer.protocol
    return {**layer.protocol, "filename": f"/dev/fd/{file_of(layer)}"}
