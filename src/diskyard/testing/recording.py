"""Running a scenario on a simulated disk, and judging what power cuts leave of it."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from diskyard import errors
from diskyard.host import Clock, Commands, Files, Finished, Host, HostIdentity
from diskyard.host.identity import new_nonce
from diskyard.log.log import Log
from diskyard.repository.commit import refresh
from diskyard.storage.registry import find_format
from diskyard.testing.power_cut import ANSWERED, BEGIN, FIXED_VARIANTS, CutState, RecordedDisk
from diskyard.testing.scenarios import Scenario
from diskyard.testing.scenarios.durable import NEW_PLACE, OUTSIDE, DiskScenario
from diskyard.testing.simulated_disk import mounted, read_journal
from diskyard.testing.simulated_files import MARK, OTHERS_MARK, SYNC_MARK
from diskyard.testing.world import PLACES, Images, World, host_named, judge_outcome

_PACKAGE = str(Path(__file__).resolve().parent.parent)
_CALLERS = 4
#: Exceptions that mean that something is lost. Any other one is a defect of the judge.
_NOT_AS_IT_MUST_BE = (
    AssertionError,
    errors.DiskyardError,
    OSError,
    struct.error,  # a volume ends inside its tables
    subprocess.CalledProcessError,  # QEMU cannot read a volume
)
_HOW_IT_IS_SAID = ("telling", "_telling", "command", "__exit__", "close", "end", "sync")


class TellingFiles(Files):
    """Files that announce to the simulated disk what each sync is for.

    :param mount: where the disk is mounted; on other file systems nothing is announced.
    :param reflink: clone by copying the bytes, which are no more durable than a clone's.
    """

    def __init__(self, host: HostIdentity, mount: Path, *, reflink: bool = False) -> None:
        super().__init__(host)
        self._device = os.stat(mount).st_dev
        self._reflink = reflink

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

    def clone(self, source_fd: int, target_fd: int) -> None:
        """See :meth:`Files.clone`."""
        if not self._reflink:
            super().clone(source_fd, target_fd)
            return
        size_bytes = os.fstat(source_fd).st_size
        self.write(target_fd, os.pread(source_fd, size_bytes, 0))


class TellingCommands(Commands):
    """Programs that announce to the simulated disk what they were last told to do."""

    def __init__(self, mount: Path) -> None:
        self._mount = mount

    def run(self, words: Sequence[str], **options: Any) -> Finished:
        """See :meth:`Commands.run`."""
        with self.telling(words[0]):
            return super().run(words, **options)

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """See :meth:`Commands.telling`; NBD's writes make nothing durable."""
        if what not in ("nbd write", "nbd zero"):
            os.setxattr(self._mount, OTHERS_MARK, f"QEMU since {what} < {_callers()}".encode())
        yield


def _callers() -> str:
    """The functions of Diskyard in the call stack, the innermost first."""
    names: list[str] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(names) < _CALLERS:
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        is_ours = path.startswith(_PACKAGE) and not path.startswith(os.path.join(_PACKAGE, "testing"))
        if is_ours and name not in (*_HOW_IT_IS_SAID, *names[-1:]):
            names.append(name)
        frame = frame.f_back
    return " < ".join(names)


def lost_host(mount: Path, *, reflink: bool = False) -> Host:
    """This machine in an earlier boot, under another name. Its power fails."""
    identity = HostIdentity("lost-host", Host.real().identity.machine_id, new_nonce())
    return Host(identity, TellingFiles(identity, mount, reflink=reflink), TellingCommands(mount), Clock())


