"""A verb on the disk of a guest that writes: it is interrupted, the guest lives or dies, and all is judged.

A :class:`LiveRun` has a world, a host that has told its Diskyard of the guest, and the guest. What interrupts
the verb is the suite's. Then the same host goes on in another process, and the guest ends:
:meth:`LiveRun.go_on`. :meth:`LiveRun.judge` requires what must be true whatever happened.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from msgspec.structs import replace

from diskyard import errors
from diskyard.fixes.runner import run_fix
from diskyard.host import Clock, Commands, Files, Host
from diskyard.live.monitor import NobodyAnswers
from diskyard.model.fix import CleanSwitch
from diskyard.model.records import Attachment
from diskyard.model.verbs import EVERY_CALL, VERBS
from diskyard.mover.qemu.graphs import guest_nodes
from diskyard.operations.guests import asked_guest
from diskyard.service import Service, call
from diskyard.testing.crash import ACTING_HOST, Ran, held_scenario, run_scenario
from diskyard.testing.running_guest import StorageDaemonGuest, judge
from diskyard.testing.running_guest.by_hand import by_hand
from diskyard.testing.scenarios.base import Act
from diskyard.testing.scenarios.live import (
    BESIDE,
    OWNER,
    LiveScenario,
    answer_file,
    export_file,
    guest_folder,
    make_known,
)
from diskyard.testing.steps import Side
from diskyard.testing.world import PLACES, World, host_named

Fate = Literal["lives on", "dies first", "dies", "dies later", "ends"]
FATES: tuple[Fate, ...] = ("lives on", "dies first", "dies", "dies later", "ends")
"""What becomes of the guest: it dies while the verb waits at the step, and the verb goes on; it dies with the
verb; it dies after some more writes, before anybody looks; or it is shut down then."""

Then = Literal["verb", "fix", "retry", "restart", "teardown", "reboot"]
THEN: tuple[Then, ...] = ("verb", "fix", "retry", "restart", "teardown")
"""What the host does next: a Snapshot of the disk; the fixes of switches; the same again; another guest, if
the first has ended, and a Snapshot; or a teardown. (A run that is made for it may end with a "reboot": its
host goes down with the guest, another one mends what it leaves, and then it takes a Snapshot.)"""

_MORE_WRITES = 3
_TASKS_END_S = 120.0
_WRITES_STOP_MOST_S = 30.0


class LiveRun:
    """One run; a context manager, in which the guest runs until it is ended.

    :param boot_id: of the boot that a reboot ends; None if there will be no reboot.
    :ivar guest: the guest.
    :ivar first_graph: with which it was started first.
    :ivar before: the last write that was acknowledged before the scenario froze anything.
    """

    def __init__(self, scenario: LiveScenario, world: World, boot_id: str | None = None) -> None:
        self.scenario, self.world = scenario, world
        self._boot_id = boot_id or Host.real().identity.boot_id
        self._disk = ("a", world.names["d"])
        self._made: dict[tuple[str, str], int] = {}
        self._seen: dict[tuple[str, str], bytes] = {}
        self._ended_well: bool | None = None
        self._retried = False
        self.first_graph: dict[str, Any] = {}

    def __enter__(self) -> Self:
        world, service = self.world, self.service()
        self.guest = self._started(service, after=judge(world.images[self._disk], 0))
        try:
            if self.scenario.is_known:
                make_known(world, service)
            self.before = self.scenario.begin(world, service, self.guest)
        except BaseException:
            self.guest.kill()
            raise
        finally:
            service.close()
        return self

    def _started(self, service: Service, *, after: int) -> StorageDaemonGuest:
        """A guest on the disk as prepareImage gives it out now."""
        asked = {"repositoryId": "a", "imageId": self._disk[1], "options": OWNER}
        graph = call(service, "prepareImage", asked)["blockdev"]
        self.first_graph = self.first_graph or graph
        return StorageDaemonGuest(guest_folder(self.world), [graph], after=after).__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.guest.kill()
        if error is None:
            shutil.rmtree(self.world.folder)

    def service(self, name: str = ACTING_HOST) -> Service:
        """Another process of the guest's host, or another host."""
        if name != ACTING_HOST:
            return self.world.service(host_named(name))
        identity = replace(host_named(name).identity, boot_id=self._boot_id)
        return self.world.service(Host(identity, Files(identity), Commands(), Clock()))

    # -- what happens ----------------------------------------------------------------------

    def kill_at(self, step: int, side: Side, fate: Fate) -> Ran:
        """Do it in a process that is killed at a step, or whose guest is. The guest meets its fate."""
        name, world = self.scenario.name, self.world
        if fate == "dies first":
            with held_scenario(name, world, hold_at=step, boot_id=self._boot_id) as held:
                self.guest.kill()
                ran = held.go_on()
            require_described(self.scenario, ran)
        else:
            ran = run_scenario(name, world, kill_at=step, side=side, boot_id=self._boot_id)
            # Threads make the steps of a copy vary: the last ones may not be reached.
            assert ran.killed or ran.answered, ran
        self.meet(fate)
        return ran

    def beside(self, name: str) -> bool:
        """Do something else in this process; return whether it was refused, as two cannot be done at once."""
        place, act = BESIDE[name]
        if name == "teardown":
            self._end_guest(well=True)
        service, before = self.service(), self.guest.acknowledged()
        try:
            made = act(self.world, service)
        except (errors.LeaseHeld, errors.ImageInUse):
            return True
        finally:
            service.close()
        if place is not None:
            self._made[place, made] = before
        return False

    def meet(self, fate: Fate) -> None:
        """Let the guest meet its fate, if it has not ended before."""
        if not self.guest.is_alive():
            return
        if fate == "dies":
            self.guest.kill()
        elif fate != "lives on":
            self.guest.wait_for(_MORE_WRITES, _WRITES_STOP_MOST_S)
            self._end_guest(well=fate == "ends")

    def _end_guest(self, *, well: bool) -> None:
        if self.guest.is_alive():
            (self.guest.end if well else self.guest.kill)()
            self._ended_well = well

    # -- how it goes on --------------------------------------------------------------------

    def go_on(self, then: Then, chance: random.Random) -> None:
        """Let the same host go on, and end the guest and its attachment."""
        if then == "reboot":
            self._reboot(chance)
        elif chance.random() < 1 / 2:
            self._let_another_host_meddle(chance)
        service = self.service()
        if then != "teardown":
            self._do_next(service, then)
            assert not any(found.switching for found in self._attachments(service)), "it is left switching"
            self._look(service)
            self._read_what_is_frozen(service)
        self._end_guest(well=chance.random() < 1 / 2)
        assert self.guest.errors() == [], "the guest was told of errors"
        self.tear_down(service)
        service.close()

    def _do_next(self, service: Service, then: Then) -> None:
        if then == "restart" and not self.guest.is_alive():
            self._start_again(service)
        if then in ("verb", "restart", "reboot"):
            self._snapshot(service)
        elif then == "fix":
            for fix in self.world.fixes(service, "a"):
                if isinstance(fix.data.action, CleanSwitch):
                    assert fix.runnable, fix
                    run_fix(service.engine, service.connections.get("a"), fix.data.action)
        else:
            self.retry(service)

    def _start_again(self, service: Service) -> None:
        """Start another guest on the disk of one that has ended, as a manager does after a crash."""
        assert self.guest.errors() == [], "the guest was told of errors"
        self.guest = self._started(service, after=self.guest.acknowledged())
        self._ended_well = None
        make_known(self.world, service)

    def _snapshot(self, service: Service) -> None:
        before, alive = self.guest.acknowledged(), self.guest.is_alive()
        try:
            made = call(service, "createSnapshot", {"targetRepoId": "a", "baseVirtualDiskId": self._disk[1]})
        except errors.ImageInUse:
            reachable = any(found.live for found in self._attachments(service))
            assert not (alive and reachable), "a Snapshot of a running disk is refused"
        else:
            self._made["a", made] = before

    def retry(self, service: Service) -> None:
        """Do the same again, as a caller does who was not told: it is done, and once only."""
        scenario, fix = self.scenario, self.scenario.verb is None
        was_made = scenario.new_id is not None and self._is_there(service, scenario.makes, scenario.new_id)
        self._retried = True
        try:
            scenario.act(self.world, service)
        except StopIteration:
            assert fix, "only a fix can have nothing left to do"
        except (errors.ImageInUse, NobodyAnswers):
            # What has been done is answered in the same way, whatever has become of the guest.
            assert not self.guest.is_alive(), "it is refused while the guest runs"
            assert not was_made, "it is refused, though it was done"
        except errors.NotEmpty:
            assert export_file(self.world).exists(), "nothing is in the way of the export"
        assert service.tasks.wait(timeout_s=_TASKS_END_S), "what it started does not end"

    def _is_there(self, service: Service, place: str | None, image_id: str) -> bool:
        found = None if place is None else service.connections.get(place).state().images.get(image_id)
        return found is not None and found.is_strong

    def _let_another_host_meddle(self, chance: random.Random) -> None:
        """Another host runs all that it may. It cannot ask the guest, so it does not decide for it."""
        other = self.service("other-host")
        switching = [found for found in self._attachments(other) if found.switching]
        listed = [fix for fix in self.world.fixes(other, "a") if isinstance(fix.data.action, CleanSwitch)]
        assert len(listed) == len(switching), "check lists each interrupted switch"
        assert not any(fix.runnable for fix in listed), "another host cannot ask the guest"
        self.world.fix_all([other], chance)
        assert [found for found in self._attachments(other) if found.switching] == switching
        other.close()

    def _reboot(self, chance: random.Random) -> None:
        """The host goes down, and another one mends what it leaves: nobody asks who certainly is no more."""
        self.meet("dies")
        self._boot_id = Host.real().identity.boot_id
        other = self.service("other-host")
        self.world.fix_all([other], chance)
        assert not self._attachments(other), "an attachment of an earlier boot is left"
        other.close()

    def _look(self, service: Service) -> None:
        """Require a guest that runs to write on, and to be where the log has its disk."""
        if not self.guest.is_alive():
            return
        self.guest.wait_for(_MORE_WRITES, _WRITES_STOP_MOST_S)
        repo = service.connections.get("a")
        for attachment in self._attachments(service):
            self._look_for_strange_nodes(attachment)
            if attachment.live is None:
                continue
            with asked_guest(service.engine, repo, attachment.id) as asked:
                state, guest = asked.state, asked.guest
                assert guest is not None, "the guest runs"
                chain = tuple(volume.id for _, volume in state.chain(state.images[self._disk[1]]))
                assert guest.seen.chain[:1] == chain[:1], "the guest writes where the log has its disk"
                assert set(chain) <= set(attachment.volume_ids), "its attachment names all that it reads"
                assert (guest.seen.foreign, guest.seen.idle, guest.seen.job) == ((), (), None)

    def _look_for_strange_nodes(self, attachment: Attachment) -> None:
        """Require the guest to have nothing open that its attachment does not name."""
        named = {node for key in attachment.volume_ids for node in guest_nodes(attachment.id, key)}
        with by_hand(self.guest.monitor) as monitor:
            graph: Any = monitor.command("x-debug-query-block-graph")
        opened = {node["name"] for node in graph["nodes"] if node["type"] == "block-driver"}
        assert opened <= named, f"the guest has {opened - named} open, which its attachment does not name"

    def _read_what_is_frozen(self, service: Service) -> None:
        """Snapshots can be read while the guest writes, and read the same ever after."""
        for place in PLACES:
            state = service.connections.get(place).state()
            for image in state.images.values():
                key = (place, image.id)
                if image.is_strong and image.pending is None and key not in self.world.images:
                    self._seen[key] = self.world.read(service, *key)

    def _attachments(self, service: Service) -> list[Attachment]:
        return service.connections.get("a").state().attachments_of(self._disk[1])

    def tear_down(self, service: Service) -> None:
        """The guest has ended: nothing stands in the way of the teardown."""
        asked = {"repositoryId": "a", "imageId": self._disk[1], "options": OWNER}
        call(service, "teardownImage", asked)
        assert service.tasks.wait(timeout_s=_TASKS_END_S), "what it started does not end"

    # -- the judge -------------------------------------------------------------------------

    def judge(self, chance: random.Random, *, answered: bool) -> None:
        """Fix everything, then require that no acknowledged write is lost, and that nothing else is left."""
        world, hosts = self.world, [self.service(), self.service("survivor")]
        world.fix_all(hosts, chance)
        last = self.guest.acknowledged()
        data = world.read(hosts[1], *self._disk)
        point = judge(data, last)
        assert not self._ended_well or point == last, "who ended well had nothing under way"
        world.images[self._disk] = data
        self._judge_new(hosts[1], answered=answered or answer_file(world).exists())
        self._judge_export(answered=answered)
        world.judge(hosts[0])
        for place in PLACES:
            asked = {"repositoryId": place, "options": {"deep": True}}
            assert call(hosts[0], "checkStorageRepository", asked) == []
        for host in hosts:
            host.close()

    def _judge_new(self, service: Service, *, answered: bool) -> None:
        """Judge the images that were made since the beginning; they are the world's from here on."""
        made = set()
        for place in PLACES:
            for image in list(service.connections.get(place).state().images.values()):
                key = (place, image.id)
                if not image.is_strong or key in self.world.images:
                    continue
                data = self.world.read(service, *key)
                assert self._seen.get(key, data) == data, f"image {image.id} in {place} has changed"
                if key not in self._made:
                    made.add(key)
                if key not in self._made and self.scenario.content is not None:
                    assert data == self.scenario.content(self.world), f"the bytes of {image.id} in {place}"
                else:
                    judge(data, self._made.get(key, self.before))
                self.world.images[key] = data
        missing = self._made.keys() - self.world.images.keys()
        assert not missing, f"it was answered, and is not there: {missing}"
        self._judge_made(made, answered=answered)

    def _judge_made(self, made: set[tuple[str, str]], *, answered: bool) -> None:
        """The scenario has made its image if it was answered; otherwise it may have."""
        place, new_id, path = self.scenario.makes, self.scenario.new_id, answer_file(self.world)
        told = path.read_text() if path.exists() else ""
        allowed = 1 + (self._retried and new_id is None) if place is not None else 0
        assert len(made) <= allowed, f"images that nobody asked for: {made}"
        assert all(found == place and new_id in (None, image_id) for found, image_id in made), made
        if answered and told:
            assert (place, told) in made, f"it was answered, and is not there: {told}"

    def _judge_export(self, *, answered: bool) -> None:
        path: Path = export_file(self.world)
        if path.exists():
            judge(path, self.before)


