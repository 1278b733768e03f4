"""Repositories with known bytes, and what must be true of them whatever happens.

For a repository format whose location is not a directory, a subclass of :class:`World` says how a
location is named and copied; then it passes the suites.
"""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diskyard.fixes.runner import run_fix
from diskyard.host import Host, HostIdentity
from diskyard.host.clock import Clock
from diskyard.host.commands import Commands
from diskyard.host.files import Files
from diskyard.model.fix import Fix
from diskyard.model.records import CopyHold
from diskyard.model.requests import CheckStorageRepository
from diskyard.repository.repository import lease_name
from diskyard.service import Service, call, run
from diskyard.testing import pathless
from diskyard.testing import rounded as rounded  # so that its format is known
from diskyard.testing.copying import copy_tree
from diskyard.testing.read_chain import read_image

KIB, MIB = 1 << 10, 1 << 20
SIZE_BYTES = 2 * MIB
PLACES = ("a", "b")
_ROUNDS = 50
_DYING_MOST_S = 10.0
_POLL_S = 0.02

Images = dict[tuple[str, str], bytes]
"""Bytes by repository and image id."""


def host_named(name: str) -> Host:
    """This machine under another name."""
    real = Host.real()
    identity = HostIdentity(name, real.identity.machine_id, real.identity.boot_id)
    return Host(identity, Files(identity), Commands(), Clock())


