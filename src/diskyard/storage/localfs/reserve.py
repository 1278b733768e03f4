"""The reserve: files that have blocks and hold no data. Each can become a replica of an entry.

On a full storage an entry is written into the blocks of such a file, which is then linked to the
entry's name (docs/decisions/0026-reserve.md). The blocks are never free in between, so no other writer,
such as a guest, can take them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable

from diskyard import errors
from diskyard.host import FileEntry, Files
from diskyard.host.publishing import is_full, publish
from diskyard.model.transaction import Frees
from diskyard.storage.localfs import layout
from diskyard.storage.localfs.access import Follower

_KIB = 1 << 10
#: How many files there are of each size. The small ones are for the entries of one image.
_FILES = {4 * _KIB: 128, 16 * _KIB: 16, 128 * _KIB: 4, 1024 * _KIB: 2}
_NAME = re.compile(r"([0-9a-f]{8})\.([0-9]{3})")
#: Empty files with names longer than a temporary one. If a directory has no space for another name, as can
#: happen on a full XFS, removing one of them makes space for it.
_PLACES = [f"name.{index:03d}.{'-' * 200}" for index in range(16)]
#: The share of the files of each size that is kept for entries that free more space, or sooner.
_LEFT_ALONE = {Frees.LATER: 1 / 2, Frees.WHEN_FIXED: 1 / 4, Frees.AT_ONCE: 0.0}
#: The sizes of the files that are given up, one after the other, for a directory that needs a new block.
_SPARED_BYTES = (*[4 * _KIB] * 6, *[16 * _KIB] * 4, *[128 * _KIB] * 2)


def _size_in(name: str) -> int | None:
    found = _NAME.fullmatch(name)
    return None if found is None else int(found[1], 16)


def is_of_reserve(name: str) -> bool:
    """Whether a file of the reserve may have this name."""
    return _NAME.fullmatch(name) is not None or name in _PLACES


class _SpentError(OSError):
    """No file of the reserve may be used for this any more."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Reserve:
    """The reserve of one repository.

    :param root: the repository's directory.
    """

    def __init__(self, files: Files, root: str, follower: Follower) -> None:
        self._files = files
        self._of_folder, self._of_file = follower.of_reserve()
        self.folder = os.path.join(root, layout.RESERVE)
        self._may_lack = True  # another process may have used some

    # -- filling it --------------------------------------------------------------------

    def fill(self) -> None:
        """Make all files that are missing, with all of their blocks, durably.

        :raises OSError: for example if there is no space for all of them. Those that were made stay.
        """
        self._make_folder()
        there = {item.name for item in self._list()} | self._places()
        whole = {
            f"{size_bytes:08x}.{index:03d}": size_bytes
            for size_bytes, count in _FILES.items()
            for index in range(count)
        } | dict.fromkeys(_PLACES, 0)
        lacking = {name: size_bytes for name, size_bytes in whole.items() if name not in there}
        if lacking:
            temporary = self._files.temporary_path(self.folder)
            self._files.keep_room(self.folder, lacking, temporary, self._of_file)
            self._files.sync_folder(self.folder)
        self._may_lack = False

    def refill(self) -> None:
        """The same, but without an error: if the storage is full, the reserve stays as it is.

        The same holds if something else has its name.
        """
        with contextlib.suppress(OSError):
            self.fill()

    def refill_if_used(self) -> None:
        """Replace what was used, before the space is used for anything else."""
        if self._may_lack:
            self.refill()

    def _make_folder(self) -> None:
        found = self._files.look(self.folder)
        if found is not None and found.is_file and found.links == 1:
            self._files.unlink(self.folder)  # in an earlier version the reserve was one file
            found = None
        if found is None:
            self._files.make_folder(self.folder, self._of_folder)
            self._files.sync_folder(os.path.dirname(self.folder))
        elif not self._files.is_folder(self.folder):  # for example a link, which may lead anywhere
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.folder)

    # -- using it ----------------------------------------------------------------------

    def publish(
        self, paths: tuple[str, str], data: bytes, frees: Frees, overruled: Callable[[], bool]
    ) -> bool:
        """As :func:`diskyard.host.publishing.publish`, but with files of the reserve.

        :param frees: decides how much of the reserve may be used.
        :raises OSError: as there; also ENOSPC if no file is left that may be used.
        """
        if self._files.exists(paths[0]):
            return False
        taken: dict[str, str] = {}  # temporary paths, and the names in the reserve
        to_give_back = False
        try:
            won = publish(
                self._files,
                paths,
                data,
                make=lambda: self._filled(data, frees, taken),
                drop=lambda path: None,
                spare=self.spare(),
                overruled=overruled,
            )
            to_give_back = not won
        except _SpentError:
            to_give_back = True
            raise
        finally:
            for path, name in taken.items():
                if to_give_back:
                    self._give_back(path, name)
                self._files.discard(path)
        return won

    def _give_back(self, path: str, name: str) -> None:
        """Put a file that was certainly not published back into the reserve, if it still has its blocks."""
        with contextlib.suppress(OSError):
            found = self._files.look(path)
            if found is not None and found.allocated_bytes >= (_size_in(name) or 0):
                self._files.link(path, os.path.join(self.folder, name))

    def replace(self, path: str, data: bytes) -> None:
        """As :meth:`Files.replace`, but with a file of the reserve: nothing could free space before this."""
        spare = self.spare()
        while True:
            try:
                return self._files.replace(path, data, make=lambda: self._filled(data, Frees.AT_ONCE, {}))
            except _SpentError:
                raise
            except OSError as error:
                if not is_full(error) or not spare():
                    raise

    def spare(self) -> Callable[[], bool]:
        """A function that frees blocks of the reserve for a directory that needs one for a new name.

        A name cannot be written into an existing file's blocks. Others may take the freed ones first.
        """
        sizes_bytes = iter(_SPARED_BYTES)

        return lambda: any(self._free(size_bytes) for size_bytes in sizes_bytes)

    def _free(self, size_bytes: int) -> bool:
        """Give the blocks of one file back to the file system, at once."""
        for name in self._usable(size_bytes, Frees.AT_ONCE):
            path = self._files.temporary_path(self.folder)
            if not self._take(name, path):
                continue
            try:
                # Truncated first, because XFS frees the blocks of an unlinked file only some time later.
                self._write(path, b"")
            except (OSError, errors.UnsafeImage):
                continue
            finally:
                self._files.discard(path)
            return True
        return False

    def _take(self, name: str, path: str) -> bool:
        """Rename a file of the reserve to a name of this process; False if another process was first."""
        self._may_lack = True
        taken = os.path.join(self.folder, name)
        places: set[str] | None = None
        while True:
            try:
                self._files.rename(taken, path)
            except FileNotFoundError:
                return False
            except OSError as error:
                if not is_full(error):
                    raise
            else:
                return True
            places = self._places() if places is None else places
            if not places:
                self._files.discard(taken)  # this makes space for the name of the next one
                return False
            self._files.discard(os.path.join(self.folder, places.pop()))

    def _filled(self, data: bytes, frees: Frees, taken: dict[str, str]) -> str:
        """Write data durably into a file of the reserve, under a temporary name; the path."""
        for name in self._usable(len(data), frees):
            path = self._files.temporary_path(self.folder)
            if not self._take(name, path):
                continue
            try:
                self._write(path, data)
            except errors.UnsafeImage:
                self._files.discard(path)  # another file came in its place
                continue
            except OSError as error:
                self._files.discard(path)
                if is_full(error):
                    continue  # its blocks were shared: somebody may have copied the file
                raise
            except BaseException:
                self._files.discard(path)
                raise
            taken[path] = name
            return path
        raise _SpentError

    def _write(self, path: str, data: bytes) -> None:
        fd = self._files.open_alone(path, writable=True)
        try:
            self._files.write(fd, data)
            self._files.truncate(fd, len(data))
            self._files.sync(fd)
        finally:
            os.close(fd)

    def _usable(self, size_bytes: int, frees: Frees) -> list[str]:
        """The names of the files that may be used for data of this size, the smallest first."""
        of_size: dict[int, list[str]] = {}
        for item in self._list():
            of_size.setdefault(_size_in(item.name) or 0, []).append(item.name)
        usable: list[str] = []
        for size, names in sorted(of_size.items()):
            left_alone = int(_FILES.get(size, 0) * _LEFT_ALONE[frees])
            if size >= size_bytes and len(names) > left_alone:
                usable += sorted(names)[: len(names) - left_alone]
        return usable

    def _places(self) -> set[str]:
        """The long names that exist only to make space for other names."""
        return set(self._files.names(self.folder)).intersection(_PLACES)

    def _list(self) -> list[FileEntry]:
        """The files that have all the blocks that their names promise, and no second name."""
        if not self._files.is_folder(self.folder):
            return []
        return [
            item
            for item in self._files.list(self.folder, _size_in)
            if item.is_file and item.links == 1 and item.allocated_bytes >= (_size_in(item.name) or 0)
        ]
