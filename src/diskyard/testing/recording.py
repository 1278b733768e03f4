"""Running a scenario on a simulated disk, and judging what losses of power leave of it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from diskyard.host import Clock, Commands, Files, Host, HostIdentity
from diskyard.host.identity import new_nonce
from diskyard.mover.blockgraph import StorageDaemon
from diskyard.mover.nbdclient import NbdClient
from diskyard.testing.power_cut import ANSWERED, BEGIN, CutState, RecordedDisk
from diskyard.testing.scenarios import Scenario
from diskyard.testing.simulated_disk import mounted, read_journal
from diskyard.testing.simulated_files import MARK, SYNC_MARK
from diskyard.testing.world import PLACES, Images, World, host_named, judge_outcome

_PACKAGE = str(Path(__file__).resolve().parent.parent)
_CALLERS = 4
_ASK_QEMU = ((NbdClient, "flush"), (StorageDaemon, "run_job"), (StorageDaemon, "close"), (Commands, "run"))


class TellingFiles(Files):
    """Files that tell the simulated disk what each sync is for.

    :param mount: where the disk is mounted; on others nothing is told.
    """

    def __init__(self, host: HostIdentity, mount: Path) -> None:
        super().__init__(host)
        self._device = os.stat(mount).st_dev

    def sync(self, fd: int) -> None:
        """See :meth:`Files.sync`."""
        if os.fstat(fd).st_dev == self._device:
            os.setxattr(fd, SYNC_MARK, _callers().encode())
        super().sync(fd)

    def sync_folder(self, folder: str) -> None:
        """See :meth:`Files.sync_folder`."""
        if os.stat(folder).st_dev == self._device:
            os.setxattr(folder, SYNC_MARK, f"folder: {_callers()}".encode())
        super().sync_folder(folder)


def _callers() -> str:
    """The functions of Diskyard that led here, the innermost first."""
    names: list[str] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(names) < _CALLERS:
        path = frame.f_code.co_filename
        if path.startswith(_PACKAGE) and not path.startswith(os.path.join(_PACKAGE, "testing")):
            names.append(frame.f_code.co_name)
        frame = frame.f_back
    return " < ".join(names)


@contextlib.contextmanager
def _telling_of_qemu(mount: Path) -> Iterator[None]:
    """Tell the simulated disk what QEMU's programs are asked for while they are."""

    def telling(original: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            os.setxattr(mount, SYNC_MARK, f" in {name} < {_callers()}".encode())
            try:
                return original(*arguments, **options)
            finally:
                os.setxattr(mount, SYNC_MARK, b"")

        return call

    with contextlib.ExitStack() as stack:
        for owner, name in _ASK_QEMU:
            method = telling(getattr(owner, name), name)
            stack.enter_context(mock.patch.object(owner, name, method))
        yield


def lost_host(mount: Path) -> Host:
    """This machine in an earlier boot, under another name: where the power fails."""
    identity = HostIdentity("lost-host", Host.real().identity.machine_id, new_nonce())
    return Host(identity, TellingFiles(identity, mount), Commands(), Clock())


@dataclass(frozen=True)
class Recording:
    """A scenario that has run on a simulated disk.

    :param world: what must be true, said of the disk.
    :param before: the images before it, and ``after``: with it done.
    """

    scenario: Scenario
    world: World
    before: Images
    after: Images
    disk: RecordedDisk

    def judge(self, disk: RecordedDisk, state: CutState, folder: Path) -> None:
        """Start hosts on what a cut has left; all must be right once they have fixed it."""
        disk.write(state.cut, folder)
        try:
            world = self.world.moved(folder)
            order = random.Random(state.digest)
            judge_outcome(world, self.before, dict(self.after), answered=state.answered, order=order)
        finally:
            shutil.rmtree(folder)


def record(scenario: Scenario, folder: Path, seed: int) -> Recording:
    """Run a scenario on a simulated disk, in a new folder."""
    folder.mkdir()
    prepared = World(folder / "prepared")
    prepared.create()
    builder = prepared.service(host_named("builder"))
    scenario.prepare(prepared, builder)
    builder.close()
    held = prepared.copied(folder / "held")
    # What is not in the repositories, files to import for instance, is not on the disk that fails.
    mount, world = folder / "mount", held.moved(folder / "world")
    mount.mkdir()
    world.folder.mkdir()
    for place in PLACES:
        (world.folder / place).symlink_to(mount / place)
    with mounted(held.folder, mount, folder / "journal"), _telling_of_qemu(mount):
        service = world.service(lost_host(mount))
        before, after = dict(world.images), scenario.after(world)
        os.setxattr(mount, MARK, BEGIN.encode())
        scenario.act(world, service)
        os.setxattr(mount, MARK, ANSWERED.encode())
        service.close()
    disk = RecordedDisk(held.folder, read_journal(folder / "journal"), seed)
    return Recording(scenario, world, before, after, disk)
