"""An operation or fix on a file system with almost no free space, and when it has space again."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diskyard import errors
from diskyard.service import call
from diskyard.testing.fault_injection import Injector
from diskyard.testing.fault_runs import FaultRuns, nothing_left_behind, tear_down
from diskyard.testing.scenarios.base import LATER
from diskyard.testing.world import KIB, MIB, World, host_named, judge_outcome

_LARGEST_PIECE_BYTES, _SMALLEST_PIECE_BYTES = 64 * MIB, KIB


class FullRuns(FaultRuns):
    """One scenario, prepared once in a file system, and run there with little free space."""

    def run_full(self, *, left_kib: int | None = None, left_inodes: int | None = None) -> bool:
        """Do it with so much left, then with space, and judge. Return whether it succeeded at once."""
        world = self.copied()
        service = world.service(host_named("filling"))
        before, after = dict(world.images), self.scenario.after(world)
        with nothing_left_behind(world.folder), filled(self.folder, left_kib, left_inodes):
            error = self._act(world, service, Injector(), None, (_nothing, _nothing))
        if error is not None:
            assert isinstance(error, errors.NoSpace | errors.UnknownOutcome), repr(error)
        tear_down(world, service)
        service.close()
        judge_outcome(world, before, after, answered=error is None, order=random.Random(0))
        shutil.rmtree(world.folder)
        return error is None

    def run_removal(self, *, left_kib: int) -> None:
        """Remove all images one by one while the storage is full, and clean."""
        world = self.copied()
        service = world.service(host_named("filling"))
        with filled(self.folder, left_kib, None):
            for name in ("s2", "d", "s1"):
                asked = {"repositoryId": "a", "imageId": world.names[name], "options": LATER}
                call(service, "removeImage", asked)
                del world.images["a", world.names[name]]
            world.fix_all([service], random.Random(left_kib))
        service.close()
        judge(world)
        shutil.rmtree(world.folder)


def judge(world: World) -> None:
    """Judge as a host that had no part in it."""
    survivor = world.service(host_named("survivor"))
    world.fix_all([survivor], random.Random(0))
    world.judge(survivor)
    survivor.close()


def _nothing() -> None:
    return


@contextmanager
def filled(folder: Path, left_kib: int | None, left_inodes: int | None) -> Iterator[None]:
    """A context in which the directory's file system has so much space, or so many files, left.

    :param left_kib: None to leave the free space as it is.
    :param left_inodes: None to leave the number of possible files as it is.
    """
    ballast = folder / "ballast"
    ballast.mkdir()
    try:
        if left_inodes is not None:
            for number in range(os.statvfs(folder).f_ffree - left_inodes):
                (ballast / str(number)).touch()
        if left_kib is not None:
            _fill(ballast / "file", left_kib * KIB)
        yield
    finally:
        shutil.rmtree(ballast)


def _fill(path: Path, left_bytes: int) -> None:
    """Take all space that can be had, then give so much back.

    Not all the space that a file system shows as free can be had: ext4 keeps 2 % for itself.
    """
    with path.open("wb") as file:
        piece_bytes, length_bytes = _LARGEST_PIECE_BYTES, 0
        while piece_bytes >= _SMALLEST_PIECE_BYTES:
            try:
                os.posix_fallocate(file.fileno(), length_bytes, piece_bytes)
                length_bytes += piece_bytes
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                piece_bytes //= 2
        os.ftruncate(file.fileno(), max(0, length_bytes - left_bytes))
        os.fsync(file.fileno())
