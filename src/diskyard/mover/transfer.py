"""Files that come from outside any repository, or go there."""

from __future__ import annotations

import json
import os
import re

from diskyard import errors
from diskyard.host import Child, Host
from diskyard.host.container import FileContainer
from diskyard.host.output import Output
from diskyard.mover.copying.copy import copy_view
from diskyard.mover.copying.pace import Pace
from diskyard.mover.copying.views import data_ranges
from diskyard.mover.durable import os_errors, sync_layer
from diskyard.mover.interface import Chain, ImportFormat, Layer, Monitor
from diskyard.mover.opening import descriptors, file_of, opened_files, storage_told
from diskyard.mover.qemu.blockgraph import StorageDaemon
from diskyard.mover.qemu.failures import failure
from diskyard.mover.reflink import clone_into

_PIECE_BYTES = 4 << 20
_POLL_S = 0.1
_PERCENT = re.compile(rb"\((\d+\.\d+)/100%\)")


def private_copy(host: Host, source_fd: int, target_path: str, monitor: Monitor) -> int:
    """Copy a file that is not trusted, so that nobody can change it while it is inspected.

    It shares blocks if the file system can, and otherwise copies everything but the holes. The new file
    is only for this process and need not be durable: a crash makes it a leftover.

    :return: the descriptor of the new file. Another file may have its name later.

    :param source_fd: from :func:`diskyard.mover.untrusted.open_untrusted`.
    :param target_path: a new file; removed again after any failure.
    :raises Stopped: from the monitor.
    :raises diskyard.errors.NoSpace: the target's storage is full.
    :raises diskyard.errors.StorageError: reading or writing failed.
    """
    with os_errors("copying a file to import"):
        target_fd = -1
        try:
            target_fd = host.files.create(target_path)
            if not clone_into(host, source_fd, target_fd):
                _copy_data(host, source_fd, target_fd, monitor)
        except BaseException:
            host.files.discard(target_path)  # it may exist although creating it failed
            if target_fd >= 0:
                os.close(target_fd)
            raise
        return target_fd


def _copy_data(host: Host, source_fd: int, target_fd: int, monitor: Monitor) -> None:
    size_bytes = host.files.size_bytes_of(source_fd)
    host.files.truncate(target_fd, size_bytes)
    total_bytes = sum(end - start for start, end in data_ranges(host, source_fd, 0, size_bytes))
    done_bytes = 0

    def advance() -> None:
        monitor.advance(done_bytes, total_bytes)

    pace, memory = Pace(host, monitor), memoryview(bytearray(_PIECE_BYTES))
    for start, end in data_ranges(host, source_fd, 0, size_bytes):
        for offset in range(start, end, _PIECE_BYTES):
            length = min(_PIECE_BYTES, end - offset)
            pace.admit(length, advance)
            piece = memory[:length]
            if host.files.read_into(source_fd, piece, offset) < length:
                raise errors.StorageError("A file became shorter while it was read.")
            host.files.write(target_fd, piece, offset)
            done_bytes += length
            advance()


def export_view(
    host: Host,
    chain: Chain,
    size_bytes: int,
    temporary_path: str,
    format: ImportFormat,
    monitor: Monitor,
) -> None:
    """Write the view through a chain to a new file, which refers to no other.

    On return the file's data is durable; the caller gives it its final name.

    :param size_bytes: the size of the view, at most that of the chain.
    :param temporary_path: absolute, in an existing directory; removed again after any failure.
    :raises Stopped: from the monitor.
    :raises diskyard.errors.NoSpace: the file's storage is full.
    :raises diskyard.errors.StorageError: QEMU or the storage failed.
    """
    with os_errors(f"creating {temporary_path}"):
        fd = host.files.create(temporary_path)
    # Written to by its descriptor only: no name is used again.
    target = Layer(
        "export", format, {"driver": "file"}, None, size_bytes, container=FileContainer(host.files, fd)
    )
    try:
        with opened_files(host, chain) as opened:
            if format == "raw":
                _write_raw(host, opened, target, monitor)
            else:
                _write_converted(host, opened, target, monitor)
                sync_layer(target)
    except BaseException:
        host.files.discard(temporary_path)
        raise
    finally:
        os.close(fd)


def _write_raw(host: Host, chain: Chain, target: Layer, monitor: Monitor) -> None:
    size_bytes = target.size_bytes
    with os_errors("making the file of an export as long as its image"):
        host.files.truncate(file_of(target), size_bytes)
    copy_view(host, chain, (target,), size_bytes, start_bytes=0, monitor=monitor, target_zeroed=True)


def _write_converted(host: Host, chain: Chain, target: Layer, monitor: Monitor) -> None:
    with StorageDaemon(host, (chain,), inherit_fds=monitor.inherit_fds) as daemon:
        node = daemon.open_chain(chain)
        daemon.export_nbd(node, writable=False)
        view = {
            "driver": "raw",
            "size": target.size_bytes,
            "file": {
                "driver": "nbd",
                "export": node,
                "server": {"type": "unix", "path": daemon.socket_path},
            },
        }
        _convert(host, "json:" + json.dumps(view), target, monitor)


def _convert(host: Host, source: str, target: Layer, monitor: Monitor) -> None:
    words = ["qemu-img", "convert", "-p", "-t", "writeback", "-O", target.format]
    if monitor.rate_limit_bytes_per_s:
        words += ["-r", str(monitor.rate_limit_bytes_per_s)]
    words += [source, str(storage_told(target)["filename"])]
    fds = [*monitor.inherit_fds, *descriptors((target,))]
    child = host.commands.start(words, inherit_fds=fds, capture=True)
    try:
        words_said = _follow(child, target.size_bytes, monitor)
        if child.wait() != 0:
            raise failure(words_said, "exporting an image")
    finally:
        host.commands.stop(child)


def _follow(child: Child, size_bytes: int, monitor: Monitor) -> str:
    """Report progress until the program closes its output. Return what it printed on stderr."""
    done_bytes = 0
    with Output(child, _PIECE_BYTES) as output:
        while output.read(_POLL_S):
            if percents := _PERCENT.findall(output.stdout):
                done_bytes = int(size_bytes * float(percents[-1]) / 100)
                output.stdout.clear()
            monitor.advance(done_bytes, size_bytes)
        return output.stderr()
