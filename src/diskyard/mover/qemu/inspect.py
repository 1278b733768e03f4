"""Inspecting one volume, without the volumes below it."""

from __future__ import annotations

import msgspec

from diskyard import errors
from diskyard.host import Host, Limits
from diskyard.mover.durable import os_errors
from diskyard.mover.interface import Layer
from diskyard.mover.opening import descriptors, opened_files
from diskyard.mover.qemu.failures import brief, expected, failure
from diskyard.mover.qemu.graphs import program_graph

_CHECK_TIMEOUT_S = 3600.0
_LIMITS = Limits(address_space_bytes=4 << 30, cpu_s=3600)  # the refcounts of 64 TiB take 2 GiB
_CLEAN, _DAMAGED, _LEAKS = 0, 2, 3  # exit statuses of `qemu-img check`
_OF_THIS_HOST = ("Cannot allocate memory", "Too many open files", "Permission denied")


class _Checked(msgspec.Struct):
    corruptions: int = 0


def check_volume(host: Host, layer: Layer) -> str | None:
    """Check one volume by itself for damage. This reads all its tables, and changes nothing.

    Leaked clusters waste space, but are not damage.

    :return: a sentence that says what is damaged, or None.
    :raises diskyard.errors.StorageError: the check itself could not be done.
    """
    with os_errors(f"checking volume {layer.name}"):
        if layer.container is None and layer.path is not None and host.files.look(layer.path) is None:
            return "Its file is missing."
    with opened_files(host, (layer,)) as (opened,):
        return _check_open(host, opened)


def _check_open(host: Host, layer: Layer) -> str | None:
    if layer.format == "raw":
        with os_errors(f"checking volume {layer.name}"):
            has_bytes = layer.open_container.length_bytes()
        short = has_bytes < layer.size_bytes
        return f"Its file has {has_bytes} bytes of {layer.size_bytes}." if short else None
    words = ["qemu-img", "check", "--output=json", program_graph(host, (layer,), read_only=True)]
    fds = descriptors((layer,))
    finished = host.commands.run(words, timeout_s=_CHECK_TIMEOUT_S, limits=_LIMITS, inherit_fds=fds)
    if finished.exit_status in (_CLEAN, _LEAKS):
        return None
    if finished.exit_status == _DAMAGED:
        found = expected(finished.stdout, _Checked, f"checking volume {layer.name}")
        return f"Its tables have {found.corruptions} errors (qemu-img check)."
    problem = failure(finished.stderr, f"checking volume {layer.name}")
    of_this_host = any(words in finished.stderr for words in _OF_THIS_HOST)
    if finished.exit_status != 1 or of_this_host or not isinstance(problem, errors.StorageError):
        raise problem
    # qemu-img did not understand it. A lock, a lack of space and a killed child were handled above.
    return f"It cannot be checked: {brief(finished.stderr)}."