@dataclass
class World:
    """Repositories in a directory, the images that must be in them, and their bytes.

    :ivar images: by repository and image id, the bytes that must be read.
    :ivar user_data: likewise, the userData that must be kept, if a test says so.
    :ivar names: image ids by names that a test gives.
    :ivar shared_by_one_host: they are on a file system that is not known to be local.
    :ivar earlier: the world's earlier directories, which may contain files to import.
    :ivar socket: where the volumes are served, if they are not files.
    """

    folder: Path
    images: Images = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    user_data: dict[tuple[str, str], Any] = field(default_factory=dict)
    format: str = "localfs-1.0"
    shared_by_one_host: bool = False
    earlier: tuple[Path, ...] = ()
    socket: str = ""

    def __post_init__(self) -> None:
        if self.format == pathless.FORMAT and not self.socket:
            self.socket = pathless.server()

    def parameters(self, place: str) -> Mapping[str, Any]:
        """The connection parameters of a repository."""
        path = {"path": str(self.folder / place)}
        if self.socket:
            path["socket"] = self.socket
        return {**path, "sharedByOneHost": True} if self.shared_by_one_host else path

    def create(self) -> None:
        """Make the repositories, all empty."""
        self.folder.mkdir(exist_ok=True)
        service = Service(host_named("creator"), str(self.folder / "state-creator"))
        for place in PLACES:
            asked = {"repoFormat": self.format, "connectionParameters": self.parameters(place)}
            call(service, "createStorageRepository", asked)
        service.close()

    def service(self, host: Host, *, connected: bool = True) -> Service:
        """A host of this world, with the repositories connected."""
        # Files to import are beside the repositories: any host may complete another's import.
        state_folder = self.folder / f"state-{host.identity.host_id}"
        folders = tuple(map(str, (self.folder, *self.earlier)))
        service = Service(host, str(state_folder), transfer_folders=folders)
        for place in PLACES if connected else ():
            asked = {"repoFormat": self.format, "connectionParameters": self.parameters(place)}
            call(service, "connectStorageRepository", {"repoId": place, **asked})
            # A world is copied, and made again from what a power cut leaves. Its holds must take all of these
            # for one location. (tests/api/test_histories.py is about real copies beside their originals.)
            service.connections.get(place).storage.place_identity = ""
        return service

    def copied(self, folder: Path) -> World:
        """The same world in another directory, without the hosts' state directories."""
        folder.mkdir()
        for place in PLACES:
            copy_tree(str(self.folder / place), str(folder / place))
        return self.moved(folder)

    def moved(self, folder: Path) -> World:
        """What must be true, for repositories in another directory."""
        return replace(
            self,
            folder=folder,
            earlier=(*self.earlier, self.folder),
            images=dict(self.images),
            names=dict(self.names),
            user_data=dict(self.user_data),
        )

    # -- building ---------------------------------------------------------------------

    def disk(self, service: Service, place: str, name: str, **options: Any) -> str:
        """A new disk of zeros."""
        parameters = {
            "targetRepoId": place,
            "size": SIZE_BYTES,
            "userData": {"made as": name},
            "options": options,
        }
        return self.note(place, name, call(service, "createVirtualDisk", parameters), bytes(SIZE_BYTES))

    def snapshot(self, service: Service, place: str, disk: str, name: str) -> str:
        """A snapshot of a disk."""
        asked = {"baseVirtualDiskId": self.names[disk], "userData": {"made as": name}}
        parameters = {"targetRepoId": place, **asked}
        made = call(service, "createSnapshot", parameters)
        return self.note(place, name, made, self.images[place, self.names[disk]])

    def from_snapshot(self, service: Service, place: str, base: str, name: str) -> str:
        """A disk made from a snapshot."""
        asked = {"baseSnapshotId": self.names[base], "userData": {"made as": name}}
        parameters = {"targetRepoId": place, "size": SIZE_BYTES, **asked}
        made = call(service, "createVirtualDisk", parameters)
        return self.note(place, name, made, self.images[place, self.names[base]])

    def note(self, place: str, name: str, image_id: str, data: bytes) -> str:
        """Record an image that must exist: its name in tests, and its bytes."""
        self.names[name] = image_id
        self.images[place, image_id] = data
        self.user_data[place, image_id] = {"made as": name}
        return image_id

    def write(self, service: Service, place: str, disk: str, pattern: int, offset: int, size: int) -> None:
        """Write as a guest does."""
        image_id = self.names[disk]
        graph = call(service, "prepareImage", {"repositoryId": place, "imageId": image_id})["blockdev"]
        words = ["qemu-io", "-c", f"write -P {pattern} {offset} {size}", "json:" + json.dumps(graph)]
        subprocess.run(words, check=True, capture_output=True)
        call(service, "teardownImage", {"repositoryId": place, "imageId": image_id})
        data = bytearray(self.images[place, image_id])
        data[offset : offset + size] = bytes([pattern]) * size
        self.images[place, image_id] = bytes(data)

    def chain(self, service: Service, place: str) -> None:
        """Disk "d" over snapshots "s1" and "s2", each with bytes of its own."""
        self.disk(service, place, "d")
        self.write(service, place, "d", 1, 0, 512 * KIB)
        self.snapshot(service, place, "d", "s1")
        self.write(service, place, "d", 2, 256 * KIB, 512 * KIB)
        self.snapshot(service, place, "d", "s2")
        self.write(service, place, "d", 3, 640 * KIB, 128 * KIB)

    # -- fixing -------------------------------------------------------------------------

    def fixes(self, service: Service, place: str) -> list[Fix]:
        """What check lists."""
        found: list[Fix] = run(service, CheckStorageRepository(repository_id=place))
        return found

    def runnable(self, service: Service) -> list[tuple[str, Fix]]:
        """The runnable fixes that check lists in all repositories."""
        return [(place, fix) for place in PLACES for fix in self.fixes(service, place) if fix.runnable]

    def _await_runnable(self, service: Service) -> list[tuple[str, Fix]]:
        """The runnable fixes. One whose lease a dying program still holds becomes runnable in a moment."""
        deadline_s = time.monotonic() + _DYING_MOST_S
        while True:
            fixes = [(place, fix) for place in PLACES for fix in self.fixes(service, place)]
            listed = [(place, fix) for place, fix in fixes if fix.runnable]
            if listed or not any(fix.held_by for _, fix in fixes) or time.monotonic() > deadline_s:
                return listed
            time.sleep(_POLL_S)

    def fix_all(self, services: Sequence[Service], order: random.Random) -> int:
        """Run listed fixes in random order, each twice, on any host, until none is left. Return their number.

        No fix may fail.
        """
        count = 0
        for _ in range(_ROUNDS):
            listed = self._await_runnable(services[0])
            if not listed:
                return count
            order.shuffle(listed)
            for place, fix in listed:
                for _ in range(2):
                    service = order.choice(services)
                    run_fix(service.engine, service.connections.get(place), fix.data.action)
                    count += 1
        raise AssertionError(f"fixes do not come to an end: {self.runnable(services[0])}")

    # -- judging ------------------------------------------------------------------------

    def read(self, service: Service, place: str, image_id: str) -> bytes:
        """An image's bytes, through QEMU."""
        options = {"readOnly": True, "owner": "judge"}
        asked = {"repositoryId": place, "imageId": image_id, "options": options}
        graph = call(service, "prepareImage", asked)["blockdev"]
        out = self.folder / "read.raw"
        words = ["qemu-img", "convert", "-O", "raw", "json:" + json.dumps(graph), str(out)]
        subprocess.run(words, check=True, capture_output=True)
        call(service, "teardownImage", {**asked, "options": {"owner": "judge"}})
        return out.read_bytes()

    def judge_bytes(self, service: Service) -> None:
        """Require that every image exists, with its bytes and its userData."""
        for (place, image_id), data in self.images.items():
            repo = service.connections.get(place)
            image = repo.state().images.get(image_id)
            assert image is not None, f"image {image_id} is in {place}"
            assert image.is_strong, f"image {image_id} in {place} is strong"
            assert image.pending is None, f"image {image_id} in {place} is complete"
            assert read_image(repo, image_id) == data, f"bytes of {image_id} in {place}"
            if (place, image_id) in self.user_data:
                assert image.user_data == self.user_data[place, image_id]

    def judge_no_garbage(self, service: Service) -> None:
        """Require that nothing else exists: no image, volume, record, hold, lease or temporary file."""
        for place in PLACES:
            repo = service.connections.get(place)
            state = repo.state()
            others = [i.id for i in state.images.values() if i.is_strong and (place, i.id) not in self.images]
            assert not others, f"images in {place} that nobody asked for: {others}"
            stored = {item.name.volume_id for item in repo.storage.list_volumes()}
            assert stored == set(state.volumes), "volumes on the storage are those in the log"
            assert all(volume.state == "ready" for volume in state.volumes.values())
            assert not state.attachments
            copying = [i.id for i in state.images.values() for h in i.held_for if isinstance(h, CopyHold)]
            assert not copying, "nothing is held for a copy"
            assert not [i for i in state.images if repo.storage.is_locked(lease_name(i))], "no lease is held"
            assert not repo.storage.list_leftovers()
            strong = {image.id for image in state.images.values() if image.is_strong}
            assert strong.issuperset(repo.storage.progress_image_ids()), "no progress of what is gone"
            if Path(repo.storage.place).is_dir():
                names = [p.name for p in Path(repo.storage.place).rglob("tmp.*")]
                assert not names, "no temporary files"

    def judge(self, service: Service) -> None:
        """Judge the bytes, and that there is no garbage of any kind."""
        self.judge_bytes(service)
        self.judge_no_garbage(service)


def judge_outcome(
    world: World, before: Images, after: Images, *, answered: bool, order: random.Random
) -> None:
    """Let two other hosts find what was interrupted and fix it; then everything must be right.

    :param before: the images before the operation, and ``after``: with it done.
    :param answered: the operation was answered, so it must have been done. Otherwise it may have been.
    """
    survivors = [world.service(host_named(name)) for name in ("survivor", "other-survivor")]
    world.fix_all(survivors, order)
    choices = [after] if answered else [before, after]
    for place, image_id in {key for key in {*before, *after} if before.get(key) != after.get(key)}:
        repo = survivors[0].connections.get(place)
        image = repo.state().images.get(image_id)
        found = world.read(survivors[0], place, image_id) if image is not None and image.is_strong else None
        allowed = [choice.get((place, image_id)) for choice in choices]
        assert found in allowed, f"image {image_id} in {place} is {'' if found else 'not '}there"
        after = {key: data for key, data in after.items() if key != (place, image_id)}
        if found is not None:
            after[place, image_id] = found
    world.images = after
    world.judge(survivors[1])
    for survivor in survivors:
        survivor.close()
