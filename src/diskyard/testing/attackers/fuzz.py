"""Random operations of two hosts beside a model in memory, on file systems of several kinds.

Other hosts fix and meddle at the same time, and are killed. Some operations are not those of verbs
(:mod:`fuzz_restores`): repositories restored from a backup, whole or only the log;
byte copies connected elsewhere; read-only mounts.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diskyard import errors
from diskyard.testing.attackers.fuzz_restores import Restores
from diskyard.testing.attackers.hosts import WAITS, Counts, Places, YardHost, create_places
from diskyard.testing.attackers.others import Worker, fix_at_random, meddle_at_random
from diskyard.testing.attackers.sectors import (
    MOST_BYTES,
    SECTOR_BYTES,
    any_size,
    convert,
    difference,
    resized,
    scribble,
)
from diskyard.testing.mounted import Mounted

_HOSTS = ("h1", "h2")
_FEW, _MANY = 6, 24
_SETTLE_EVERY, _LOOK_EVERY, _SPECIAL_EVERY = 60, 4, 12
LATER = {"AutoFix": False}

Key = tuple[str, str]


@dataclass
class Held:
    """What an image must hold.

    :param how: how it came to hold that, for people.
    :param may_break: its source was in a repository that has been restored since.
    """

    kind: Literal["disk", "snapshot"]
    data: bytes
    how: str
    may_break: bool = False


class Fuzz:
    """One run.

    :param folder: for the state directories of the hosts, backups and exports.
    :param disks: the file systems, by the repository on each.
    :ivar model: what each image must hold, by repository and id.
    :ivar told: counts of what was done and found.
    """

    def __init__(self, folder: Path, disks: Mapping[str, Mounted], seed: int) -> None:
        self.folder, self.disks = folder, disks
        self.rng = random.Random(f"fuzz {seed}")
        self.model: dict[Key, Held] = {}
        self.told = Counts()
        self.places: Places = {place: disk.place / place for place, disk in disks.items()}
        self._workers: list[Worker] = []
        self._restores = Restores(self)
        create_places(self.places, folder / "state-creator")
        self.hosts: list[YardHost] = []
        self.open_hosts()

    def open_hosts(self) -> None:
        """Start the two hosts afresh."""
        self.hosts = [YardHost(name, self.folder, self.places) for name in _HOSTS]

    def close_hosts(self) -> None:
        """End the two hosts."""
        for host in self.hosts:
            host.close()

    def run(self, seconds: float) -> Counts:
        """Do one thing after another for some time; then fix and judge everything, and remove it."""
        ends_s = time.monotonic() + seconds
        step = 0
        try:
            while time.monotonic() < ends_s:
                step += 1
                self._race()
                self.one()
                if step % _LOOK_EVERY == 0:
                    self.look(0.4)
                if step % _SPECIAL_EVERY == 0:
                    self._restores.one()
                if step % _SETTLE_EVERY == 0:
                    self.settle()
            self.settle()
            self._remove_all()
        finally:
            self.quiet()
            self.close_hosts()
        return self.told

    # -- others --------------------------------------------------------------------------------

    def _race(self) -> None:
        """Start other processes, and kill some."""
        if len(self._workers) < 2 and self.rng.random() < 0.1:
            act = self.rng.choice([fix_at_random, fix_at_random, meddle_at_random])
            name = f"racing-{self.rng.randrange(9)}"
            words = (name, self.folder, self.places, self.rng.getrandbits(32))
            self._workers.append(Worker(act, words).start())
        elif self._workers and self.rng.random() < 0.12:
            time.sleep(self.rng.random() * 0.3)
            self.stop(self._workers.pop(self.rng.randrange(len(self._workers))))

    def stop(self, worker: Worker) -> None:
        """Kill another process, or let it end and report what it found."""
        if self.rng.random() < 0.6:
            worker.kill()
            self.told.kills += 1
        else:
            self.told.add(worker.end())

    def quiet(self) -> None:
        """Wait until nobody else works, and nothing runs in the background."""
        for worker in self._workers:
            self.stop(worker)
        self._workers.clear()
        for host in self.hosts:
            host.wait()

    # -- judging ---------------------------------------------------------------------------------

    def look(self, part: float = 1.0) -> None:
        """Compare some of the images that can be read now."""
        for key, held in list(self.model.items()):
            if self.rng.random() > part:
                continue
            try:
                data = self.rng.choice(self.hosts).read(*key)
            except (errors.ImageBroken, errors.LeaseHeld, errors.ImageInUse):
                continue
            if not self.compare(data, held.data, f"{held.kind} {key[1]} in {key[0]} ({held.how})"):
                del self.model[key]  # reported once; it is removed when everything is settled

    def compare(self, data: bytes, wanted: bytes, what: str) -> bool:
        """Compare bytes: count them as right, or report what is wrong. Return whether they are right."""
        if data == wanted:
            self.told.reads += 1
        else:
            self.told.wrong.append(f"wrong bytes: {what}: {difference(data, wanted)}")
        return data == wanted

    def fix_all(self) -> None:
        """Run everything that is listed, while nobody else works."""
        self.quiet()
        self.told.fixes += self.rng.choice(self.hosts).fix_all(list(self.places), self.rng)

    def settle(self) -> None:
        """Fix everything. Then nothing may be broken, and no image may exist that nobody has requested."""
        self.fix_all()
        for place in self.places:
            for image in self.hosts[0]("listImages", repositoryId=place)["images"]:
                key = (place, image["imageId"])
                held = self.model.get(key)
                if held is None:  # an image of another process that meddles
                    self.drop(key)
                elif image["status"] == "broken":
                    if not held.may_break:
                        waits = [(fix.description, fix.waits_for) for fix in self.hosts[0].fixes(place)]
                        self.told.broken.append(f"{held.kind} {key[1]} in {place} after all fixes: {waits}")
                    self.drop(key)
        self.look()
        while len(self.model) > _MANY:
            self.drop(self.rng.choice(list(self.model)))

    def drop(self, key: Key) -> None:
        """Remove an image."""
        with self.told.refusals("removeImage"):
            self.hosts[0]("removeImage", repositoryId=key[0], imageId=key[1], options=LATER)
            self.model.pop(key, None)

    def _remove_all(self) -> None:
        for key in list(self.model):
            self.drop(key)
        self.fix_all()
        for place in self.places:
            repo = self.hosts[0].repo(place)
            state = repo.state()
            left = [*state.images, *state.volumes]
            left += [str(item.name) for item in repo.storage.list_volumes()]
            left += [f"{fix.description} ({fix.waits_for})" for fix in self.hosts[0].fixes(place)]
            self.told.serious += [f"left over in {place}: {thing}" for thing in left]

    # -- operations ----------------------------------------------------------------------------------

    def one(self) -> None:
        """Do any operation, by one of the two hosts."""
        acts: list[Callable[[YardHost], bool]] = [
            self.create, self.create_from, self.snapshot, self.snapshot, self.remove, self.extend,
            self.revert, self.copy, self.copy, self.copy, self.copy, self.copy_snapshot,
            self.set_strategy, self.guest, self.guest, self.guest, self.guest, self.export,
        ]  # fmt: skip
        act = self.rng.choice(acts)
        with self.told.refusals(act.__name__):
            if act(self.rng.choice(self.hosts)):
                self.told.did(act.__name__)

    def some(
        self, kind: Literal["disk", "snapshot"] | None = None, place: str | None = None
    ) -> tuple[Key, Held] | None:
        """Choose an image."""
        found = [
            (key, held)
            for key, held in self.model.items()
            if kind in (None, held.kind) and place in (None, key[0])
        ]
        return self.rng.choice(found) if found else None

    def _place(self) -> str:
        return self.rng.choice(list(self.places))

    def _later(self) -> dict[str, Any]:
        return dict(LATER) if self.rng.random() < 0.5 else {}

    def _options(self) -> dict[str, Any]:
        options = self._later()
        if self.rng.random() < 0.3:
            options["strategy"] = self.rng.choice(["space", "performance"])
        return options

    def create(self, host: YardHost) -> bool:
        """Create a disk of zeros."""
        place, size = self._place(), any_size(self.rng)
        made = host("createVirtualDisk", targetRepoId=place, size=size, options=self._options())
        self.model[place, made] = Held("disk", bytes(size), "new")
        return True

    def create_from(self, host: YardHost) -> bool:
        """Create a disk from any Snapshot, which may be in another repository."""
        if (found := self.some("snapshot")) is None:
            return False
        (where, base), held = found
        size = len(held.data) + SECTOR_BYTES * self.rng.choice([0, 1, self.rng.randrange(300)])
        place = self._place()
        options = {**self._options(), "imageHints": {base: where}}
        asked = {"targetRepoId": place, "size": size, "baseSnapshotId": base}
        made = host("createVirtualDisk", **asked, options=options)
        self.model[place, made] = Held("disk", resized(held.data, size), f"from {base} in {where}")
        return True

    def snapshot(self, host: YardHost) -> bool:
        """Take a Snapshot of any disk."""
        if (found := self.some("disk")) is None:
            return False
        (place, disk), held = found
        made = host("createSnapshot", targetRepoId=place, baseVirtualDiskId=disk, options=self._later())
        self.model[place, made] = Held("snapshot", held.data, f"snapshot of {disk}")
        return True

    def remove(self, host: YardHost) -> bool:
        """Remove any image."""
        if len(self.model) <= _FEW or (found := self.some()) is None:
            return False
        (place, image_id), _ = found
        host("removeImage", repositoryId=place, imageId=image_id, options=self._later())
        del self.model[place, image_id]
        return True

    def extend(self, host: YardHost) -> bool:
        """Extend any disk."""
        if (found := self.some("disk")) is None:
            return False
        (place, disk), held = found
        size = len(held.data) + SECTOR_BYTES * self.rng.choice([0, 1, self.rng.randrange(1, 400)])
        if size > MOST_BYTES:
            return False
        host("extendVirtualDisk", repositoryId=place, imageId=disk, size=size)
        held.data, held.how = resized(held.data, size), f"{held.how}; extended to {size}"
        return True

    def revert(self, host: YardHost) -> bool:
        """Revert any disk to any Snapshot in its repository."""
        if (found := self.some("disk")) is None or (to := self.some("snapshot", found[0][0])) is None:
            return False
        (place, disk), held = found
        asked = {"repositoryId": place, "imageId": disk, "snapshotId": to[0][1]}
        host("revertVirtualDisk", **asked, options=self._later())
        held.data, held.how = to[1].data, f"reverted to {to[0][1]}"
        return True

    def copy(self, host: YardHost) -> bool:
        """Copy any disk to any repository, on any base there."""
        if (found := self.some("disk")) is None:
            return False
        place = self._place()
        base = self.some(None, place) if self.rng.random() < 0.75 else None
        options = self._options()
        options.update({"as": "snapshot"} if self.rng.random() < 0.3 else {})
        options.update({"trackChanges": True} if self.rng.random() < 0.25 else {})
        self.copy_of(host, found[0], place, base[0][1] if base else None, options)
        return True

    def copy_of(
        self, host: YardHost, source: Key, place: str, base: str | None, options: Mapping[str, Any]
    ) -> str:
        """The id of a copy of a disk."""
        asked = {"targetRepoId": place, "imageId": source[1], **({"baseImageId": base} if base else {})}
        hints = {source[1]: source[0], **({base: place} if base else {})}
        made: str = host("copyImage", **asked, options={**options, "imageHints": hints})
        kind: Literal["disk", "snapshot"] = "snapshot" if "as" in options else "disk"
        self.model[place, made] = Held(
            kind, self.model[source].data, f"{source} copied on {base}, {dict(options)}"
        )
        return made

    def copy_snapshot(self, host: YardHost) -> bool:
        """Copy a Snapshot to a repository that does not have it yet."""
        if (found := self.some("snapshot")) is None:
            return False
        (where, snapshot), held = found
        place = self._place()
        if (place, snapshot) in self.model:
            return False
        base = self.some(None, place) if self.rng.random() < 0.6 else None
        asked = {"targetRepoId": place, "imageId": snapshot}
        hints = {snapshot: where, **({base[0][1]: place} if base else {})}
        with_base = {"baseImageId": base[0][1]} if base else {}
        host("copyImage", **asked, **with_base, options={**self._later(), "imageHints": hints})
        self.model[place, snapshot] = Held("snapshot", held.data, f"copied from {where}")
        return True

    def set_strategy(self, host: YardHost) -> bool:
        """Set the strategy of any image."""
        if (found := self.some()) is None:
            return False
        strategy = self.rng.choice(["space", "performance"])
        host("setStrategy", repositoryId=found[0][0], imageId=found[0][1], strategy=strategy)
        return True

    def guest(self, host: YardHost) -> bool:
        """Start a guest that writes to any disk."""
        if (found := self.some("disk")) is None:
            return False
        self.write(host, *found)
        return True

    def write(self, host: YardHost, key: Key, held: Held) -> None:
        """Write to a disk some times."""
        commands, states = scribble(held.data, self.rng)
        host.write(*key, commands)
        held.data, held.how = states[-1], f"{held.how}; written"

    def export(self, host: YardHost) -> bool:
        """Export any image to a file, which must hold the same bytes."""
        if (found := self.some()) is None:
            return False
        (place, image_id), held = found
        path, format = self.folder / "out", self.rng.choice(["raw", "qcow2"])
        asked = {"repositoryId": place, "imageId": image_id, "path": str(path), "format": format}
        task = host("exportImage", **asked)
        host.wait()
        if not path.exists():
            ended = host("getTask", taskId=task["taskId"])
            code = (ended["error"] or {}).get("code", "none")
            if code not in WAITS:
                self.told.serious.append(f"an export ended with {ended}")
            return False
        self.compare(convert(str(path), "-f", format), held.data, f"export of {image_id} in {place}")
        path.unlink()
        return True
