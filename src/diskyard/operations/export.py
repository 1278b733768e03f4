"""exportImage: what is refused before the task that writes the file begins."""

from __future__ import annotations

import errno
import os

from diskyard import errors
from diskyard.caller import handed
from diskyard.host import Files
from diskyard.model.requests import ExportImage
from diskyard.operations.engine import Engine, Export, Outcome
from diskyard.operations.transfer import transfer_path
from diskyard.planner import copy as planner
from diskyard.repository.settled import look_at, volumes_below


def export_image(engine: Engine, request: ExportImage) -> Outcome:
    """Let a task write an image to a new file; nothing is changed yet on return.

    A path that exists, and an image that cannot be read, are refused at once. The file gets the bytes that a
    VirtualDisk has when the task starts. The disk can be used while the task runs.

    :raises diskyard.errors.NotEmpty: something has the path's name already.
    :raises diskyard.errors.PathNotAllowed: the path is in no directory that the caller may use.
    :raises diskyard.errors.InvalidParameter: the path's directory does not exist or cannot be written to, or
        cannot hold such a file.
    :raises diskyard.errors.ImageBroken: the image cannot be read.
    :raises diskyard.errors.ImageInUse: the image is a VirtualDisk that is attached, and its guest cannot be
        talked to from here.
    """
    path = transfer_path(engine.host, request.path)
    repo = engine.connections.get(request.repository_id)
    sight = look_at(repo, volumes_below(request.image_id))
    planner.copy_source(sight, request.image_id, but_live=True)
    longest_bytes = sight.state.images[request.image_id].size_bytes if request.format == "raw" else 0
    _require_possible(engine.host.files, path, longest_bytes)
    return Outcome(request.image_id, [Export(repo, request, path)])


def folder_of_new(path: str) -> str:
    """The directory of the new file: the one that came with the request, or else the path's."""
    given = handed()
    return os.path.dirname(path) if given is None else f"/proc/self/fd/{given.fd}/."


def _require_possible(files: Files, path: str, size_bytes: int) -> None:
    """Refuse a new file that cannot be made at a path.

    :param size_bytes: the length that the file must be able to have; 0 for any.
    """
    folder = folder_of_new(path)
    try:
        # The path of a directory that was handed over may lead nowhere here.
        has_folder = files.is_folder(files.resolve(folder) if handed() is None else folder)
        taken = has_folder and files.exists(os.path.join(folder, os.path.basename(path)))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise errors.InvalidParameter(f"No file can be named {path}: {error.strerror or error}.") from error
    if not has_folder:
        raise errors.InvalidParameter(f"There is no directory {os.path.dirname(path)}.")
    if taken:
        raise errors.NotEmpty(f"{path} exists.", advice="Choose another path; nothing is overwritten.")
    _require_writable(files, folder, path)
    if size_bytes:
        _require_long_files(files, folder, path, size_bytes)


def _require_writable(files: Files, folder: str, path: str) -> None:
    """Refuse a directory in which no file can be made, before anything is read."""
    if files.may_write(folder):
        return
    if files.is_read_only(folder):
        raise errors.InvalidParameter(
            f"{path} cannot be written: its file system is mounted read-only.",
            advice="Use a directory of another file system, or mount this one so that it can be written to.",
        )
    raise errors.InvalidParameter(
        f"{path} cannot be written: this user may not make files in {os.path.dirname(path)}.",
        advice="Use another directory, or change its permissions.",
    )


def _require_long_files(files: Files, folder: str, path: str, size_bytes: int) -> None:
    """Refuse a raw file that is too long for the file system. An empty file is made to find the limit."""
    probe = files.temporary_path(folder)
    try:
        os.close(files.create(probe))
        longest_bytes = files.longest_file_bytes(probe, size_bytes)
    except OSError as error:
        raise errors.from_os_error(error, f"making a file beside {path}") from error
    finally:
        files.discard(probe)
    if longest_bytes < size_bytes:
        raise errors.InvalidParameter(
            f"{path} would have {size_bytes} bytes; the longest file there has {longest_bytes}.",
            advice="Export it as qcow2, which stores only what was written, or to another file system.",
        )
