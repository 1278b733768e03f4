"""A repository whose storage calls are counted, and whose clock a test sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from diskyard import KiB
from diskyard.host import Clock, Files, Host, HostIdentity
from diskyard.model import requests as ask
from diskyard.model.options import CheckOptions
from diskyard.model.results import ImageInfo, ImagePage
from diskyard.repository.repository import Repository, volume_name
from diskyard.service import Service
from diskyard.service.verbs import run_unwatched

R = TypeVar("R")
SIZE = 64 * KiB
LATER_S = 60.0
WAIT_S = 60.0


class LateClock(Clock):
    """A clock that is behind, so that all files seem to have been written just now, or is put ahead.

    :ivar ahead_s: by how much.
    """

    ahead_s = -LATER_S

    def wall_s(self) -> float:
        return super().wall_s() + self.ahead_s


@dataclass
class Calls:
    """What was asked of the files below one folder.

    :ivar looked: the names of volumes that were looked at, each as often as it was.
    :ivar read: the volumes of which something was read.
    :ivar listed: the folders that were listed.
    :ivar others: the names of all other calls.
    """

    looked: list[str] = field(default_factory=list)
    read: list[str] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


class CountingFiles(Files):
    """Files that note what is asked of volumes and locks."""

    def __init__(self, identity: HostIdentity) -> None:
        super().__init__(identity)
        self.calls = Calls()

    def passing(self, name: str, words: tuple[object, ...], do: Callable[[], R]) -> R:
        path = str(words[0]) if words else ""
        if name == "look_at" and Path(path).name == "volumes":
            assert isinstance(words[1], Sequence)
            self.calls.looked += map(str, words[1])
        elif name == "look" and Path(path).parent.name == "volumes":
            self.calls.looked.append(Path(path).name)
        elif name in ("read_at", "read_beginning", "open_to_read") and Path(path).parent.name == "volumes":
            self.calls.read.append(Path(path).name)
        elif name == "list":
            self.calls.listed.append(Path(path).name)
        else:
            self.calls.others.append(name)
        return super().passing(name, words, do)


class Bench:
    """One host with one repository, ``r``."""

    def __init__(self, folder: Path) -> None:
        real = Host.real()
        self.files, self.clock = CountingFiles(real.identity), LateClock()
        host = replace(real, files=self.files, clock=self.clock)
        self.service = Service(host, str(folder / "state"))
        place = {"path": str(folder / "repository")}
        self.run(ask.CreateStorageRepository(repo_format="localfs-1.0", connection_parameters=place))
        self.run(
            ask.ConnectStorageRepository(repo_id="r", repo_format="localfs-1.0", connection_parameters=place)
        )

    @property
    def repository(self) -> Repository:
        return self.service.connections.get("r")

    def run(self, request: ask.Request) -> Any:
        return run_unwatched(self.service, request)

    def disk(self, **more: Any) -> str:
        made: str = self.run(ask.CreateVirtualDisk(target_repo_id="r", size=SIZE, **more))
        return made

    def snapshot(self, disk: str) -> str:
        made: str = self.run(ask.CreateSnapshot(target_repo_id="r", base_virtual_disk_id=disk))
        return made

    def remove(self, image_id: str) -> None:
        self.run(ask.RemoveImage(repository_id="r", image_id=image_id))

    def page(self, **words: Any) -> ImagePage:
        found: ImagePage = self.run(ask.ListImages(repository_id="r", **words))
        return found

    def pages(self, **words: Any) -> Iterator[ImagePage]:
        cursor: str | None = None
        while True:
            page = self.page(cursor=cursor, **words)
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return

    def statuses(self) -> dict[str, str]:
        infos: list[ImageInfo] = [info for page in self.pages(limit=3) for info in page.images]
        return {info.image_id: info.status for info in infos}

    def check(self, **options: Any) -> list[Any]:
        request = ask.CheckStorageRepository(repository_id="r", options=CheckOptions(**options))
        found: list[Any] = self.run(request)
        return found

    def fix_all(self) -> None:
        """Run all that a check lists, until it lists nothing."""
        while fixes := self.check():
            for fix in fixes:
                self.run(ask.FixStorageRepository(repository_id="r", fix=fix))
                assert self.service.tasks.wait(timeout_s=WAIT_S)

    def path(self, image_id: str) -> Path:
        """The file of an image's own volume."""
        state = self.repository.state()
        volume = state.volumes[str(state.images[image_id].volume_id)]
        return Path(str(self.repository.storage.locate_volume(volume_name(volume)).path))

    def names_below(self, image_id: str) -> set[str]:
        """The files that an image reads."""
        state = self.repository.state()
        return {str(volume_name(volume)) for _, volume in state.chain(state.images[image_id])}

    @contextmanager
    def counted(self) -> Iterator[Calls]:
        """What is asked of storage within."""
        self.files.calls = Calls()
        yield self.files.calls
        self.files.calls = Calls()

    def close(self) -> None:
        self.service.close()
