"""New names for a whole file, all or the first ones; only one publisher gets the first name."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Protocol


def is_full(error: OSError) -> bool:
    """Whether an error says that there is no space."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class UncertainError(OSError):
    """A publish failed, but may have taken effect."""


class _Door(Protocol):
    """What of :class:`diskyard.host.files.Files` is needed."""

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

    Of several publishers of the same first path one wins, and its answer is True. On return of
    True all is durable. A crash leaves none of the names, or the first ones of them, and
    temporary files.

    rename(2) would not do: of two writers that look and then rename, both succeed. With
    link(2) the loser gets EEXIST.

    :param make: makes a temporary file with durable contents; by default a new one.
    :param drop: removes the name of such a file in the end.
    :param spare: frees some space where the directory has none for a name; False if it cannot. With
        it one name is enough where the directory has no space for another.
    :param overruled: asked where a later path is there already: whether another publisher had won
        before, so that this one has lost; else that path is left as it is.
    :raises UncertainError: it failed where the name may be there; any other OSError means
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
            raise  # the directory had no space for the name: it is certainly not there
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
