"""Random verbs on two repositories and two hosts, done twice: by Diskyard and by the reference model."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from diskyard import Diskyard, errors
from diskyard.host import Host
from diskyard.model.fix import Fix
from diskyard.testing.guest import Guest
from diskyard.testing.reference_model import ModelImage, ReferenceModel
from tests.stateful.ending import run_fix, settle

KIB = 1 << 10
REPOS = ("A", "B")
HOSTS = (0, 1)
SIZES = [512, 64 * KIB, 1024 * KIB, 1024 * KIB + 512, 2048 * KIB, 4096 * KIB]
WRITES = [512, 4 * KIB, 64 * KIB, 100 * KIB, 1024 * KIB]
STRATEGIES = st.sampled_from(["space", "performance"])
HOST = st.sampled_from(HOSTS)
REPO = st.sampled_from(REPOS)
#: What a task may end with when its fix cannot run yet: it stays listed.
WAITS = {"ImageBroken", "ImageInUse", "LeaseHeld"}
_places = itertools.count()


def _seeded_uuid() -> uuid.UUID:
    """Ids come from the randomness that Hypothesis seeds, so that a story can be told again."""
    return uuid.UUID(int=random.getrandbits(128), version=4)


class Counts:
    """How much was done, for the report at the end of a run."""

    steps = 0
    compared_bytes = 0


class ImageMachine(RuleBasedStateMachine):
    """The verbs as rules; a subclass names the format."""

    format = ""

    @initialize()
    def start(self) -> None:
        self._patch = mock.patch.object(uuid, "uuid4", _seeded_uuid)
        self._patch.start()
        self.folder = Path(tempfile.mkdtemp(prefix="diskyard-story-"))
        self.model = ReferenceModel({repo: {} for repo in REPOS})
        self.parameters = {repo: self._parameters(repo) for repo in REPOS}
        self.yards: list[Diskyard] = []
        self.seen_tasks: set[str] = set()
        self.guest = Guest(Host.real())
        self.guest.__enter__()
        for host in HOSTS:
            self.yards.append(self._yard(host))
        for repo in REPOS:
            self.yards[0].create_storage_repository(self.format, self.parameters[repo])
        for yard in self.yards:
            self._connect(yard)

    def _parameters(self, repo: str) -> dict[str, str]:
        if self.format.startswith("memory"):
            return {"name": f"story {next(_places)}"}
        return {"path": str(self.folder / repo)}

    def _yard(self, host: int) -> Diskyard:
        with mock.patch.dict(os.environ, {"DISKYARD_HOST_ID": f"host{host}"}):
            return Diskyard(state_folder=str(self.folder / f"state{host}"))

    def _connect(self, yard: Diskyard) -> None:
        for repo in REPOS:
            yard.connect_storage_repository(repo, self.format, self.parameters[repo])

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        try:
            settle(self)
        finally:
            for yard in self.yards:
                yard.close()
            with contextlib.suppress(errors.DiskyardError):
                self.guest.__exit__(None, None, None)
            self._patch.stop()
            shutil.rmtree(self.folder, ignore_errors=True)

    # -- helpers ---------------------------------------------------------------------------

    def pick(self, data: st.DataObject, names: list[str], label: str) -> tuple[str, ModelImage]:
        return self.model.find(data.draw(st.sampled_from(names), label=label))

    def done(self, host: int) -> None:
        """Wait for what a verb started, and look at what became of it."""
        Counts.steps += 1
        yard = self.yards[host]
        assert yard.wait_for_tasks(timeout_s=120)
        for task in yard.list_tasks():
            if task.task_id not in self.seen_tasks:
                self.seen_tasks.add(task.task_id)
                assert task.state == "done" or (task.error or {}).get("code") in WAITS, f"{task}"
        self.look_at_statuses(host)

    def remove_unless_awaited(self, host: int, repo: str, image_id: str, *, auto: bool = True) -> bool:
        """Remove an image unless a copy waits for it as its base. Return whether it is gone."""
        try:
            self.yards[host].remove_image(repo, image_id, {"auto_fix": auto})
        except errors.ImageInUse:
            waiting = self.yards[host].service.connections.get(repo).state().waiting_for(image_id)
            assert waiting, f"nothing waits for {image_id}"
            return False
        return True

    def look_at_statuses(self, host: int) -> None:
        """What was usable once stays so."""
        for repo in REPOS:
            found = {info.image_id: info for info in self.yards[host].list_images(repo).images}
            assert set(found) == set(self.model.images[repo])
            for image in self.model.images[repo].values():
                info = found[image.id]
                assert (info.kind, info.size_bytes) == (image.kind, len(image.data))
                assert (info.user_data, info.strategy) == (image.user_data, image.strategy)
                assert len(info.attachments) == (image.attached_to is not None)
                usable = info.status != "broken"
                assert usable or not image.complete, f"{self.model.short(image.id)} broke"
                image.complete = usable

    def compare(self, host: int, repo: str, image: ModelImage) -> None:
        """Read all of an image through QEMU."""
        if image.attached_to is not None and image.kind == "virtual_disk":
            actual = self.guest.read({**image.attached_to[1], "read-only": True})
        else:
            options = {"read_only": True, "owner": "reader"}
            attached = self.yards[host].prepare_image(repo, image.id, options)
            actual = self.guest.read(attached.blockdev)
            self.yards[host].teardown_image(repo, image.id, {"owner": "reader"})
        Counts.compared_bytes += len(actual)
        if actual != image.data:
            raise AssertionError(f"{repo}/{self.model.short(image.id)}: {_difference(actual, image.data)}")

    # -- making images -----------------------------------------------------------------------

    @rule(host=HOST, repo=REPO, size=st.sampled_from(SIZES), strategy=STRATEGIES, auto=st.booleans())
    def create_disk(self, host: int, repo: str, size: int, strategy: Any, auto: bool) -> None:
        image_id = self.model.fresh_id("d")
        options = {"new_image_id": image_id, "strategy": strategy, "auto_fix": auto}
        for _ in range(2):  # the second time it is a retry
            assert self.yards[host].create_virtual_disk(repo, size, options=options) == image_id
        self.model.create_disk(repo, image_id, size, strategy)
        self.done(host)

    @precondition(lambda self: self.model.names(kind="snapshot", complete=True))
    @rule(
        data=st.data(), host=HOST, repo=REPO, more=st.sampled_from([0, 512, 1024 * KIB]), auto=st.booleans()
    )
    def create_disk_from(self, data: st.DataObject, host: int, repo: str, more: int, auto: bool) -> None:
        _, base = self.pick(data, self.model.names(kind="snapshot", complete=True), "base")
        image_id = self.model.fresh_id("d")
        options = {"new_image_id": image_id, "auto_fix": auto}
        size = len(base.data) + more
        self.yards[host].create_virtual_disk(repo, size, base.id, options=options)
        here = self.model.images[repo].get(base.id)
        at_once = here is not None and here.complete
        self.model.create_from(repo, image_id, base, size, complete=at_once)
        self.done(host)

    @precondition(lambda self: self.model.names(kind="virtual_disk", complete=True, attached=False))
    @rule(data=st.data(), host=HOST)
    def snapshot(self, data: st.DataObject, host: int) -> None:
        names = self.model.names(kind="virtual_disk", complete=True, attached=False)
        repo, disk = self.pick(data, names, "disk")
        image_id = self.model.fresh_id("s")
        options = {"new_image_id": image_id}
        self.yards[host].create_snapshot(repo, disk.id, options=options)
        self.model.snapshot(repo, image_id, disk)
        self.done(host)

    def _sources(self) -> list[str]:
        disks = self.model.names(kind="virtual_disk", complete=True, attached=False)
        return disks + self.model.names(kind="snapshot", complete=True)

    @precondition(lambda self: self._sources())
    @rule(data=st.data(), host=HOST, repo=REPO, auto=st.booleans(), track=st.booleans(), frozen=st.booleans())
    def copy(self, data: st.DataObject, host: int, repo: str, auto: bool, track: bool, frozen: bool) -> None:
        _, source = self.pick(data, self._sources(), "source")
        bases = [f"{repo}/-", *self._bases(repo, source)]
        base_name = data.draw(st.sampled_from(bases), label="base")
        base = None if base_name.endswith("-") else self.model.find(base_name)[1]
        options: dict[str, Any] = {"auto_fix": auto}
        image_id = source.id
        if source.kind == "virtual_disk":
            options["track_changes"] = track
            image_id = options["new_image_id"] = self.model.fresh_id("c")
            if frozen:
                options["as_"] = "snapshot"
        kind = "snapshot" if frozen else source.kind
        user_data = {"copy": self.model.short(image_id)}
        try:
            copied = self.yards[host].copy_image(
                repo, source.id, None if base is None else base.id, user_data, options
            )
        except errors.InvalidParameter as error:
            if "waits for image" not in error.message:
                raise
            return
        assert copied == image_id
        self.model.copy(repo, image_id, source, kind, user_data)
        self.done(host)

    def _bases(self, repo: str, source: ModelImage) -> list[str]:
        """Any Snapshot, here or not, and the disks here that can be frozen."""
        disks = self.model.names(kind="virtual_disk", complete=True, attached=False)
        snapshots = self.model.names(kind="snapshot")
        own = self.model.short(source.id) if source.kind == "snapshot" else None
        names = [name for name in disks if name.startswith(repo)] + snapshots
        return [name for name in names if name.partition("/")[2] != own]

    # -- changing them ----------------------------------------------------------------------

    @precondition(lambda self: self.model.names(kind="virtual_disk", complete=True))
    @rule(
        data=st.data(),
        host=HOST,
        place=st.integers(0, 7),
        length=st.sampled_from(WRITES),
        byte=st.sampled_from([0, 1, 2, 0xA5]),
    )
    def write(self, data: st.DataObject, host: int, place: int, length: int, byte: int) -> None:
        repo, disk = self.pick(data, self.model.names(kind="virtual_disk", complete=True), "disk")
        size = len(disk.data)
        offset = size * place // 8 // 512 * 512
        content = bytes([byte]) * min(length, size - offset)
        if disk.attached_to is None:
            blockdev = self.yards[host].prepare_image(repo, disk.id).blockdev
            self.guest.write(blockdev, offset, content)
            self.yards[host].teardown_image(repo, disk.id)
        else:
            self.guest.write(disk.attached_to[1], offset, content)
        self.model.write(disk, offset, content)
        self.done(host)

    @precondition(lambda self: self._reverts())
    @rule(data=st.data(), host=HOST, auto=st.booleans())
    def revert(self, data: st.DataObject, host: int, auto: bool) -> None:
        pair = data.draw(st.sampled_from(self._reverts()), label="disk and snapshot")
        (repo, disk), (_, snapshot) = (self.model.find(name) for name in pair)
        self.yards[host].revert_virtual_disk(repo, disk.id, snapshot.id, {"auto_fix": auto})
        disk.data = snapshot.data
        self.done(host)

    def _reverts(self) -> list[tuple[str, str]]:
        disks = self.model.names(kind="virtual_disk", complete=True, attached=False)
        snapshots = self.model.names(kind="snapshot", complete=True)
        return [(disk, snapshot) for disk in disks for snapshot in snapshots if disk[0] == snapshot[0]]

    @precondition(lambda self: self.model.names(kind="virtual_disk", complete=True, attached=False))
    @rule(data=st.data(), host=HOST, more=st.sampled_from([0, 512, 64 * KIB, 1024 * KIB]))
    def extend(self, data: st.DataObject, host: int, more: int) -> None:
        names = self.model.names(kind="virtual_disk", complete=True, attached=False)
        repo, disk = self.pick(data, names, "disk")
        size = len(disk.data) + more
        self.yards[host].extend_virtual_disk(repo, disk.id, size)
        self.model.extend(disk, size)
        self.done(host)

    @precondition(lambda self: self.model.names())
    @rule(data=st.data(), host=HOST, strategy=STRATEGIES, user_data=st.sampled_from([{}, None, [1, "é"]]))
    def set_strategy_and_user_data(
        self, data: st.DataObject, host: int, strategy: Any, user_data: Any
    ) -> None:
        repo, image = self.pick(data, self.model.names(), "image")
        self.yards[host].set_strategy(repo, image.id, strategy)
        self.yards[1 - host].set_user_data(repo, image.id, user_data)
        image.strategy, image.user_data = strategy, user_data
        self.done(host)

    @precondition(lambda self: self.model.names(attached=False))
    @rule(data=st.data(), host=HOST, auto=st.booleans())
    def remove(self, data: st.DataObject, host: int, auto: bool) -> None:
        repo, image = self.pick(data, self.model.names(attached=False), "image")
        if self.remove_unless_awaited(host, repo, image.id, auto=auto):
            self.model.remove(repo, image)
        self.done(host)

    @precondition(lambda self: self.model.names(kind="virtual_disk"))
    @rule(data=st.data(), host=HOST)
    def untrack(self, data: st.DataObject, host: int) -> None:
        repo, disk = self.pick(data, self.model.names(kind="virtual_disk"), "disk")
        self.yards[host].untrack_changes(repo, disk.id)
        self.done(host)

    # -- guests, fixes, hosts ----------------------------------------------------------------

    @precondition(lambda self: self.model.names(complete=True, attached=False))
    @rule(data=st.data(), host=HOST)
    def attach(self, data: st.DataObject, host: int) -> None:
        repo, image = self.pick(data, self.model.names(complete=True, attached=False), "image")
        attached = self.yards[host].prepare_image(repo, image.id, {"owner": "vm"})
        image.attached_to = (host, dict(attached.blockdev))
        self.done(host)

    @precondition(lambda self: self.model.names(attached=True))
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        repo, image = self.pick(data, self.model.names(attached=True), "image")
        assert image.attached_to is not None
        host = image.attached_to[0]
        self.yards[host].teardown_image(repo, image.id, {"owner": "vm"})
        image.attached_to = None
        self.done(host)

    @precondition(lambda self: self.model.names(kind="virtual_disk", attached=True))
    @rule(data=st.data(), host=HOST)
    def what_an_attachment_forbids(self, data: st.DataObject, host: int) -> None:
        repo, disk = self.pick(data, self.model.names(kind="virtual_disk", attached=True), "disk")
        yard = self.yards[host]
        size = len(disk.data) + 512
        for refused in (
            lambda: yard.remove_image(repo, disk.id),
            lambda: yard.create_snapshot(repo, disk.id),
            lambda: yard.copy_image("A", disk.id),
            lambda: yard.extend_virtual_disk(repo, disk.id, size),
            lambda: yard.prepare_image(repo, disk.id, {"owner": "another"}),
        ):
            with pytest.raises(errors.ImageInUse) as caught:
                refused()
            assert caught.value.details["imageId"] == disk.id
        self.done(host)

    @rule(data=st.data(), host=HOST, repo=REPO, deep=st.booleans())
    def check_and_fix(self, data: st.DataObject, host: int, repo: str, deep: bool) -> None:
        fixes = [fix for fix in self.check(host, repo, deep=deep) if fix.runnable]
        if fixes:
            names = [
                f"{index} {fix.type} {self.model.short(fix.image_id)}" for index, fix in enumerate(fixes)
            ]
            index = int(data.draw(st.sampled_from(names), label="fix").split()[0])
            run_fix(self, host, repo, fixes[index])
            run_fix(self, 1 - host, repo, fixes[index])
        self.done(host)

    def check(self, host: int, repo: str, *, deep: bool = False) -> list[Fix]:
        return self.yards[host].check_storage_repository(repo, {"deep": deep})

    @precondition(lambda self: self.model.names(complete=True))
    @rule(data=st.data(), host=HOST)
    def read(self, data: st.DataObject, host: int) -> None:
        repo, image = self.pick(data, self.model.names(complete=True), "image")
        self.compare(host, repo, image)
        self.done(host)

    @rule(host=HOST)
    def restart(self, host: int) -> None:
        self.yards[host].close()
        self.yards[host] = self._yard(host)
        self._connect(self.yards[host])
        self.done(host)


def _difference(actual: bytes, expected: bytes) -> str:
    if len(actual) != len(expected):
        return f"{len(actual)} bytes instead of {len(expected)}"
    sectors = [
        at // 512 for at in range(0, len(actual), 512) if actual[at : at + 512] != expected[at : at + 512]
    ]
    first = sectors[0] * 512
    return (
        f"{len(sectors)} sectors differ, the first at {first}: "
        f"{actual[first : first + 4].hex()} instead of {expected[first : first + 4].hex()}"
    )