def require_described(scenario: LiveScenario, ran: Ran) -> None:
    """Require an error to be one that the API describes for the verb."""
    if ran.error_code is None:
        return
    described = set(errors.CODES) if scenario.verb is None else EVERY_CALL | VERBS[scenario.verb].errors
    assert ran.error_code in described - {"InternalError"}, f"{scenario.name} answers {ran.error_code}"


def prepared_world(prepare: Act, folder: Path) -> World:
    """A world in which a scenario can begin."""
    world = World(folder)
    world.create()
    builder = world.service(host_named("builder"))
    prepare(world, builder)
    builder.close()
    return world


class LiveBench:
    """A world made ready for a scenario, copied for each run.

    :param prepared: from :func:`prepared_world`.
    :ivar steps: what a run does, in order.
    """

    def __init__(self, scenario: LiveScenario, prepared: World, folder: Path) -> None:
        self.scenario, self._prepared, self._folder, self._runs = scenario, prepared, folder, 0
        self.steps: tuple[str, ...] = ()
        chance = random.Random(0)
        with self.run() as run:
            ran = run_scenario(scenario.name, run.world, boot_id=Host.real().identity.boot_id)
            assert ran.answered, ran
            run.go_on("verb", chance)
            run.judge(chance, answered=True)
        self.steps = ran.names
        assert self.steps

    def run(self, boot_id: str | None = None) -> LiveRun:
        """A run on a copy of the world."""
        self._runs += 1
        return LiveRun(self.scenario, self._prepared.copied(self._folder / f"run-{self._runs}"), boot_id)
