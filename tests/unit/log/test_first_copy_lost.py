"""A writer that looked too early: another published its number since, and that entry lost a copy."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.host import Host
from diskyard.host.files import Files
from diskyard.service import Service, call
from diskyard.testing.world import MIB, host_named

FORMAT = "localfs-1.0"


class Killed(BaseException):
    """The end of a process."""


class _LateFiles(Files):
    """A door whose next link of an entry's first copy is made late: after something else."""

    before: Callable[[Path], None] | None = None
    after: Callable[[], None] | None = None

    def link(self, source: str, target: str) -> None:
        is_first = target.endswith(".a") and "/log/" in target
        before, after = (self.before, self.after) if is_first else (None, None)
        if is_first:
            self.before = self.after = None
        if before is not None:
            before(Path(target))
        super().link(source, target)
        if after is not None:
            after()


class Two:
    """Two hosts on one repository, of which the second is late."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = {"path": str(folder / "a")}
        first = host_named("first")
        self.files = _LateFiles(first.identity)
        self.first = self.service("first")
        call(
            self.first, "createStorageRepository", {"repoFormat": FORMAT, "connectionParameters": self.place}
        )
        late = host_named("late")
        self.late = self.service("late", replace(late, files=self.files))
        for service in (self.first, self.late):
            self.connect(service)
            self.create(service)
            self.images(service)

    def service(self, name: str, host: Host | None = None) -> Service:
        return Service(host or host_named(name), str(self.folder / f"state-{name}"))

    def connect(self, service: Service) -> None:
        asked = {"repoId": "a", "repoFormat": FORMAT, "connectionParameters": self.place}
        call(service, "connectStorageRepository", asked)

    @staticmethod
    def create(service: Service) -> str:
        return str(call(service, "createVirtualDisk", {"targetRepoId": "a", "size": MIB}))

    @staticmethod
    def images(service: Service) -> set[str]:
        return {image["imageId"] for image in call(service, "listImages", {"repositoryId": "a"})["images"]}

    def fresh_images(self) -> set[str]:
        """As somebody reads the log who has known nothing of it."""
        reader = self.service("reader")
        self.connect(reader)
        return self.images(reader)

    def service_anew(self) -> Service:
        anew = self.service("anew")
        self.connect(anew)
        return anew

    def lose(self, first_copy: Path) -> None:
        """Another publishes a number; then the first copy of that entry is lost."""
        self.lost = first_copy
        self.made = self.create(self.first)
        first_copy.unlink()


@pytest.fixture
def two(tmp_path: Path) -> Two:
    return Two(tmp_path)


def expect_both(two: Two, late: str) -> None:
    """What either was told is there, for everybody."""
    for images in (two.fresh_images(), two.images(two.first), two.images(two.late)):
        assert {two.made, late} <= images


def expect_whole(two: Two) -> None:
    """Every entry has both of its copies."""
    for second in (two.folder / "a" / "log").glob("?" * 16 + ".b"):
        assert second.with_suffix(".a").read_bytes() == second.read_bytes()


def clean(two: Two) -> None:
    """As somebody does who has known nothing of it."""
    anew = two.service_anew()
    asked = {"repositoryId": "a", "options": {"types": ["clean"]}}
    for fix in call(anew, "checkStorageRepository", asked):
        if fix["waitsFor"] is None:
            call(anew, "fixStorageRepository", {"repositoryId": "a", "fix": fix})
    anew.tasks.wait()


def test_the_late_writer_has_lost(two: Two) -> None:
    two.files.before = two.lose
    late = two.create(two.late)
    expect_both(two, late)
    expect_whole(two)


def test_others_have_gone_on_meanwhile(two: Two) -> None:
    def lose(first_copy: Path) -> None:
        two.lose(first_copy)
        for _ in range(3):
            two.create(two.first)

    two.files.before = lose
    late = two.create(two.late)
    expect_both(two, late)
    expect_whole(two)


def test_the_late_writer_is_killed_when_it_has_its_name(two: Two) -> None:
    """Nobody reads what it wrote, nor builds on it; and it is cleaned."""

    def kill() -> None:
        raise Killed

    two.files.before, two.files.after = two.lose, kill
    with pytest.raises(Killed):
        two.create(two.late)
    assert two.lost.read_bytes() != two.lost.with_suffix(".b").read_bytes()
    assert two.made in two.fresh_images() & two.images(two.first)
    late = two.create(two.service_anew())
    expect_both(two, late)
    clean(two)
    expect_both(two, late)
    expect_whole(two)


def test_its_own_name_cannot_be_given_back(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came of its change is unknown to it, and of the other's to nobody."""

    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EIO, "Input/output error", target)

    def lose(first_copy: Path) -> None:
        two.lose(first_copy)
        monkeypatch.setattr(two.files, "rename", refuse)

    two.files.before = lose
    with pytest.raises(errors.StorageError) as failed:
        two.create(two.late)
    assert failed.value.details["outcome"] == "unknown"
    monkeypatch.undo()
    late = two.create(two.late)
    expect_both(two, late)
    clean(two)
    expect_whole(two)


def test_a_second_copy_that_is_no_entry_is_left_as_it_is(two: Two) -> None:
    """As a file of somebody else's under the name: the first copy tells the entry."""

    def spoil(first_copy: Path) -> None:
        first_copy.with_suffix(".b").write_bytes(b"nothing of ours")

    two.files.before = spoil
    late = two.create(two.late)
    assert late in two.fresh_images()
