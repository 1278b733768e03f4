"""What goes wrong around a storm: full, read-only, frozen or immutable storage, and a vandal.

The vandal does what a careless person or a damaged disk may do, but leaves what Diskyard needs. It
damages one of two replicas, never both. It leaves files of its own. It spoils what is not needed any
more or may be lost.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from diskyard.testing.full_runs import filled
from diskyard.testing.mounted import Mounted
from diskyard.testing.world import host_named

#: The names of the vandal's own files begin with this.
FOREIGN = "foreign-"
_COPY_NAME_LENGTH = 18
_FOREIGN_FOLDERS = ("volumes", "log", "checkpoints", "progress", "temporary", "")
_PAUSE_S = (0.5, 4.0)
_VANDAL_PAUSE_S = (0.02, 0.4)
_LASTS_S = (0.2, 3.0)
_FREEZES_S = (0.2, 1.5)


class _Going(ABC):
    """A thread that does something until it must end; its exception is raised at the end."""

    def __init__(self, rng: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self._rng = rng
        self._ends = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        self._clear_up()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._go_on()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that ends this one
            self._error = error

    @abstractmethod
    def _go_on(self) -> None:
        """What the thread does until it must end."""

    @abstractmethod
    def _clear_up(self) -> None:
        """Undo what it has done."""


class Weather(_Going):
    """Faults of the storage, one at a time, until it must end.

    :ivar counts: how often each fault happened.
    """

    def __init__(self, disks: Sequence[Mounted], rng: random.Random) -> None:
        super().__init__(rng)
        self._disks = disks

    def _clear_up(self) -> None:
        for disk in self._disks:
            disk.well_again()

    def _go_on(self) -> None:
        faults = (self._full, self._full, self._read_only, self._frozen, self._immutable, self._append_only)
        while not self._ends.wait(self._rng.uniform(*_PAUSE_S)):
            disk = self._rng.choice(self._disks)
            with contextlib.suppress(OSError):  # a repository changes while it is scanned
                self._rng.choice(faults)(disk)

    def _last(self, range_s: tuple[float, float] = _LASTS_S) -> None:
        self._ends.wait(self._rng.uniform(*range_s))

    def _full(self, disk: Mounted) -> None:
        self.counts["full"] += 1
        with filled(disk.place, self._rng.choice([0, 0, 4, 64, 1024]), None):
            self._last()

    def _read_only(self, disk: Mounted) -> None:
        if not disk.set_read_only(True):  # a file is open for writing just now
            self._frozen(disk)
            return
        self.counts["read-only"] += 1
        self._last()
        disk.well_again()

    def _frozen(self, disk: Mounted) -> None:
        self.counts["frozen"] += 1
        disk.freeze()
        self._last(_FREEZES_S)
        disk.thaw()

    def _immutable(self, disk: Mounted) -> None:
        folder = self._rng.choice(["volumes", "log", "."])
        repositories = sorted(path for path in disk.place.iterdir() if (path / "log").is_dir())
        inside = self._rng.choice(repositories) / folder
        items = [path for path in sorted(inside.iterdir()) if path.is_dir() == (folder == ".")]
        self._flag("+i", "-i", items, "immutable")

    def _append_only(self, disk: Mounted) -> None:
        repositories = sorted(path for path in disk.place.iterdir() if (path / "log").is_dir())
        self._flag("+a", "-a", sorted((self._rng.choice(repositories) / "volumes").iterdir()), "append-only")

    def _flag(self, on: str, off: str, items: Sequence[Path], name: str) -> None:
        chosen = [str(path) for path in self._rng.sample(items, min(len(items), 3))]
        if not chosen:
            return
        self.counts[name] += 1
        subprocess.run(["chattr", "-f", on, *chosen], capture_output=True, check=False)
        self._last()
        subprocess.run(["chattr", "-f", off, *chosen], capture_output=True, check=False)


class Vandal(_Going):
    """Spoils what may be spoilt, until it must end.

    :ivar counts: how often it did each thing.
    :ivar foreign: its own files, with their bytes; they must exist at the end.
    """

    def __init__(self, repositories: Sequence[Path], rng: random.Random) -> None:
        super().__init__(rng)
        self.foreign: dict[Path, bytes] = {}
        self._repositories = repositories

    def _clear_up(self) -> None:
        for repository in self._repositories:  # what a fault of the storage kept it from moving
            for fresh in repository.rglob(".vandal"):
                fresh.unlink(missing_ok=True)

    def _go_on(self) -> None:
        acts = (self._hurt_a_copy, self._hurt_a_copy, self._hurt_a_copy, self._leave_a_file,
                self._leave_a_leftover, self._cut_a_leftover, self._spoil_progress)  # fmt: skip
        while not self._ends.wait(self._rng.uniform(*_VANDAL_PAUSE_S)):
            act, repository = self._rng.choice(acts), self._rng.choice(self._repositories)
            with contextlib.suppress(OSError):  # a fault of the storage prevents it, or Diskyard was first
                if act(repository):
                    self.counts[act.__name__.strip("_").replace("_", " ")] += 1

    def _hurt_a_copy(self, repository: Path) -> bool:
        """Damage one replica. The other one of the same object was whole just before, and is left alone."""
        folder = repository / self._rng.choice(["log", "log", "checkpoints"])
        numbers = sorted({path.stem for path in folder.iterdir() if len(path.name) == _COPY_NAME_LENGTH})
        if not numbers:
            return False
        number = self._rng.choice([numbers[-1], *numbers[-6:], *numbers])
        copies = [folder / f"{number}.a", folder / f"{number}.b"]
        self._rng.shuffle(copies)
        victim, other = copies
        whole = victim.read_bytes()
        if not whole or other.read_bytes() != whole:
            return False  # one of them is damaged, or does not exist yet
        if self._rng.random() < 0.2:
            victim.unlink()
            return True
        fresh = folder / ".vandal"
        fresh.write_bytes(self._damaged(whole))
        fresh.rename(victim)
        return True

    def _damaged(self, whole: bytes) -> bytes:
        damaged = bytearray(whole)
        if not damaged:
            return b"spoilt"
        match self._rng.choice(["flip", "cut", "empty", "zero"]):
            case "flip":
                damaged[self._rng.randrange(len(damaged))] ^= 1 << self._rng.randrange(8)
            case "cut":
                del damaged[self._rng.randrange(len(damaged)) :]
            case "empty":
                damaged.clear()
            case _:
                damaged[:] = bytes(len(damaged))
        return bytes(damaged)

    def _leave_a_file(self, repository: Path) -> bool:
        if len(self.foreign) > 60:
            return False
        name = f"{FOREIGN}{len(self.foreign)}" + self._rng.choice(["", ".qcow2", ".raw", ".a"])
        path = repository / self._rng.choice(_FOREIGN_FOLDERS) / name
        data = self._rng.randbytes(self._rng.randrange(2000))
        path.write_bytes(data)
        self.foreign[path] = data
        return True

    def _leave_a_leftover(self, repository: Path) -> bool:
        """Leave a temporary file, as from an earlier boot of this machine."""
        machine = host_named("").identity.machine_id
        boot = f"{self._rng.getrandbits(128):032x}"
        folder = repository / self._rng.choice(["log", "volumes", "temporary", "checkpoints"])
        name = f"tmp.{machine}.{boot}.4026531836.{self._rng.randrange(2, 99999)}.7.{self._rng.randrange(99)}"
        (folder / name).write_bytes(bytes(8192))
        return True

    def _cut_a_leftover(self, repository: Path) -> bool:
        """Cut a temporary file of an earlier boot, which nobody writes any more."""
        boot = host_named("").identity.boot_id
        found = [path for path in sorted(repository.rglob("tmp.*")) if boot not in path.name]
        if not found:
            return False
        os.truncate(self._rng.choice(found), self._rng.randrange(4096))
        return True

    def _spoil_progress(self, repository: Path) -> bool:
        """Spoil a progress file. It says how far the work on an image is, and may be lost."""
        found = sorted((repository / "progress").iterdir())
        found = [path for path in found if not path.name.startswith(FOREIGN)]
        if not found:
            return False
        victim = self._rng.choice(found)
        fresh = victim.with_name(".vandal")
        fresh.write_bytes(self._damaged(victim.read_bytes()))
        if not victim.exists():
            fresh.unlink()
            return False
        fresh.rename(victim)
        return True