@dataclass(frozen=True)
class Recording:
    """A scenario that has run on a simulated disk.

    :param world: what must be true of the disk.
    :param before: the images before the operation, and ``after``: with it done.
    :param unnamed: the volumes that the log did not name before it.
    """

    scenario: Scenario
    world: World
    before: Images
    after: Images
    unnamed: set[str]
    disk: RecordedDisk

    def judge(self, disk: RecordedDisk, state: CutState, folder: Path) -> None:
        """Start hosts on what a cut has left. Once they have fixed it, everything must be right."""
        disk.write(state.cut, folder)
        try:
            world = self.world.moved(folder)
            order = random.Random(state.digest)
            unnamed = _unnamed(world) - self.unnamed
            assert not unnamed, f"volumes that the log does not name: {unnamed}"
            if isinstance(self.scenario, DiskScenario) and self.scenario.judge is not None:
                self.scenario.judge(world, state.answered)
            judge_outcome(world, self.before, dict(self.after), answered=state.answered, order=order)
            self.scenario.look_at(world, answered=state.answered)
        finally:
            shutil.rmtree(folder)

    def judge_again(
        self,
        disk: RecordedDisk,
        state: CutState,
        folder: Path,
        choose: Callable[[list[CutState]], list[CutState]],
    ) -> tuple[int, int]:
        """Start a host on what a cut has left, cut the power again while it fixes that, and judge.

        :param choose: which of the states that the second cut may leave are judged.
        :return: how many records the journal of the fixes has, and how many states were judged.
        """
        folder.mkdir()
        disk.write(state.cut, folder / "held")
        world = _on_mount(self.world, folder)
        with mounted(folder / "held", folder / "mount", folder / "journal"):
            host = lost_host(folder / "mount", reflink=_shares(self.scenario))
            complete = self.scenario.complete if isinstance(self.scenario, DiskScenario) else None
            service = world.service(host, connected=complete is None)
            os.setxattr(folder / "mount", MARK, BEGIN.encode())
            if complete:
                complete(world, service)
            else:
                world.fix_all([service], random.Random(state.digest))
            os.setxattr(folder / "mount", MARK, ANSWERED.encode())
            service.close()
        fixes = RecordedDisk(folder / "held", read_journal(folder / "journal"), disk.seed)
        chosen = choose(fixes.states(1))
        for second in chosen:
            self.judge(fixes, replace(second, answered=state.answered), folder / "cut")
        shutil.rmtree(folder)
        return fixes.length, len(chosen)

    def failure(self, without: Collection[str], folder: Path, torn: int, most: int) -> str | None:
        """What goes wrong if syncs are left out; None if nothing does.

        Only states that are impossible with the syncs are judged.

        :param without: kinds of sync, as :meth:`RecordedDisk.kinds_of_sync` names them.
        :param most: how many states to judge at most.
        """
        allowed = {state.digest: state.answered for state in self.disk.states(torn)}
        disk = self.disk.without(without)
        judged = set[str]()
        # Where it is likeliest first: after the answer, with nothing torn, and late. The states that have
        # something torn are many, and mostly not needed.
        for likely in (True, False):
            states = disk.states(0 if likely else torn)
            new = [s for s in states if s.digest not in allowed or s.answered > allowed[s.digest]]
            new.sort(key=lambda s: (not s.answered, s.cut.variant not in FIXED_VARIANTS, -s.cut.place))
            for state in new:
                if (likely and not state.answered) or state.digest in judged or len(judged) == most:
                    continue
                judged.add(state.digest)
                try:
                    self.judge(disk, state, folder)
                except _NOT_AS_IT_MUST_BE as error:
                    return f"{state.cut}: {type(error).__name__}: {error}"
        return None


def _unnamed(world: World) -> set[str]:
    """The volumes that the log does not name.

    The log names what must exist before it exists, and forgets it only after it is gone.
    """
    survivor, found = host_named("survivor"), set[str]()
    for place in PLACES:
        try:
            repository = find_format(world.format).connect(world.parameters(place), survivor)
        except errors.NotARepository:
            continue  # the scenario's own judge decides whether that may be
        state = refresh(Log(repository, survivor))
        if not state.closed:
            names = [item.name for item in repository.list_volumes()]
            found.update(str(name) for name in names if name.volume_id not in state.volumes)
    return found


def _on_mount(world: World, folder: Path) -> World:
    """The same world, in a new directory, with its repositories on the disk that will be mounted there."""
    (folder / "mount").mkdir()
    moved = world.moved(folder / "world")
    moved.shared_by_one_host = True
    moved.folder.mkdir()
    for name in (*PLACES, NEW_PLACE, OUTSIDE):
        (moved.folder / name).symlink_to(folder / "mount" / name)
    return moved


def _shares(scenario: Scenario) -> bool:
    return isinstance(scenario, DiskScenario) and scenario.reflink


def record(scenario: Scenario, folder: Path, seed: int) -> Recording:
    """Run a scenario on a simulated disk, in a new directory."""
    folder.mkdir()
    prepared = World(folder / "prepared")
    prepared.create()
    builder = prepared.service(host_named("builder"))
    scenario.prepare(prepared, builder)
    builder.close()
    held = prepared.copied(folder / "held")
    (held.folder / OUTSIDE).mkdir()
    # Things outside the repositories, such as files to import, are not on the disk that fails.
    world, mount = _on_mount(held, folder), folder / "mount"
    with mounted(held.folder, mount, folder / "journal"):
        service = world.service(lost_host(mount, reflink=_shares(scenario)))
        before, after = dict(world.images), scenario.after(world)
        os.setxattr(mount, MARK, BEGIN.encode())
        scenario.act(world, service)
        os.setxattr(mount, MARK, ANSWERED.encode())
        service.close()
    disk = RecordedDisk(held.folder, read_journal(folder / "journal"), seed)
    return Recording(scenario, world, before, after, _unnamed(held), disk)
