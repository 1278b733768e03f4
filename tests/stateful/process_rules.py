"""The rules of the stories of processes: every verb, and what befalls hosts."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from diskyard.testing import verb_meanings as mean
from diskyard.testing.possibilities import Key
from diskyard.testing.world import KIB, PLACES
from tests.stateful.processes import RACES, Actor, Asked, ProcessMachine

SIZES = [512, 64 * KIB, 1024 * KIB, 1024 * KIB + 512, 2048 * KIB]
WRITES = [512, 4 * KIB, 64 * KIB, 100 * KIB, 1024 * KIB]
BYTES = [0, 1, 2, 0xA5]
STRATEGY = st.sampled_from(["space", "performance"])
REPO = st.sampled_from(PLACES)
#: After how many changes of storage the host is held; None: not at all.
STEPS = st.none() | st.integers(0, 80)
FIXES_REMEMBERED = 30
BOOTS = 3


def some_idle(machine: Any) -> bool:
    return bool(machine.idle())


class StoryMachine(ProcessMachine):
    """The verbs and the blows of fate."""

    def tell(self, data: st.DataObject, asked: Asked, steps: int | None, *, again: bool = False) -> None:
        actor = self.pick_actor(data, self.idle())
        if again:
            self.made.append(asked)
        self.ask(actor, asked, steps)

    # -- making images ------------------------------------------------------------------------

    @precondition(some_idle)
    @rule(
        data=st.data(),
        repo=REPO,
        size=st.sampled_from(SIZES),
        strategy=STRATEGY,
        auto=st.booleans(),
        steps=STEPS,
    )
    def create_disk(
        self, data: st.DataObject, repo: str, size: int, strategy: Any, auto: bool, steps: int | None
    ) -> None:
        key = (repo, self.names.fresh_id("d"))
        options = {"newImageId": key[1], "strategy": strategy, "AutoFix": auto}
        parameters = {"targetRepoId": repo, "size": size, "options": options}
        stages = mean.create_disk(key, size, strategy)
        self.tell(data, Asked("createVirtualDisk", parameters, stages, (key,)), steps, again=True)

    @precondition(lambda self: some_idle(self) and self.having(kind="snapshot", complete=True))
    @rule(
        data=st.data(),
        repo=REPO,
        more=st.sampled_from([0, 512, 1024 * KIB]),
        auto=st.booleans(),
        steps=STEPS,
    )
    def create_disk_from(
        self, data: st.DataObject, repo: str, more: int, auto: bool, steps: int | None
    ) -> None:
        base = self.pick(data, self.having(kind="snapshot", complete=True), "base")
        key = (repo, self.names.fresh_id("d"))
        size = len(self.image(base).data) + more
        parameters = {
            "targetRepoId": repo,
            "size": size,
            "baseSnapshotId": base[1],
            "options": {"newImageId": key[1], "AutoFix": auto},
        }
        stages = mean.create_from(key, base[1], size)
        self.tell(data, Asked("createVirtualDisk", parameters, stages, (key, base)), steps, again=True)

    def _free_disks(self, repo: str | None = None) -> list[Key]:
        return self.having(kind="virtual_disk", complete=True, attached=False, repo=repo)

    @precondition(lambda self: some_idle(self) and self._free_disks())
    @rule(data=st.data(), steps=STEPS)
    def snapshot(self, data: st.DataObject, steps: int | None) -> None:
        disk = self.pick(data, self._free_disks(), "disk")
        key = (disk[0], self.names.fresh_id("s"))
        parameters = {
            "targetRepoId": disk[0],
            "baseVirtualDiskId": disk[1],
            "options": {"newImageId": key[1]},
        }
        asked = Asked("createSnapshot", parameters, mean.snapshot(key, disk), (key, disk))
        self.tell(data, asked, steps, again=True)

    def _sources(self) -> list[Key]:
        return self._free_disks() + self.having(kind="snapshot", complete=True)

    @precondition(lambda self: some_idle(self) and self._sources())
    @rule(
        data=st.data(),
        repo=REPO,
        auto=st.booleans(),
        track=st.booleans(),
        frozen=st.booleans(),
        steps=STEPS,
    )
    def copy(
        self, data: st.DataObject, repo: str, auto: bool, track: bool, frozen: bool, steps: int | None
    ) -> None:
        source = self.pick(data, self._sources(), "source")
        bases = self._free_disks(repo) + self.having(kind="snapshot")
        bases = [base for base in bases if base[1] != source[1]]
        name = data.draw(st.sampled_from(["none", *map(self.names.of, bases)]), label="base")
        options: dict[str, Any] = {"AutoFix": auto}
        key = (repo, source[1])
        kind = self.image(source).kind
        if kind == "virtual_disk":
            key = (repo, self.names.fresh_id("c"))
            options |= {"trackChanges": track, "newImageId": key[1]}
            if frozen:
                kind = "snapshot"
                options["as"] = "snapshot"
        user_data = {"copy": self.names.of(key)}
        parameters = {"targetRepoId": repo, "imageId": source[1], "userData": user_data, "options": options}
        keys: tuple[Key, ...] = (key, source)
        if name != "none":
            base = bases[[self.names.of(base) for base in bases].index(name)]
            parameters["baseImageId"] = base[1]
            keys = (*keys, base)
        stages = mean.copy(key, source[1], kind, user_data)
        # A base that waits for the copy itself is refused, whatever else goes on.
        allowed = ["InvalidParameter"] if name != "none" else []
        asked = Asked("copyImage", parameters, stages, keys, allowed=allowed)
        self.tell(data, asked, steps, again=True)

    @precondition(some_idle)
    @rule(
        data=st.data(),
        repo=REPO,
        size=st.sampled_from(SIZES),
        byte=st.sampled_from(BYTES),
        auto=st.booleans(),
        frozen=st.booleans(),
        steps=STEPS,
    )
    def import_image(
        self,
        data: st.DataObject,
        repo: str,
        size: int,
        byte: int,
        auto: bool,
        frozen: bool,
        steps: int | None,
    ) -> None:
        key = (repo, self.names.fresh_id("i"))
        content = bytes([byte]) * (size // 2) + bytes(size - size // 2)
        path = self.world.folder / f"{self.names.short(key[1])}.raw"
        path.write_bytes(content)
        options: dict[str, Any] = {"newImageId": key[1], "AutoFix": auto}
        if frozen:
            options["as"] = "snapshot"
        parameters = {"targetRepoId": repo, "path": str(path), "format": "raw", "options": options}
        stages = mean.import_image(key, content, "snapshot" if frozen else "virtual_disk")
        self.tell(data, Asked("importImage", parameters, stages, (key,)), steps, again=True)

    @precondition(lambda self: some_idle(self) and self.made)
    @rule(data=st.data(), steps=STEPS)
    def ask_again(self, data: st.DataObject, steps: int | None) -> None:
        """What was answered, or not, may be asked for again, of any host."""
        names = [f"{asked.verb} {self.names.of(asked.keys[0])}" for asked in self.made]
        asked = self.made[names.index(data.draw(st.sampled_from(names), label="what"))]
        is_there = asked.keys[0] in self.possible.images
        # What was made and removed may be needed by others still: then its id is not free yet.
        gone = () if is_there else {*RACES, "ImageIdInUse"}
        again = Asked(asked.verb, asked.parameters, asked.stages, asked.keys, (*asked.allowed, *gone))
        self.tell(data, again, steps)

    # -- changing them ------------------------------------------------------------------------

    @precondition(lambda self: self._writable())
    @rule(
        data=st.data(),
        place=st.integers(0, 7),
        length=st.sampled_from(WRITES),
        byte=st.sampled_from(BYTES),
    )
    def write(self, data: st.DataObject, place: int, length: int, byte: int) -> None:
        disk = self.pick(data, self._writable(), "disk")
        size = len(self.image(disk).data)
        offset = size * place // 8 // 512 * 512
        content = bytes([byte]) * min(length, size - offset)
        actor = None
        if disk not in self.graphs:
            actor = self.pick_actor(data, self.idle())
            if not self.ask(actor, self.attach_asked(actor, disk)):
                return
        self.guest.write(self.graphs[disk], offset, content)
        self.possible.change(mean.write(disk, offset, content))
        if actor is not None:
            self.ask(actor, self.detach_asked(actor, disk))

    def _writable(self) -> list[Key]:
        """Disks that a guest has, and those that one could have."""
        free = [key for key in self._free_disks() if key not in self.graphs] if self.idle() else []
        return [key for key in self.having(kind="virtual_disk", attached=True) if key in self.graphs] + free

    def _reverts(self) -> list[tuple[Key, Key]]:
        return [
            (disk, snapshot)
            for disk in self._free_disks()
            for snapshot in self.having(kind="snapshot", complete=True, repo=disk[0])
        ]

    @precondition(lambda self: some_idle(self) and self._reverts())
    @rule(data=st.data(), auto=st.booleans(), steps=STEPS)
    def revert(self, data: st.DataObject, auto: bool, steps: int | None) -> None:
        pairs = {f"{self.names.of(d)} to {self.names.of(s)}": (d, s) for d, s in self._reverts()}
        disk, snapshot = pairs[data.draw(st.sampled_from(list(pairs)), label="what")]
        parameters = {
            "repositoryId": disk[0],
            "imageId": disk[1],
            "snapshotId": snapshot[1],
            "options": {"AutoFix": auto},
        }
        stages = mean.revert(disk, snapshot[1])
        self.tell(data, Asked("revertVirtualDisk", parameters, stages, (disk, snapshot)), steps)

    @precondition(lambda self: some_idle(self) and self._free_disks())
    @rule(data=st.data(), more=st.sampled_from([0, 512, 64 * KIB, 1024 * KIB]), steps=STEPS)
    def extend(self, data: st.DataObject, more: int, steps: int | None) -> None:
        disk = self.pick(data, self._free_disks(), "disk")
        size = len(self.image(disk).data) + more
        parameters = {"repositoryId": disk[0], "imageId": disk[1], "size": size}
        self.tell(data, Asked("extendVirtualDisk", parameters, mean.extend(disk, size), (disk,)), steps)

    @precondition(lambda self: some_idle(self) and self.having())
    @rule(data=st.data(), user_data=st.sampled_from([{}, None, [1, "é"]]), steps=STEPS)
    def set_user_data(self, data: st.DataObject, user_data: Any, steps: int | None) -> None:
        key = self.pick(data, self.having(), "image")
        parameters = {"repositoryId": key[0], "imageId": key[1], "userData": user_data}
        self.tell(data, Asked("setUserData", parameters, mean.set_user_data(key, user_data), (key,)), steps)

    @precondition(lambda self: some_idle(self) and self.having())
    @rule(data=st.data(), strategy=STRATEGY, steps=STEPS)
    def set_strategy(self, data: st.DataObject, strategy: Any, steps: int | None) -> None:
        key = self.pick(data, self.having(), "image")
        parameters = {"repositoryId": key[0], "imageId": key[1], "strategy": strategy}
        self.tell(data, Asked("setStrategy", parameters, mean.set_strategy(key, strategy), (key,)), steps)

    @precondition(lambda self: some_idle(self) and self.having(attached=False))
    @rule(data=st.data(), auto=st.booleans(), steps=STEPS)
    def remove(self, data: st.DataObject, auto: bool, steps: int | None) -> None:
        key = self.pick(data, self.having(attached=False), "image")
        parameters = {"repositoryId": key[0], "imageId": key[1], "options": {"AutoFix": auto}}
        # A copy may wait for it, as its base.
        asked = Asked("removeImage", parameters, mean.remove(key), (key,), allowed=["ImageInUse"])
        self.tell(data, asked, steps)

    @precondition(lambda self: some_idle(self) and self.having(kind="virtual_disk"))
    @rule(data=st.data(), steps=STEPS)
    def untrack(self, data: st.DataObject, steps: int | None) -> None:
        disk = self.pick(data, self.having(kind="virtual_disk"), "disk")
        parameters = {"repositoryId": disk[0], "imageId": disk[1]}
        self.tell(data, Asked("untrackChanges", parameters, mean.untrack(disk), (disk,)), steps)

    # -- guests, readers, fixes -----------------------------------------------------------------

    @precondition(lambda self: some_idle(self) and self.having(complete=True, attached=False))
    @rule(data=st.data(), steps=STEPS)
    def attach(self, data: st.DataObject, steps: int | None) -> None:
        key = self.pick(data, self.having(complete=True, attached=False), "image")
        actor = self.pick_actor(data, self.idle())
        self.ask(actor, self.attach_asked(actor, key), steps)

    @precondition(lambda self: some_idle(self) and self.having(attached=True))
    @rule(data=st.data(), steps=STEPS)
    def detach(self, data: st.DataObject, steps: int | None) -> None:
        key = self.pick(data, self.having(attached=True), "image")
        actor = self.pick_actor(data, self.idle())
        self.ask(actor, self.detach_asked(actor, key), steps)

    @precondition(lambda self: some_idle(self) and not self.held() and self._disks_of_guests())
    @rule(data=st.data())
    def what_an_attachment_forbids(self, data: st.DataObject) -> None:
        disk = self.pick(data, self._disks_of_guests(), "disk")
        of_disk = {"repositoryId": disk[0], "imageId": disk[1]}
        size = len(self.image(disk).data) + 512
        actor = self.pick_actor(data, self.idle())
        for verb, parameters in (
            ("removeImage", of_disk),
            ("createSnapshot", {"targetRepoId": disk[0], "baseVirtualDiskId": disk[1]}),
            ("copyImage", {"targetRepoId": disk[0], "imageId": disk[1]}),
            ("extendVirtualDisk", {**of_disk, "size": size}),
            ("prepareImage", {**of_disk, "options": {"owner": "another"}}),
        ):
            if disk[0] in actor.connected:
                self.ask(actor, Asked(verb, parameters, None, allowed=["ImageInUse"]))
                assert actor.process.heard.error is not None, verb

    def _disks_of_guests(self) -> list[Key]:
        return self.having(kind="virtual_disk", attached=True)

    @precondition(lambda self: some_idle(self) and self.having(complete=True))
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        key = self.pick(data, self.having(complete=True), "image")
        self.compare(self.pick_actor(data, self.idle()), key)

    @precondition(lambda self: some_idle(self) and self._sources())
    @rule(data=st.data(), steps=STEPS)
    def export(self, data: st.DataObject, steps: int | None) -> None:
        key = self.pick(data, self._sources(), "image")
        path = self.folder / f"{self.names.short(self.names.fresh_id('e'))}.exported"
        parameters = {"repositoryId": key[0], "imageId": key[1], "path": str(path), "format": "raw"}

        def answered(remembered: Any) -> None:
            assert path.read_bytes() in [found[1].data for found in remembered], "what was exported"

        asked = Asked("exportImage", parameters, mean.export(key), (key,), by_task=True, answered=answered)
        self.tell(data, asked, steps)

    @precondition(lambda self: some_idle(self) and self.made)
    @rule(data=st.data(), repo=REPO, deep=st.booleans())
    def check(self, data: st.DataObject, repo: str, deep: bool) -> None:
        def answered(fixes: list[Any]) -> None:
            for fix in fixes:
                name = f"{repo} {fix['type']} {self.names.short(fix['imageId'])} {len(self.fixes)}"
                self.fixes.append((name, repo, fix))
            del self.fixes[:-FIXES_REMEMBERED]

        parameters = {"repositoryId": repo, "options": {"deep": deep}}
        self.tell(data, Asked("checkStorageRepository", parameters, None, answered=answered), None)

    @precondition(lambda self: some_idle(self) and self.fixes)
    @rule(data=st.data(), steps=STEPS)
    def fix(self, data: st.DataObject, steps: int | None) -> None:
        """What was listed some time ago, and may have been run before, by any host."""
        names = [name for name, _, _ in self.fixes]
        _, repo, fix = self.fixes[names.index(data.draw(st.sampled_from(names), label="fix"))]
        self.tell(data, Asked("fixStorageRepository", {"repositoryId": repo, "fix": fix}, None), steps)

    @precondition(lambda self: some_idle(self) and self.having())
    @rule(data=st.data())
    def status(self, data: st.DataObject) -> None:
        key = self.pick(data, self.having(), "image")
        parameters = {"repositoryId": key[0], "imageId": key[1]}
        self.tell(data, Asked("getImageStatus", parameters, mean.untrack(key)), None)

    # -- what befalls hosts -----------------------------------------------------------------------

    @precondition(lambda self: self.held())
    @rule(data=st.data(), steps=st.none() | st.integers(1, 80), stop=st.booleans())
    def go_on(self, data: st.DataObject, steps: int | None, stop: bool) -> None:
        """A host that is held goes on; its tasks may be asked to stop before."""
        actor = self.pick_actor(data, self.held())
        if stop:
            assert actor.asked is not None
            actor.asked.stopped = True
            actor.process.stop_tasks()
        actor.process.go_on(steps)
        self.hear(actor)

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def kill_held(self, data: st.DataObject) -> None:
        self.kill(self.pick_actor(data, self.held()))

    @precondition(lambda self: some_idle(self) and len(self.having()) > 1)
    @rule(data=st.data(), in_order=st.booleans())
    def restart(self, data: st.DataObject, in_order: bool) -> None:
        actor = self.pick_actor(data, self.idle())
        if in_order:
            actor.process.close()
            self.begin_again(actor)
        else:
            self.kill(actor)

    @precondition(lambda self: some_idle(self) and len(self.having()) > 1)
    @rule(data=st.data(), repo=REPO)
    def disconnect_or_connect(self, data: st.DataObject, repo: str) -> None:
        actor = self.pick_actor(data, self.idle())
        if repo in actor.connected:
            has_guest = any(
                key[0] == repo and image.attached_to == actor.number
                for state in self.possible.states
                for key, image in state.images.items()
            )
            allowed = ["RepositoryInUse"] if has_guest else []
            asked = Asked("disconnectStorageRepository", {"repoId": repo}, None, allowed=allowed)
            if self.ask(actor, asked):
                actor.connected.discard(repo)
        else:
            place = {"repoFormat": self.format, "connectionParameters": self.world.parameters(repo)}
            self.ask(actor, Asked("connectStorageRepository", {"repoId": repo, **place}, None))
            actor.connected.add(repo)

    @precondition(lambda self: self.boots < BOOTS and len(self.having()) > 1 and self.having(attached=True))
    @rule()
    def the_machine_restarts(self) -> None:
        """All hosts of the story are one machine; its guests are gone, and that can be known."""
        self.boots += 1
        for actor in self.actors:
            actor.process.kill()
            if actor.asked is not None and actor.asked.number is not None:
                self.possible.died(actor.asked.number)
            actor.asked = None
            actor.process = self._process(actor.number, starts=actor.process.starts)
            actor.process.start()
            actor.connected = set(PLACES)
        self.observer.close()
        self.observer = self._observer()
        self.graphs.clear()
        self.look()
        self._clean_attachments(self.actors[0])

    def _clean_attachments(self, actor: Actor) -> None:
        for repo in PLACES:
            heard = actor.process.run("checkStorageRepository", {"repositoryId": repo})
            assert heard.answer is not None, heard.error
            for fix in heard.answer[0]:
                if fix["data"]["action"]["do"] == "cleanAttachment":
                    ran = actor.process.run("fixStorageRepository", {"repositoryId": repo, "fix": fix})
                    assert [state for _, state, _ in ran.ended or []] == ["done"], ran
        self.possible.change(mean.guests_are_gone)
        self.look()
