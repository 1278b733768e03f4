"""What operators do to repositories without a verb: backups and restores, byte copies, read-only mounts."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diskyard import errors
from diskyard.model.fix import CleanHold
from diskyard.model.records import CopyHold
from diskyard.repository.repository import volume_name
from diskyard.testing.attackers.hosts import YardHost
from diskyard.testing.attackers.others import Worker, fix_at_random

if TYPE_CHECKING:
    from diskyard.testing.attackers.fuzz import Fuzz, Held, Key

_LOG = ("log", "checkpoints")
_MAY_BE_REFUSED = ("ImageBroken", "LeaseHeld", "ImageInUse")

Stamp = tuple[int, int, int]


def _copy_of(folder: Path, to: Path) -> None:
    subprocess.run(["cp", "-a", "--sparse=always", str(folder), str(to)], check=True)


def _put_back(backup: Path, folder: Path) -> None:
    """Restore from a backup: remove what is there, and put in its place what was saved."""
    shutil.rmtree(folder)
    _copy_of(backup, folder)


class Restores:
    """The operations without a verb. When one of them ends, the model is right again."""

    def __init__(self, fuzz: Fuzz) -> None:
        self._fuzz = fuzz
        self._rng = fuzz.rng

    def one(self) -> None:
        """Do any of them."""
        acts: list[Callable[[str], None]] = [
            self.restore, self.restore, self.restore_log, self.byte_copy, self.byte_copy, self.read_only,
        ]  # fmt: skip
        act = self._rng.choice(acts)
        act(self._rng.choice(list(self._fuzz.places)))
        self._release_lost_holds()
        self._fuzz.told.did(act.__name__.replace("_", " "))

    def _release_lost_holds(self) -> None:
        """Release holds for copies at a location that is gone, which only a caller can do."""
        host = self._fuzz.hosts[0]
        there = {host.repo(place).storage.place_identity for place in self._fuzz.places}
        for place in self._fuzz.places:
            for fix in host.fixes(place):
                action = fix.data.action
                if not isinstance(action, CleanHold) or not isinstance(action.hold, CopyHold):
                    continue
                if action.hold.target_place not in there and not fix.runnable:
                    host.run_fix(place, fix, force=True)
                    self._fuzz.told.did("hold released by force")

    # -- of a place -------------------------------------------------------------------------------

    def _images_of(self, place: str) -> dict[Key, Held]:
        """Copies of the model's entries for one repository."""
        return {key: replace(held) for key, held in self._fuzz.model.items() if key[0] == place}

    def _become(self, place: str, images: dict[Key, Held]) -> None:
        """Make the model follow a repository that is another now. Copies from it may never be completed."""
        fuzz = self._fuzz
        for key in [key for key in fuzz.model if key[0] == place]:
            del fuzz.model[key]
        fuzz.model.update(images)
        for other in fuzz.places:
            if other == place:
                continue
            state = fuzz.hosts[0].repo(other).state()
            for key, held in fuzz.model.items():
                image = state.images.get(key[1])
                if key[0] == other and image is not None and image.pending is not None:
                    held.may_break = True

    @contextlib.contextmanager
    def _backup(self, place: str) -> Iterator[Path]:
        path = self._fuzz.folder / f"backup-{place}"
        _copy_of(self._fuzz.places[place], path)
        yield path
        shutil.rmtree(path)

    def _some_ops(self, most: int) -> None:
        for _ in range(self._rng.randrange(most + 1)):
            self._fuzz.one()

    # -- restores -----------------------------------------------------------------------------------

    def restore(self, place: str) -> None:
        """Restore a whole repository from a backup; a copy from the lost history is used as a base later."""
        fuzz = self._fuzz
        fuzz.fix_all()
        images = self._images_of(place)
        chosen = fuzz.some("disk", place)
        disk, target = (chosen[0] if chosen else None), self._rng.choice(list(fuzz.places))
        with self._backup(place) as backup:
            monday = self._write_and_copy(disk, target, None)
            self._some_ops(5)
            fuzz.quiet()
            fuzz.close_hosts()
            _put_back(backup, fuzz.places[place])
        fuzz.open_hosts()
        self._become(place, images)
        base = monday if monday is not None and (target, monday) in fuzz.model else None
        self._write_and_copy(disk, target, base)
        self._some_ops(3)

    def _write_and_copy(self, disk: Key | None, target: str, base: str | None) -> str | None:
        """Write and copy; the copy's id. The same host does it, so that entries have the same numbers."""
        fuzz = self._fuzz
        with fuzz.told.refusals("copyImage"):
            if disk is not None and disk in fuzz.model:
                fuzz.write(fuzz.hosts[0], disk, fuzz.model[disk])
                made = fuzz.copy_of(fuzz.hosts[0], disk, target, base, {})
                fuzz.hosts[0].wait()
                return made
        return None

    def restore_log(self, place: str) -> None:
        """Restore only the log: volumes are newer than it, and none may be deleted. Then undo the restore."""
        fuzz = self._fuzz
        fuzz.fix_all()
        old = self._images_of(place)
        stamps = self._stamps(place)
        with self._backup(place) as backup:
            self._some_ops(8)
            fuzz.fix_all()
            now = self._images_of(place)
            fuzz.close_hosts()
            kept = fuzz.folder / f"now-{place}"
            _copy_of(fuzz.places[place], kept)
            for name in _LOG:
                _put_back(backup / name, fuzz.places[place] / name)
        fuzz.open_hosts()
        self._go_on_with_old_log(place, old, stamps)
        fuzz.quiet()
        fuzz.close_hosts()
        _put_back(kept, fuzz.places[place])
        shutil.rmtree(kept)
        fuzz.open_hosts()
        self._become(place, now)

    def _stamps(self, place: str) -> dict[str, Stamp]:
        """What shows whether each volume's file was changed."""
        found = {}
        for path in sorted((self._fuzz.places[place] / "volumes").iterdir()):
            seen = os.stat(path)
            found[path.name] = (seen.st_ino, seen.st_size, seen.st_mtime_ns)
        return found

    def _go_on_with_old_log(self, place: str, old: dict[Key, Held], stamps: dict[str, Stamp]) -> None:
        fuzz = self._fuzz
        host, now = fuzz.hosts[0], self._stamps(place)
        same = {name for name, stamp in stamps.items() if now.get(name) == stamp}
        state = host.repo(place).state()
        unknown = [name for name in now if not any(volume_id in name for volume_id in state.volumes)]
        sound = {
            key: held
            for key, held in old.items()
            if all(str(volume_name(volume)) in same for _, volume in state.chain(state.images[key[1]]))
        }
        for _ in range(self._rng.randrange(1, 30)):  # until the log may have grown beyond their numbers
            with fuzz.told.refusals("createVirtualDisk"):
                host("createVirtualDisk", targetRepoId=place, size=512)
        with fuzz.told.refusals("fixes"):
            fuzz.told.fixes += host.fix_all([place], self._rng)
        gone = [name for name in unknown if not (fuzz.places[place] / "volumes" / name).exists()]
        fuzz.told.broken += [
            f"a volume that a restored log does not know was deleted: {name}" for name in gone
        ]
        for key, held in sound.items():
            with contextlib.suppress(errors.ImageBroken, errors.LeaseHeld):
                fuzz.compare(host.read(*key), held.data, f"{held.kind} {key[1]} in {place}, log restored")

    # -- others' views ---------------------------------------------------------------------------------

    def byte_copy(self, place: str) -> None:
        """Connect a byte copy of a repository on another host, with the originals of the others."""
        fuzz = self._fuzz
        fuzz.quiet()
        copy = fuzz.folder / f"copy-of-{place}"
        _copy_of(fuzz.places[place], copy)
        words = ("elsewhere", fuzz.folder, {**fuzz.places, place: copy}, self._rng.getrandbits(32))
        worker = Worker(fix_at_random, words).start()
        self._some_ops(24)
        fuzz.stop(worker)
        fuzz.quiet()
        shutil.rmtree(copy)
        shutil.rmtree(fuzz.folder / "state-elsewhere", ignore_errors=True)

    def read_only(self, place: str) -> None:
        """Read a repository on another host through a read-only mount."""
        fuzz = self._fuzz
        with fuzz.disks[place].seen_read_only(fuzz.folder / f"read-only-{place}"):
            fuzz.quiet()
            reader = YardHost("reader", fuzz.folder, {place: fuzz.folder / f"read-only-{place}" / place})
            try:
                self._look_read_only(reader, place)
            finally:
                reader.close()

    def _look_read_only(self, reader: YardHost, place: str) -> None:
        fuzz = self._fuzz
        listed = {image["imageId"] for image in reader("listImages", repositoryId=place)["images"]}
        for (where, image_id), held in fuzz.model.items():
            if where != place:
                continue
            if image_id not in listed:
                fuzz.told.broken.append(f"{image_id} in {place} is not listed where it cannot be written")
                continue
            try:
                data = reader.read(place, image_id)
            except errors.DiskyardError as error:
                if error.code not in _MAY_BE_REFUSED:
                    fuzz.told.serious.append(f"reading where nothing can be written: {error.to_json()}")
                    return
                continue
            fuzz.compare(data, held.data, f"{image_id} in {place}, read-only")
        try:
            reader("createVirtualDisk", targetRepoId=place, size=512)
        except errors.InternalError as error:
            fuzz.told.serious.append(f"writing where nothing can be written: {error.to_json()}")
        except errors.DiskyardError as error:
            fuzz.told.refused[error.code] = fuzz.told.refused.get(error.code, 0) + 1
        else:
            fuzz.told.serious.append("a disk was made where nothing can be written")
