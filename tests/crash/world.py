"""Two repositories with known bytes, and what must be true of them after any crash."""

from __future__ import annotations

import json
import random
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diskyard import KiB, MiB
from diskyard.fixes.look import look
from diskyard.fixes.runner import run_fix
from diskyard.host import Host, HostIdentity
from diskyard.host.clock import Clock
from diskyard.host.commands import Commands
from diskyard.host.files import Files
from diskyard.model.fix import Fix
from diskyard.planner.find_fixes import find_fixes
from diskyard.service import Service, call

SIZE_BYTES = 2 * MiB
PLACES = ("a", "b")


def host_named(name: str) -> Host:
    """This machine under another name."""
    real = Host.real()
    identity = HostIdentity(name, real.identity.machine_id, real.identity.boot_id)
    return Host(identity, Files(identity), Commands(), Clock())


@dataclass
class World:
    """Repositories in a folder, the images that must be in them, and their bytes.

    :ivar images: by repository and image id, the bytes that must be read.
    :ivar names: ids by a test's own names.
    """

    folder: Path
    images: dict[tuple[str, str], bytes] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def service(self, host: Host) -> Service:
        """A host that has both repositories connected."""
        service = Service(host, str(self.folder / f"state-{host.identity.host_id}"))
        for place in PLACES:
            where = {"path": str(self.folder / place)}
            if not (self.folder / place).exists():
                call(
                    service,
                    "createStorageRepository",
                    {"repoFormat": "localfs-1.0", "connectionParameters": where},
                )
            call(
                service,
                "connectStorageRepository",
                {"repoId": place, "repoFormat": "localfs-1.0", "connectionParameters": where},
            )
        return service

    def copied(self, folder: Path) -> World:
        """The same world in another folder; what hosts remember is left behind."""
        folder.mkdir()
        for place in PLACES:
            words = ["cp", "-a", "--sparse=always", str(self.folder / place), str(folder / place)]
            subprocess.run(words, check=True)
        return World(folder, dict(self.images), dict(self.names))

    # -- building ---------------------------------------------------------------------

    def disk(self, service: Service, place: str, name: str, **options: Any) -> str:
        """A new disk of zeros."""
        parameters = {"targetRepoId": place, "size": SIZE_BYTES, "options": options}
        return self._note(place, name, call(service, "createVirtualDisk", parameters), bytes(SIZE_BYTES))

    def snapshot(self, service: Service, place: str, disk: str, name: str) -> str:
        """A snapshot of a disk."""
        parameters = {"targetRepoId": place, "baseVirtualDiskId": self.names[disk]}
        made = call(service, "createSnapshot", parameters)
        return self._note(place, name, made, self.images[place, self.names[disk]])

    def from_snapshot(self, service: Service, place: str, base: str, name: str) -> str:
        """A disk that begins as a snapshot."""
        parameters = {"targetRepoId": place, "size": SIZE_BYTES, "baseSnapshotId": self.names[base]}
        made = call(service, "createVirtualDisk", parameters)
        return self._note(place, name, made, self.images[place, self.names[base]])

    def _note(self, place: str, name: str, image_id: str, data: bytes) -> str:
        self.names[name] = image_id
        self.images[place, image_id] = data
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
        self.write(service, place, "d", 1, 0, 512 * KiB)
        self.snapshot(service, place, "d", "s1")
        self.write(service, place, "d", 2, 256 * KiB, 512 * KiB)
        self.snapshot(service, place, "d", "s2")
        self.write(service, place, "d", 3, 640 * KiB, 128 * KiB)

    # -- judging ------------------------------------------------------------------------

    def fixes(self, service: Service, place: str) -> list[Fix]:
        """What check lists."""
        opened = service.connections.get(place)
        return find_fixes(look(service.engine, opened, deep=False, places=None))

    def run_listed(self, service: Service, place: str, fixes: list[Fix], *, twice: bool) -> None:
        """Run fixes as they were listed, in this thread."""
        for fix in fixes:
            if fix.runnable:
                for _ in range(2 if twice else 1):
                    run_fix(service.engine, service.connections.get(place), fix.data.action)

    def fix_all(self, service: Service, seed: int) -> int:
        """Run what is listed, in random order and twice, until nothing is; how many ran."""
        order, count = random.Random(seed), 0
        listed: list[tuple[str, Fix]] = []
        for _ in range(50):
            listed = [(place, fix) for place in PLACES for fix in self.fixes(service, place) if fix.runnable]
            if not listed:
                return count
            order.shuffle(listed)
            for place, fix in listed:
                self.run_listed(service, place, [fix], twice=True)
            count += len(listed)
        raise AssertionError(f"fixes do not come to an end: {listed}")

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

    def judge(self, service: Service, *, unsure: set[tuple[str, str]] = frozenset()) -> None:  # type: ignore[assignment]
        """Every image is there with its bytes, and nothing else is: no garbage of any kind.

        :param unsure: images that may be there or not: the caller never had an answer.
        """
        for (place, image_id), data in self.images.items():
            if (place, image_id) not in unsure:
                assert self.read(service, place, image_id) == data, f"bytes of {image_id} in {place}"
        for place in PLACES:
            opened = service.connections.get(place)
            state = opened.state()
            for image in state.images.values():
                if image.is_strong and (place, image.id) not in self.images:
                    assert (place, image.id) in unsure or not unsure, f"image {image.id} in {place}"
            stored = {item.name.volume_id for item in opened.storage.list_volumes()}
            assert stored == set(state.volumes), "volumes on the storage are those in the log"
            assert all(volume.state == "ready" for volume in state.volumes.values())
            assert not state.attachments
            assert not [i for i in state.images.values() if i.held_for], "nothing is held"
            names = [p.name for p in (self.folder / place).rglob("tmp.*")]
            assert not names, "no temporary files"
