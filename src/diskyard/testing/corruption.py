"""Damages as values: what can happen to a file of a repository; and files outside of it.

A repository format that keeps files passes the same cases by naming its files.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

GIB = 1 << 30
SECRET = b"the-secret-of-another-program"
"""What must never be seen: it begins a file, and is repeated to its end."""

_SECRET_FILE_BYTES = 4 << 20


@dataclass(frozen=True)
class Outside:
    """Things beside a repository that nothing may change, and whose contents nothing may show.

    One of them is a FIFO: opening it for reading would wait for ever.

    :param folder: made here; on the file system of the repository, so that hard links can be made.
    """

    folder: Path
    _before: dict[str, object] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path) -> Outside:
        """Make the things."""
        outside = cls(folder)
        folder.mkdir()
        for path in (outside.secret, outside.named_twice):
            path.write_bytes((SECRET * (_SECRET_FILE_BYTES // len(SECRET) + 1))[:_SECRET_FILE_BYTES])
        os.mkfifo(outside.fifo)
        outside.somewhere.mkdir()
        (outside.somewhere / "kept").write_bytes(SECRET)
        for path in (outside.secret, outside.somewhere / "kept"):
            os.utime(path, ns=(0, 1))  # with relatime, this shows when such a file is read
        outside._before.update(outside._look())
        return outside

    @property
    def secret(self) -> Path:
        """A file of 4 MiB."""
        return self.folder / "secret"

    @property
    def named_twice(self) -> Path:
        """A file that is to get a second name. Reading it by that name cannot be prevented."""
        return self.folder / "named-twice"

    @property
    def fifo(self) -> Path:
        """A FIFO that nobody writes to."""
        return self.folder / "fifo"

    @property
    def somewhere(self) -> Path:
        """A directory with one file."""
        return self.folder / "somewhere"

    def _look(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for path in sorted(self.folder.rglob("*")):
            info = path.lstat()
            data = _read_unseen(path) if stat.S_ISREG(info.st_mode) else None
            times: tuple[int, ...] = ()
            if data is not None:
                times = (info.st_mtime_ns, 0 if path == self.named_twice else info.st_atime_ns)
            found[str(path)] = (info.st_mode, info.st_size, *times, data)
        return found

    def judge(self) -> None:
        """Require that everything is unchanged, was not even read, and that nothing was added."""
        after = self._look()
        changed = [path for path in {*after, *self._before} if after.get(path) != self._before.get(path)]
        assert not changed, f"outside of the repository was changed: {changed}"


@dataclass(frozen=True)
class Damage:
    """One thing that happens to a file.

    :param vanishes: nothing is left of the file, so that nothing shows that it existed.
    """

    name: str
    apply: Callable[[Path, Outside], None]
    vanishes: bool = False

    def __str__(self) -> str:
        return self.name


def _read_unseen(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
    with os.fdopen(fd, "rb") as file:
        return file.read()


def remove(path: Path) -> None:
    """Remove whatever has a name."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()


def _written(change: Callable[[bytes], bytes]) -> Callable[[Path, Outside], None]:
    return lambda path, outside: _write(path, change(path.read_bytes()))


def _write(path: Path, data: bytes) -> None:
    # In place, so that the file's mode and age stay.
    path.write_bytes(data)


def _instead(make: Callable[[Path, Outside], object]) -> Callable[[Path, Outside], None]:
    def apply(path: Path, outside: Outside) -> None:
        remove(path)
        make(path, outside)

    return apply


def flipped(at: int, mask: int) -> Damage:
    """Some bits of one byte are changed. A negative offset counts from the end."""
    return Damage(f"byte {at} ^ {mask:#x}", _written(lambda data: _flip(data, at, mask)))


def _flip(data: bytes, at: int, mask: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= mask
    return bytes(changed)


def _sparse(path: Path, outside: Outside) -> None:
    with path.open("wb") as file:
        file.truncate(GIB)


def _sparse_with_header(path: Path, outside: Outside) -> None:
    """The object's own header, with the length of the huge file that follows it."""
    words = path.read_bytes().partition(b"\n")[0].split(b" ")
    limit = GIB - 4096 if words[0].endswith(b"checkpoint") else (32 << 20)
    header = b" ".join([words[0], words[1], b"%d" % limit, words[3]]) if len(words) == 4 else words[0]
    with path.open("wb") as file:
        file.write(header + b"\n")
        file.truncate(len(header) + 2 + limit)


def _full_folder(path: Path) -> None:
    path.mkdir()
    (path / "something").write_bytes(b"of somebody else")


#: Damages after which some contents are left.
CONTENTS = (
    Damage("emptied", _written(lambda data: b"")),
    Damage("truncated by a byte", _written(lambda data: data[:-1])),
    Damage("truncated in the middle", _written(lambda data: data[: len(data) // 2])),
    Damage("a byte longer", _written(lambda data: data + b"\n")),
    Damage("twice", _written(lambda data: data + data)),
    Damage("zeros", _written(lambda data: bytes(len(data)))),
    Damage("other text", _written(lambda data: b"\xff\xfe{" * (len(data) // 3 + 1))),
    flipped(0, 0x01),
    flipped(-2, 0x04),
    Damage("1 GiB of zeros", _sparse),
    Damage("its header and a giant", _sparse_with_header),
)
#: Damages that put something else under the name.
REPLACEMENTS = (
    Damage("folder", _instead(lambda path, outside: path.mkdir())),
    Damage("folder with something in it", _instead(lambda path, outside: _full_folder(path))),
    Damage("link to a secret", _instead(lambda path, outside: path.symlink_to(outside.secret))),
    Damage("second name of a secret", _instead(lambda path, outside: path.hardlink_to(outside.named_twice))),
    Damage("link to a FIFO", _instead(lambda path, outside: path.symlink_to(outside.fifo))),
    Damage("link to a folder", _instead(lambda path, outside: path.symlink_to(outside.somewhere))),
    Damage("link to nothing", _instead(lambda path, outside: path.symlink_to(outside.folder / "none"))),
    Damage("link to itself", _instead(lambda path, outside: path.symlink_to(path))),
    Damage("FIFO", _instead(lambda path, outside: os.mkfifo(path))),
    Damage("link to a device", _instead(lambda path, outside: path.symlink_to("/dev/zero"))),
)
GONE = Damage("gone", lambda path, outside: remove(path), vanishes=True)
DAMAGES: tuple[Damage, ...] = (*CONTENTS, *REPLACEMENTS, GONE)


def apply_to_all(damage: Damage, paths: Sequence[Path], outside: Outside) -> None:
    """Do the same damage to several files, for instance to both replicas."""
    for path in paths:
        damage.apply(path, outside)
