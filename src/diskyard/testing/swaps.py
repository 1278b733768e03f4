"""Names that somebody swaps for links between a check of them and their use, at one moment after another.

Anyone who may write to the directories of a repository, or of a transfer, can put a link to any file in a
name's place. This is done at each moment of an operation, just before a storage call or the start of a
program, and undone some calls later, or never. No byte of the file outside may be read or written.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from diskyard import errors
from diskyard.host import Child, Clock, Commands, Files, Host, HostIdentity
from diskyard.testing.scenarios import Scenario
from diskyard.testing.world import PLACES, SIZE_BYTES, World, host_named

R = TypeVar("R")
SECRET = b"OUTSIDE-SECRET.." * 32
"""A sector of what is outside, of which all its files consist."""

LinkKind = Literal["symbolic link", "hard link"]
LINK_KINDS: tuple[LinkKind, ...] = ("symbolic link", "hard link")
_TASKS_END_S = 120.0


@dataclass(frozen=True, slots=True)
class Swap:
    """What is swapped, when, and for how long.

    :param at: the index of the call before which names become links.
    :param calls: after this many calls the names are restored; None for never.
    """

    at: int
    kind: LinkKind
    calls: int | None

    def __str__(self) -> str:
        """Its name in tests."""
        return f"{self.kind} at call {self.at}, for {self.calls or 'all'} calls"


@dataclass
class Swapper:
    """The calls of one operation, and the names that are swapped at one of them.

    :param folders: the directories in which the names that ``wanted`` allows are swapped.
    :param outside: the file outside to which a name leads then.
    :ivar calls: the calls since :meth:`begin`.
    """

    folders: Sequence[Path]
    wanted: Callable[[Path], bool]
    outside: Callable[[Path], Path]
    stash: Path
    calls: list[str] = field(default_factory=list)
    _swap: Swap | None = None
    _active: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, swap: Swap | None) -> None:
        """Begin to count, and to swap."""
        self.calls, self._swap, self._active = [], swap, True

    def end(self) -> None:
        """End swapping. Names that are swapped stay so."""
        self._active = False

    def passing(self, what: str) -> None:
        """Record a call, and swap if it is time."""
        with self._lock:
            if not self._active:
                return
            index, swap = len(self.calls), self._swap
            self.calls.append(what)
            if swap is not None and index == swap.at:
                self.put_links(swap.kind)
            elif swap is not None and swap.calls is not None and index == swap.at + swap.calls:
                self.take_back()

    def put_links(self, kind: LinkKind) -> None:
        """Let the names lead outside. The files that had them are kept."""
        self.stash.mkdir(exist_ok=True)
        names = [path for folder in self.folders if folder.is_dir() for path in sorted(folder.iterdir())]
        for number, path in enumerate(names):
            if path.is_symlink() or not self.wanted(path):
                continue
            outside = self.outside(path)
            kept = self.stash / f"{number}"
            (self.stash / f"{number}.name").write_text(str(path))
            path.rename(kept)
            if kind == "hard link":
                path.hardlink_to(outside)
            else:
                path.symlink_to(outside)

    def take_back(self) -> None:
        """Restore the names, even those that were removed meanwhile."""
        for told in self.stash.glob("*.name"):
            told.with_suffix("").rename(told.read_text())
            told.unlink()


class _SwappedFiles(Files):
    def __init__(self, host: HostIdentity, swapper: Swapper) -> None:
        super().__init__(host)
        self._swapper = swapper

    def passing(self, name: str, words: tuple[object, ...], do: Callable[[], R]) -> R:
        """See :meth:`Files.passing`."""
        self._swapper.passing(name)
        return super().passing(name, words, do)


class _SwappedCommands(Commands):
    def __init__(self, swapper: Swapper) -> None:
        self._swapper = swapper

    def start(self, words: Sequence[str], **options: Any) -> Child:
        """See :meth:`Commands.start`."""
        self._swapper.passing(f"start {words[0]}")
        return super().start(words, **options)

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """See :meth:`Commands.telling`."""
        self._swapper.passing(what)
        with super().telling(what):
            yield

    @contextmanager
    def asking(self, what: str) -> Iterator[None]:
        """See :meth:`Commands.asking`."""
        self._swapper.passing(what)
        with super().asking(what):
            yield


def swapped_host(swapper: Swapper, host_id: str) -> Host:
    """This machine under another name; the swapper is called before each storage call."""
    identity = host_named(host_id).identity
    return Host(identity, _SwappedFiles(identity, swapper), _SwappedCommands(swapper), Clock())


def make_outside(folder: Path) -> dict[str, Path]:
    """A raw and a qcow2 file full of :data:`SECRET`, in a new directory, as ``raw`` and ``qcow2``."""
    folder.mkdir()
    raw, qcow2 = folder / "outside.raw", folder / "outside.qcow2"
    raw.write_bytes(SECRET * (SIZE_BYTES // len(SECRET)))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2], check=True)
    return {"raw": raw, "qcow2": qcow2}


def holders_of_secret(folder: Path, but: Path) -> list[str]:
    """The regular files below a directory that contain a sector of what is outside."""
    return [
        str(path)
        for path in folder.rglob("*")
        if but not in path.parents
        and path.is_file()
        and not path.is_symlink()
        and path.stat().st_nlink == 1
        and SECRET[:64] in path.read_bytes()
    ]


class SwapRuns:
    """One scenario, prepared once, and run once for each swap.

    :param folder: the directory in which worlds are made.
    """

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario, self.folder = scenario, folder
        self._runs = 0
        self._prepared = World(folder / "prepared")
        self._prepared.create()
        builder = self._prepared.service(host_named("builder"))
        scenario.prepare(self._prepared, builder)
        builder.close()

    def calls(self) -> list[str]:
        """The calls of a run in which nothing is swapped."""
        return self.run(None)

    def run(self, swap: Swap | None) -> list[str]:
        """Do it with a swap, with any result. Return the calls that were made.

        :raises AssertionError: a byte outside was read or written.
        """
        self._runs += 1
        world = self._prepared.copied(self.folder / f"run-{self._runs}")
        outside = make_outside(world.folder / "outside")
        before = {path: path.read_bytes() for path in outside.values()}
        swapper = _swapper_of(world, outside)
        service = world.service(swapped_host(swapper, "swapped"))
        swapper.begin(swap)
        try:
            self.scenario.act(world, service)
            assert service.tasks.wait(timeout_s=_TASKS_END_S), "what it started does not end"
        except (errors.DiskyardError, StopIteration) as error:
            if swap is None or isinstance(error, errors.InternalError):
                raise
        finally:
            swapper.end()
            service.close()
        for path, data in before.items():
            assert path.read_bytes() == data, f"{path.name} was written to: {swap}"
        read = holders_of_secret(world.folder, world.folder / "outside")
        assert not read, f"what is outside was read into {read}: {swap}"
        shutil.rmtree(world.folder)
        return swapper.calls


def _swapper_of(world: World, outside: dict[str, Path]) -> Swapper:
    """A swapper of volumes, private copies, and temporary files of exports."""
    folders = [world.folder / place / name for place in PLACES for name in ("volumes", "temporary")]

    def wanted(path: Path) -> bool:
        outer = path.parent == world.folder
        return path.is_file() and (not outer or path.name.startswith(("tmp.", "import.")))

    def outside_of(path: Path) -> Path:
        with path.open("rb") as file:
            return outside["qcow2" if file.read(4) == b"QFI\xfb" else "raw"]

    return Swapper([*folders, world.folder], wanted, outside_of, world.folder / "stash")
