"""Names in repositories are exchanged for links that lead outside, and back, as quickly as possible.

Meanwhile disks are merged, copied, extended, exported, imported and checked. Whatever the results, no byte
outside may be read or written, and no name there made or removed. The guest that writes the disks opens
them by name, as guests do: nothing is exchanged while it runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from diskyard import errors
from diskyard.storage.localfs import layout
from diskyard.testing.attackers.hosts import Counts, Places, YardHost, create_places
from diskyard.testing.swaps import LINK_KINDS, holders_of_secret, make_outside
from diskyard.testing.world import KIB

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_SIZE_BYTES = 1024 * KIB
_WRITTEN = ("write -P 119 0 512k", "flush")
_FOLDER_SHARE = 0.1
_TIDY_EVERY = 32
_OUT_S, _IN_S = (0.0005, 0.004), (0.001, 0.01)
_FOLDERS = (layout.VOLUMES, layout.TEMPORARY, layout.PROGRESS)
_libc = ctypes.CDLL(None, use_errno=True)


def _exchange(one: Path, other: Path) -> None:
    """Exchange two names atomically."""
    words = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if _libc.renameat2(*words):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one))


@dataclass
class Flipper:
    """A thread that makes names lead outside for some milliseconds each.

    :param roots: repositories. Some of their directories are exchanged, and every file in ``folders``.
    :param outside: from :func:`make_outside`, on the same file system; ``victim``: a directory beside them.
    :ivar flips: how often a name has led outside.
    """

    roots: list[Path]
    folders: list[Path]
    outside: dict[str, Path]
    victim: Path
    rng: random.Random
    flips: int = 0
    _still: threading.Lock = field(default_factory=threading.Lock)
    _over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="flipper")
        self._thread.start()

    def end(self) -> None:
        """Stop the thread. Every name leads to its own file again."""
        self._over.set()
        self._thread.join()

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """A context in which nothing is exchanged."""
        with self._still:
            yield

    def _run(self) -> None:
        while not self._over.is_set():
            with self._still:
                self._flip()
            time.sleep(self.rng.uniform(*_IN_S))

    def _flip(self) -> None:
        path = self._pick()
        if path is None:
            return
        link = self.victim.parent / "flipped"
        # The name may be gone by now, and another file that gets it later is not ours to keep.
        with contextlib.suppress(OSError):
            self._make_link(link, path)
            _exchange(link, path)
            self.flips += 1
            time.sleep(self.rng.uniform(*_OUT_S))
            _exchange(link, path)
        with contextlib.suppress(FileNotFoundError):
            link.unlink()

    def _pick(self) -> Path | None:
        if self.rng.random() < _FOLDER_SHARE:
            return self.rng.choice(self.roots) / self.rng.choice(_FOLDERS)
        with contextlib.suppress(OSError):
            names = [path for folder in self.folders for path in folder.iterdir()]
            return self.rng.choice(names) if names else None
        return None

    def _make_link(self, link: Path, path: Path) -> None:
        if path.is_dir():
            link.symlink_to(self.victim)
            return
        with path.open("rb") as file:
            target = self.outside["qcow2" if file.read(4) == b"QFI\xfb" else "raw"]
        if self.rng.choice(LINK_KINDS) == "hard link":
            link.hardlink_to(target)
        else:
            link.symlink_to(target)


def swap_race(folder: Path, places: Places, seconds: float, seed: int) -> tuple[Counts, int]:
    """Work and exchange names for a time; what was tried and found, and how often a name led outside.

    :param folder: for state directories, exports, and what is outside; on the repositories' file system.
    :param places: repositories ``a`` and ``b``, which this makes.
    """
    create_places(places, folder / "state-creator")
    outside, out = make_outside(folder / "outside"), folder / "out"
    victim = folder / "outside" / "victim"
    for made in (out, victim):
        made.mkdir()
    for name in ("11111111-2222-4333-8444-555555555555", "0000000000000001.a"):
        (victim / name).write_bytes(b"precious")
    before = _contents(folder / "outside")
    volumes = [root / name for root in places.values() for name in (layout.VOLUMES, layout.TEMPORARY)]
    flipper = Flipper([*places.values()], [*volumes, out], outside, victim, random.Random(f"{seed} flips"))
    told, host = Counts(), YardHost("swapped", folder, places)
    flipper.start()
    try:
        _work(host, flipper, out, told, random.Random(f"{seed} work"), time.monotonic() + seconds)
    finally:
        flipper.end()
        host.close()
    after = _contents(folder / "outside")
    told.wrong += [
        f"changed outside: {name}" for name in before | after if before.get(name) != after.get(name)
    ]
    told.wrong += [f"read into {path}" for path in holders_of_secret(folder, folder / "outside")]
    return told, flipper.flips


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _work(
    host: YardHost, flipper: Flipper, out: Path, told: Counts, rng: random.Random, ends_s: float
) -> None:
    for number in itertools.count():
        if time.monotonic() > ends_s:
            return
        if number % _TIDY_EVERY == 0:
            with flipper.still(), _answers(told):
                _tidy(host)
        with _answers(told):
            with flipper.still():
                disk = host("createVirtualDisk", targetRepoId="a", size=_SIZE_BYTES)
                host.write("a", disk, _WRITTEN)
                base = host("createSnapshot", targetRepoId="a", baseVirtualDiskId=disk)
                host.write("a", disk, _WRITTEN)
            for act in rng.sample((_export, _copy, _extend, _check, _import), 3):
                with _answers(told):
                    act(host, disk, out, rng)
                    told.did(act.__name__.strip("_"))
                host.wait()
            host("removeImage", repositoryId="a", imageId=base, options={"AutoFix": False})
            for fix in host.fixes("a"):
                with _answers(told):
                    told.fixes += fix.runnable and host.run_fix("a", fix)
            host("removeImage", repositoryId="a", imageId=disk)
        host.wait()
        _look_into(out, told)


def _tidy(host: YardHost) -> None:
    """Remove what has accumulated, for which the file systems have little space."""
    for place in "ab":
        for image in host("listImages", repositoryId=place)["images"]:
            host("removeImage", repositoryId=place, imageId=image["imageId"], options={"AutoFix": False})
        for fix in host.fixes(place):
            if fix.runnable:
                host.run_fix(place, fix)


@contextlib.contextmanager
def _answers(told: Counts) -> Iterator[None]:
    """A context that accepts any Diskyard error, as the storage is being damaged, except for a defect."""
    try:
        yield
    except errors.DiskyardError as error:
        told.refused[error.code] = told.refused.get(error.code, 0) + 1
        if isinstance(error, errors.InternalError):
            told.serious.append(f"{error.message} because of {error.__cause__!r}")


def _export(host: YardHost, disk: str, out: Path, rng: random.Random) -> None:
    format = rng.choice(("raw", "qcow2", "vmdk"))
    path = out / f"{rng.getrandbits(64):x}.{format}"
    host("exportImage", repositoryId="a", imageId=disk, path=str(path), format=format)


def _copy(host: YardHost, disk: str, out: Path, rng: random.Random) -> None:
    host("copyImage", targetRepoId="b", imageId=disk)


def _extend(host: YardHost, disk: str, out: Path, rng: random.Random) -> None:
    host("extendVirtualDisk", repositoryId="a", imageId=disk, size=2 * _SIZE_BYTES)


def _check(host: YardHost, disk: str, out: Path, rng: random.Random) -> None:
    host("checkStorageRepository", repositoryId="a", options={"deep": True})


def _import(host: YardHost, disk: str, out: Path, rng: random.Random) -> None:
    path = out / f"{rng.getrandbits(64):x}.import"
    path.write_bytes(b"imported" * (_SIZE_BYTES // 8))
    host("importImage", targetRepoId="b", path=str(path), format="raw")


def _look_into(out: Path, told: Counts) -> None:
    """Require that an exported file shows nothing of what is outside; then remove it."""
    told.wrong += [f"read into {path}" for path in holders_of_secret(out, out / "none")]
    for path in out.iterdir():
        path.unlink()
