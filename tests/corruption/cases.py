"""One damage on a copy of the prepared world, surveyed and judged."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from diskyard.log.store import LogKind
from diskyard.storage.localfs import layout
from diskyard.testing.read_chain import read_image
from diskyard.testing.survey import Survey, survey, watchdog
from diskyard.testing.world import World, host_named

CASE_LIMIT_S = 60


@dataclass
class Bench:
    """The prepared world, and where its copies go."""

    prepared: World
    folder: Path
    count: list[int] = field(default_factory=list)

    @contextmanager
    def world(self) -> Iterator[World]:
        """A copy of the prepared world, for one case; no case may take long."""
        self.count.append(1)
        folder = self.folder / "case"
        try:
            with watchdog(CASE_LIMIT_S):
                yield self.prepared.copied(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def numbers(self, kind: LogKind) -> list[int]:
        """The entries or checkpoints of repository a."""
        names = Path(layout.log_folder(str(self.prepared.folder / "a"), kind)).iterdir()
        return sorted({number for path in names if (number := layout.log_number(path.name)) is not None})


def copies_of(world: World, kind: LogKind, number: int) -> list[Path]:
    """Both files of an object of repository a's log."""
    return [Path(path) for path in layout.log_paths(str(world.folder / "a"), kind, number)]


def expect_whole(world: World, found: Survey, *, but: Callable[[str, str], bool] | None = None) -> None:
    """Every image has exactly its bytes.

    :param but: the images of which this need not be so: they may be refused, never wrong.
    """
    for (place, image_id), data in world.images.items():
        excepted = but is not None and but(place, image_id)
        if excepted and (place, image_id) not in found.bytes:
            continue
        assert (place, image_id) in found.bytes, f"image {image_id} in {place}: {found.errors}"
        assert found.bytes[place, image_id] == data, f"bytes of image {image_id} in {place}"


def expect_healthy(world: World) -> None:
    """Another new host finds nothing wrong and nothing to do, and all bytes are right."""
    found = survey(world, "later", only_ask=True)
    assert not found.errors, found.errors
    assert not found.listed, found.listed
    expect_whole(world, found)
    service = world.service(host_named("judge"))
    world.judge(service)
    service.close()


def expect_readable(world: World) -> None:
    """The state that stands shows every image's bytes, whether or not it can be written."""
    service = world.service(host_named("reader"))
    try:
        for (place, image_id), data in world.images.items():
            assert read_image(service.connections.get(place), image_id) == data
    finally:
        service.close()
