"""Giving a whole file one or several new names. Only one publisher gets the first name."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Protocol


def is_full(error: OSError) -> bool:
    """Whether an error says that there is no space."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class UncertainError(OSError):
    """Publishing failed, but may have taken effect."""


class _Door(Protocol):
    """The methods of :class:`diskyard.host.files.Files` that are needed."""

    def write_temporary(self, folder: str, data: bytes) -> str: ...

    def link(self, source: str, target: str) -> None: ...

    def exists(self, path: str) -> bool: ...

    def discard(self, path: str) -> None: ...

    def sync_folder(self, folder: str) -> None: ...


def publish(
    files: _Door,
    paths: Sequence[str],
    data: bytes,
    *,
    make: Callable[[], str] | None = None,
    drop: Callable[[str], object] | None = None,
    spare: Callable[[], bool] | None = None,
    overruled: Callable[[], bool] | None = None,
) -> bool:
    """Make every one of ``paths``, all in one directory, hold ``data``, if the first is absent.

    If several publishers want the same first path, exactly one of them wins and gets True. When this
    returns True, everything is durable. A crash leaves none of the names, or the first ones, and
    temporary files.

    rename(2) would not do: if two writers check and then rename, both succeed. With link(2) the
    loser gets EEXIST.

    :param make: makes a temporary file with durable contents; by default a new one.
    :param drop: removes the name of such a file in the end.
    :param spare: frees some space if the directory has none for a name; False if it cannot. If it is
        given, the first name alone is enough where there is no space for another.
    :param overruled: called if a later path exists already. True if another publisher had won before, so
        that this one has lost; otherwise that path is left as it is.
    :raises UncertainError: publishing failed, but the name may be there. Any other OSError means
        that nothing was published.
    """
    folder = os.path.dirname(paths[0])
    temporaries: list[str] = []
    try:
        for _ in paths:
            temporaries.append(make() if make else files.write_temporary(folder, data))
        return _publish_written(files, folder, temporaries, paths, spare, overruled)
    finally:
        for temporary in temporaries:
            (drop or files.discard)(temporary)


def _publish_written(
    files: _Door,
    folder: str,
    temporaries: Sequence[str],
    paths: Sequence[str],
    spare: Callable[[], bool] | None,
    overruled: Callable[[], bool] | None,
) -> bool:
    try:
        _link(files, temporaries[0], paths[0], spare)
    except FileExistsError:
        return False
    except OSError as error:
        if is_full(error) and not _may_exist(files, paths[0]):
            raise  # the directory had no space for the name, so it is certainly not there
        raise UncertainError(error.errno, error.strerror, paths[0]) from error
    try:
        for temporary, path in zip(temporaries[1:], paths[1:], strict=True):
            try:
                _link(files, temporary, path, spare)
            except FileExistsError:
                if overruled is not None and overruled():
                    return False
            except OSError as error:
                if not (spare and is_full(error)):
                    raise
        files.sync_folder(folder)
    except OSError as error:
        raise UncertainError(error.errno, error.strerror, paths[0]) from error
    return True


def _link(files: _Door, source: str, target: str, spare: Callable[[], bool] | None) -> None:
    while True:
        try:
            return files.link(source, target)
        except OSError as error:
            if not is_full(error) or spare is None or _may_exist(files, target) or not spare():
                raise


def _may_exist(files: _Door, path: str) -> bool:
    try:
        return files.exists(path)
    except OSError:
        return True
