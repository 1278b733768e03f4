"""pathless-1.0: storage whose volumes have no path on this host, like those of Ceph. For tests.

QEMU's programs reach a volume only over NBD, and so does Diskyard: no file of a volume is ever opened by
its name here. The bytes are in files of a localfs repository all the same, but only the server
(:mod:`.server`), and tests that damage them, know that.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from typing import Any

from diskyard import errors
from diskyard.host import Host
from diskyard.storage import registry
from diskyard.storage.interface import Storage
from diskyard.testing.faults import done_to_inner
from diskyard.testing.pathless.storage import PathlessStorage

FORMAT = "pathless-1.0"
_FILES = registry.FORMATS["localfs-1.0"]


def _split(parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The server's socket, and the parameters of the localfs repository."""
    socket = parameters.get("socket")
    if not isinstance(socket, str) or not os.path.isabs(socket) or "\0" in socket:
        raise errors.InvalidParameter("socket must be an absolute path.")
    return socket, {key: value for key, value in parameters.items() if key != "socket"}


def _create(parameters: Mapping[str, Any], host: Host) -> None:
    _FILES.create(_split(parameters)[1], host)


def _connect(parameters: Mapping[str, Any], host: Host) -> Storage:
    socket, files = _split(parameters)
    return PathlessStorage(_FILES.connect(files, host), host, socket)


def _folder_of(parameters: Mapping[str, Any], host: Host) -> str:
    assert _FILES.folder_of is not None
    return _FILES.folder_of(_split(parameters)[1], host)


def _create_in(folder: str, parameters: Mapping[str, Any], host: Host) -> None:
    assert _FILES.create_in is not None
    _FILES.create_in(folder, _split(parameters)[1], host)


PATHLESS = registry.Format(
    name=FORMAT,
    parameters={**_FILES.parameters, "socket": "absolute path of the socket where its volumes are served"},
    capabilities={**_FILES.capabilities, "reflink": False},
    create=_create,
    connect=_connect,
    remove=done_to_inner(_FILES.remove),
    require_removable=done_to_inner(_FILES.require_removable),
    set_marker=done_to_inner(_FILES.set_marker),
    folder_of=_folder_of,
    create_in=_create_in,
)
registry.FORMATS[FORMAT] = PATHLESS


@cache
def server() -> str:
    """The socket of a server that ends with this process; it is started at the first call."""
    folder = tempfile.mkdtemp(prefix="dy-nbd-")
    socket = os.path.join(folder, "nbd")
    words = [sys.executable, "-m", "diskyard.testing.pathless.server", socket]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    def end() -> None:
        process.communicate()
        os.unlink(socket)
        os.rmdir(folder)

    atexit.register(end)
    return socket


def parameters(path: str) -> dict[str, str]:
    """The connection parameters of a repository in a directory."""
    return {"path": path, "socket": server()}
