"""The actions of a client in a storm: any verb, on any image, or on one of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from diskyard import errors
from diskyard.testing.attackers.ledger import Kept, Moment
from diskyard.testing.attackers.sectors import (
    MOST_BYTES,
    SECTOR_BYTES,
    any_size,
    convert,
    resized,
    scribble,
    write_as_guest,
)
from diskyard.testing.attackers.storm_client import StormClient
from diskyard.testing.world import MIB

_FEW, _MANY = 4, 10
_EXPORT_MOST_S, _POLL_S = 60.0, 0.1


class Acts:
    """The actions of a client."""

    def __init__(self, client: StormClient) -> None:
        self._client = client
        self._ledger = client.ledger
        self._rng = client.rng
        self._places = sorted(client.settings.places)
        often: list[tuple[int, Callable[[], bool]]] = [
            (1, self.create), (2, self.create_from), (3, self.snapshot), (3, self.remove), (1, self.extend),
            (1, self.revert), (4, self.copy), (2, self.copy_snapshot), (1, self.set_strategy),
            (4, self.guest), (1, self.untrack), (1, self.set_user_data), (1, self.look),
        ]  # fmt: skip
        if client.settings.way != "command":
            often.append((1, self.export_and_import))
        self._acts = [act for count, act in often for _ in range(count)]

    def one(self) -> None:
        """Do one of them."""
        mine = [kept for kept in self._ledger.all() if kept.owner == self._client.name]
        act = self.remove if len(mine) > _MANY else self._rng.choice(self._acts)
        if act():
            self._client.told.did(act.__name__)

    # -- choosing -----------------------------------------------------------------------------

    def _some(
        self,
        kind: Literal["disk", "snapshot"] | None = None,
        place: str | None = None,
        *,
        mine: bool = False,
    ) -> Kept | None:
        """Choose an existing image."""
        found = [
            kept
            for kept in self._ledger.all()
            if kept.state == "there"
            and kept.moments
            and kind in (None, kept.kind)
            and place in (None, kept.place)
            and (not mine or (kept.owner == self._client.name and not kept.left))
        ]
        return self._rng.choice(found) if found else None

    def _place(self) -> str:
        return self._rng.choice(self._places)

    def _options(self, **more: Any) -> dict[str, Any]:
        options = dict(more)
        if self._rng.random() < 0.25:
            options["AutoFix"] = False
        return options

    def _new_options(self, image_id: str) -> dict[str, Any]:
        options = self._options(newImageId=image_id)
        if self._rng.random() < 0.35:
            options["strategy"] = self._rng.choice(["space", "performance"])
        if self._rng.random() < 0.15:
            options["optimizeNow"] = True
        return options

    def _kept(self, place: str, image_id: str, kind: Literal["disk", "snapshot"], how: str) -> Kept:
        return Kept(place, image_id, kind, self._client.name, how)

    def _holding(self, kept: Kept, data: bytes) -> Kept:
        kept.moments = [Moment(0, self._ledger.keep_bytes(data), certain=True)]
        return kept

    @staticmethod
    def _source(kept: Kept) -> tuple[str, str, int]:
        return kept.place, kept.image_id, kept.settled

    @staticmethod
    def _of(kept: Kept) -> dict[str, str]:
        return {"repositoryId": kept.place, "imageId": kept.image_id}

    # -- making ---------------------------------------------------------------------------------

    def create(self) -> bool:
        """Create a disk of zeros."""
        place, image_id, size = self._place(), self._client.new_id(), any_size(self._rng)
        kept = self._holding(self._kept(place, image_id, "disk", "new"), bytes(size))
        asked = {"targetRepoId": place, "size": size, "options": self._new_options(image_id)}
        self._client.make(kept, "createVirtualDisk", asked)
        return True

    def create_from(self) -> bool:
        """Create a disk from a Snapshot in this repository or in another."""
        base = self._some("snapshot")
        if base is None or (digest := base.known()) is None:
            return False
        data = self._ledger.bytes_of(digest)
        size = len(data) + SECTOR_BYTES * self._rng.choice([0, 0, 1, self._rng.randrange(300)])
        place = base.place if self._rng.random() < 0.6 else self._place()
        image_id = self._client.new_id()
        how = f"from {base.image_id} in {base.place}"
        kept = self._holding(self._kept(place, image_id, "disk", how), resized(data, size))
        asked = {"targetRepoId": place, "size": size, "baseSnapshotId": base.image_id}
        self._client.make(kept, "createVirtualDisk", {**asked, "options": self._new_options(image_id)})
        return True

    def snapshot(self) -> bool:
        """Take a Snapshot of any disk."""
        disk = self._some("disk", mine=self._rng.random() < 0.7)
        if disk is None:
            return False
        image_id = self._client.new_id()
        kept = self._kept(disk.place, image_id, "snapshot", f"snapshot of {disk.image_id}")
        kept.source, kept.mixed = self._source(disk), disk.mixed
        asked = {"targetRepoId": disk.place, "baseVirtualDiskId": disk.image_id}
        self._client.make(kept, "createSnapshot", {**asked, "options": self._options(newImageId=image_id)})
        return True

    def copy(self) -> bool:
        """Copy any disk to any repository, on any base there."""
        disk = self._some("disk", mine=self._rng.random() < 0.6)
        if disk is None:
            return False
        place, image_id = self._place(), self._client.new_id()
        base = self._some(place=place) if self._rng.random() < 0.7 else None
        options = self._new_options(image_id)
        options.update({"as": "snapshot"} if self._rng.random() < 0.3 else {})
        options.update({"trackChanges": True} if self._rng.random() < 0.25 else {})
        options.update({"rateLimit": 4 * MIB} if self._rng.random() < 0.3 else {})
        how = f"copy of {disk.image_id} in {disk.place} on {base and base.image_id}"
        kept = self._kept(place, image_id, "snapshot" if "as" in options else "disk", how)
        kept.source, kept.mixed = self._source(disk), disk.mixed
        kept.base = base.image_id if base else None
        asked = {"targetRepoId": place, "imageId": disk.image_id, "options": options}
        self._client.make(kept, "copyImage", {**asked, **({"baseImageId": base.image_id} if base else {})})
        return True

    def copy_snapshot(self) -> bool:
        """Copy a Snapshot. It keeps its id, so only one client at a time may copy it to a repository."""
        source = self._some("snapshot")
        if source is None or (digest := source.known()) is None:
            return False
        place = self._place()
        with self._ledger.locked(f"{place}-{source.image_id}"):
            if self._ledger.get(place, source.image_id, also_gone=True) is not None:
                return False
            base = self._some(place=place) if self._rng.random() < 0.6 else None
            how = f"copy of {source.place}'s on {base and base.image_id}"
            kept = self._kept(place, source.image_id, "snapshot", how)
            self._holding(kept, self._ledger.bytes_of(digest))
            kept.base = base.image_id if base else None
            asked = {"targetRepoId": place, "imageId": source.image_id, "options": self._options()}
            self._client.make(
                kept, "copyImage", {**asked, **({"baseImageId": base.image_id} if base else {})}
            )
        return True

    def export_and_import(self) -> bool:
        """Export to a file, which must hold the same bytes, and import that again."""
        source = self._some("snapshot")
        if source is None or (digest := source.known()) is None:
            return False
        format = self._rng.choice(["raw", "qcow2"])
        path = Path(self._client.settings.folder) / "transfer" / f"{self._client.new_id()}.{format}"
        task = self._client.ask("exportImage", **self._of(source), path=str(path), format=format)
        if not self._has_ended(task["taskId"], path):
            return False
        data, wanted = convert(str(path), "-f", format), self._ledger.bytes_of(digest)
        if data != resized(wanted, len(data)) or len(data) < len(wanted):
            self._client.told.wrong.append(f"wrong export of {source.image_id} in {source.place} as {format}")
        place, image_id = self._place(), self._client.new_id()
        kept = self._holding(self._kept(place, image_id, "snapshot", "imported"), data)
        options = self._options(newImageId=image_id) | {"as": "snapshot"}
        asked = {"targetRepoId": place, "path": str(path), "format": format, "options": options}
        self._client.make(kept, "importImage", asked)
        return True

    def _has_ended(self, task_id: str, path: Path) -> bool:
        """Whether an export's file exists in the end."""
        deadline_s = time.monotonic() + _EXPORT_MOST_S
        while time.monotonic() < deadline_s:
            if self._client.ask("getTask", taskId=task_id)["state"] not in ("queued", "running"):
                return path.exists()
            time.sleep(_POLL_S)
        return False

    # -- changing ---------------------------------------------------------------------------------

    def remove(self) -> bool:
        """Remove one of this client's own images."""
        mine = [kept for kept in self._ledger.all() if kept.owner == self._client.name]
        there = [kept for kept in mine if kept.state == "there"]
        if len(there) <= _FEW:
            return False
        self._client.remove(self._rng.choice(there), self._options())
        return True

    def extend(self) -> bool:
        """Extend one of this client's own disks."""
        disk = self._some("disk", mine=True)
        if disk is None or (data := self._client.settle(disk)) is None:
            return False
        size = len(data) + SECTOR_BYTES * self._rng.choice([0, 1, self._rng.randrange(1, 300)])
        if size > MOST_BYTES:
            return False
        asked = {**self._of(disk), "size": size}
        self._client.change(disk, resized(data, size), "extendVirtualDisk", asked)
        return True

    def revert(self) -> bool:
        """Revert one of this client's own disks to any Snapshot in its repository."""
        disk = self._some("disk", mine=True)
        if disk is None or self._client.settle(disk) is None:
            return False
        snapshot = self._some("snapshot", disk.place)
        if snapshot is None or (digest := snapshot.known()) is None:
            return False
        asked = {**self._of(disk), "snapshotId": snapshot.image_id, "options": self._options()}
        self._client.change(disk, self._ledger.bytes_of(digest), "revertVirtualDisk", asked)
        return True

    def guest(self) -> bool:
        """Start a guest on one of this client's own disks; it writes, and ends."""
        disk = self._some("disk", mine=True)
        if disk is None or (data := self._client.settle(disk)) is None:
            return False
        commands, states = scribble(data, self._rng)
        owner = f"guest-{self._client.name}"
        graph = self._client.ask("prepareImage", **self._of(disk), options={"owner": owner})["blockdev"]
        try:
            for state in states[:-1]:
                disk.add(self._ledger.keep_bytes(state), certain=False, between=True)
            disk.add(self._ledger.keep_bytes(states[-1]), certain=False)
            disk.mixed = True
            self._ledger.put(disk)
            write_as_guest(graph, commands)
            disk.mixed = False
            disk.moments[-1].certain = True
            self._ledger.put(disk)
        finally:
            if not self._client.tear_down(disk, owner):
                disk.left = True
                self._ledger.put(disk)
        return True

    def set_strategy(self) -> bool:
        """Set the strategy of any image."""
        if (image := self._some()) is None:
            return False
        strategy = self._rng.choice(["space", "performance"])
        self._client.ask("setStrategy", **self._of(image), strategy=strategy)
        return True

    def untrack(self) -> bool:
        """Stop tracking the changes of any disk."""
        if (disk := self._some("disk")) is None:
            return False
        self._client.ask("untrackChanges", **self._of(disk))
        return True

    def set_user_data(self) -> bool:
        """Set the userData of any image, unless another client was first."""
        if (image := self._some()) is None:
            return False
        revision = self._client.ask("getImageInfo", **self._of(image))["revision"]
        said = {"number": self._rng.random()}
        try:
            self._client.ask(
                "setUserData", **self._of(image), userData=said, options={"ifRevision": revision}
            )
        except errors.RevisionMismatch:
            return False
        return True

    def look(self) -> bool:
        """Call the verbs that only read."""
        place = self._place()
        if (image := self._some(place=place)) is not None:
            self._client.ask("getImageStatus", **self._of(image))
        self._client.ask("listImages", repositoryId=place)
        self._client.ask("checkStorageRepository", repositoryId=place)
        return True
