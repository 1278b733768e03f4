"""One to three hosts, each a process that can be held and killed, on two repositories."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize

from diskyard import errors
from diskyard.host import Clock, Commands, Files, Host
from diskyard.service import Service, call
from diskyard.testing import verb_meanings as mean
from diskyard.testing.guest import Guest
from diskyard.testing.possibilities import Key, Known, Possibilities, Seen
from diskyard.testing.story_host import StoryHost, identity
from diskyard.testing.verb_meanings import Stages
from diskyard.testing.world import PLACES, World

#: What a task may end with when its fix cannot run yet: it stays listed.
WAITS = {"ImageBroken", "ImageInUse", "LeaseHeld"}
#: What a verb may answer when others change the same images, or have them, at the same time.
RACES = WAITS | {"ImageNotFound", "InvalidParameter"}
NOT_CONNECTED = {"RepositoryNotConnected", "ImageNotFound", "NotASnapshot", "ImageBroken"}


class Counts:
    """How much was done, for the report at the end of a run."""

    operations = 0
    held = 0
    kills = 0
    bytes_compared = 0


@dataclass
class Asked:
    """A verb that a host was asked for.

    :ivar number: of the operation in the possibilities; None once its answer was heard.
    :ivar allowed: codes of errors that it may answer even when nothing is in its way.
    :ivar must: it cannot fail, unless others come in its way.
    :ivar by_task: it is done when the task is that it started, not when that has begun.
    :ivar answered: what is to be done with its answer.
    """

    verb: str
    parameters: dict[str, Any]
    stages: Stages | None
    keys: tuple[Key, ...] = ()
    allowed: Collection[str] = ()
    must: bool = True
    by_task: bool = False
    answered: Callable[[Any], None] | None = None
    number: int | None = None
    alone: bool = True
    stopped: bool = False


@dataclass
class Actor:
    """A host and what it is asked for."""

    number: int
    process: StoryHost
    asked: Asked | None = None
    connected: set[str] = field(default_factory=lambda: set(PLACES))

    @property
    def name(self) -> str:
        return self.process.who.host_id


class Names:
    """Ids that are the same whenever a story is told, and short names for them."""

    def __init__(self) -> None:
        self._short: dict[str, str] = {}

    def fresh_id(self, letter: str) -> str:
        count = len(self._short) + 1
        image_id = f"{count:08x}-0000-4000-8000-000000000000"
        self._short[image_id] = f"{letter}{count}"
        return image_id

    def of(self, key: Key) -> str:
        return f"{key[0]}/{self.short(key[1])}"

    def short(self, image_id: str | None) -> str:
        return self._short.get(image_id or "", "-")


class ProcessMachine(RuleBasedStateMachine):
    """Hosts, what they are asked for, and what is seen; the rules are in a subclass."""

    format = ""
    place = Path()

    @initialize(hosts=st.integers(1, 3))
    def start(self, hosts: int) -> None:
        randomness = random.Random("story")

        def seeded_uuid() -> uuid.UUID:
            return uuid.UUID(int=randomness.getrandbits(128), version=4)

        self._patch = mock.patch.object(uuid, "uuid4", seeded_uuid)
        self._patch.start()
        self.folder = Path(tempfile.mkdtemp(prefix="story-", dir=self.place))
        self.world = World(self.folder / "world", format=self.format)
        self.world.create()
        self.boots = 1
        self.names = Names()
        self.possible = Possibilities()
        self.graphs: dict[Key, dict[str, Any]] = {}
        self.fixes: list[tuple[str, str, Any]] = []
        self.made: list[Asked] = []
        self.guest = Guest(Host.real())
        self.guest.__enter__()
        self.observer = self._observer()
        self.actors = [Actor(n, self._process(n)) for n in range(1, hosts + 1)]
        for actor in self.actors:
            actor.process.start()

    @property
    def boot_id(self) -> str:
        return f"{self.boots:032x}"

    def _process(self, number: int, *, starts: int = 0) -> StoryHost:
        return StoryHost(self.world, identity(f"host{number}", self.boot_id), "story", starts)

    def _observer(self) -> Service:
        who = identity("observer", self.boot_id)
        return self.world.service(Host(who, Files(who), Commands(), Clock()))

    def teardown(self) -> None:
        if not hasattr(self, "actors"):
            return
        from tests.stateful.process_ending import settle

        try:
            settle(self)
        finally:
            for actor in self.actors:
                with contextlib.suppress(AssertionError, OSError):
                    actor.process.kill()
            with contextlib.suppress(errors.DiskyardError):
                self.guest.__exit__(None, None, None)
            self.observer.close()
            self._patch.stop()
            shutil.rmtree(self.folder, ignore_errors=True)

    # -- choosing ----------------------------------------------------------------------------

    def idle(self) -> list[Actor]:
        return [actor for actor in self.actors if actor.process.is_idle]

    def held(self) -> list[Actor]:
        return [actor for actor in self.actors if not actor.process.is_idle]

    def pick_actor(self, data: st.DataObject, actors: list[Actor]) -> Actor:
        name = data.draw(st.sampled_from([actor.name for actor in actors]), label="host")
        return next(actor for actor in actors if actor.name == name)

    def having(
        self,
        *,
        kind: str | None = None,
        complete: bool | None = None,
        attached: bool | None = None,
        repo: str | None = None,
    ) -> list[Key]:
        """Images, in the order in which they were made."""
        return sorted(
            (
                key
                for key, image in self.possible.images.items()
                if kind in (None, image.kind)
                and complete in (None, image.complete)
                and attached in (None, image.attached_to is not None)
                and repo in (None, key[0])
            ),
            key=lambda key: (key[1], key[0]),
        )

    def pick(self, data: st.DataObject, keys: list[Key], label: str) -> Key:
        names = [self.names.of(key) for key in keys]
        return keys[names.index(data.draw(st.sampled_from(names), label=label))]

    def image(self, key: Key) -> Known:
        return self.possible.images[key]

    # -- asking --------------------------------------------------------------------------------

    def ask(self, actor: Actor, asked: Asked, steps: int | None = None) -> bool:
        """Have a host run a verb, to its end or to a step at which it is held; whether it answered well."""
        others = self.held()
        for other in others:
            assert other.asked is not None
            other.asked.alone = False
        asked.alone = not others
        if asked.stages is not None:
            asked.number = self.possible.begin(asked.stages)
            asked.must = asked.must and self.possible.can_be_done(asked.number)
        actor.asked = asked
        Counts.operations += 1
        actor.process.run(asked.verb, asked.parameters, steps)
        self.hear(actor)
        return asked.number is None and actor.process.heard.answer is not None

    def hear(self, actor: Actor) -> None:
        """Judge what a host said since it was let go."""
        asked, heard = actor.asked, actor.process.heard
        assert asked is not None
        if heard.error is not None:
            self._judge_error(actor, asked, heard.error)
            if asked.number is not None:
                if "was torn down meanwhile" in str(heard.error):
                    self.possible.died(asked.number)  # it attached, and somebody has ended that since
                else:
                    self.possible.refused(asked.number)
                asked.number = None
        elif heard.answer is not None and not asked.by_task:
            self._done(asked, heard.answer[0])
        if heard.ended is not None:
            self._judge_tasks(asked, heard.ended)
            actor.asked = None
        else:
            Counts.held += 1
        self.look()

    def _done(self, asked: Asked, answer: Any) -> None:
        if asked.number is not None:
            self.possible.answered(asked.number)
            asked.number = None
        if asked.answered is not None:
            asked.answered(answer)
            asked.answered = None

    def _judge_error(self, actor: Actor, asked: Asked, error: dict[str, Any]) -> None:
        code = error["code"]
        if code in asked.allowed or (code in RACES and not (asked.alone and asked.must)):
            return
        if code in NOT_CONNECTED and len(actor.connected) < len(PLACES):
            return
        raise AssertionError(f"{actor.name} answers {asked.verb} of {asked.parameters} with {error}")

    def _judge_tasks(self, asked: Asked, ended: list[tuple[str, str, str | None]]) -> None:
        for verb, state, code in ended:
            well = state == "done" or code in WAITS or (asked.stopped and state == "stopped")
            vanished = verb == "exportImage" and not asked.alone and code in RACES
            assert well or vanished, f"task {verb} of {asked.verb} ended as {state}: {code}"
        if asked.number is not None:
            if [state for _, state, _ in ended] == ["done"]:
                self._done(asked, self.possible.remembered(asked.number))
            else:
                self.possible.refused(asked.number)
                asked.number = None

    def kill(self, actor: Actor) -> None:
        """SIGKILL, and another start."""
        Counts.kills += 1
        actor.process.kill()
        if actor.asked is not None and actor.asked.number is not None:
            self.possible.died(actor.asked.number)
            actor.asked.number = None
        actor.asked = None
        self.begin_again(actor)

    def begin_again(self, actor: Actor) -> None:
        actor.process.start()
        actor.connected = set(PLACES)
        self.look()

    # -- looking ---------------------------------------------------------------------------------

    def look(self) -> None:
        """List everything, as another host sees it."""
        seen = {}
        for repo in PLACES:
            page = call(self.observer, "listImages", {"repositoryId": repo})
            for info in page["images"]:
                seen[repo, info["imageId"]] = Seen(
                    kind=info["kind"],
                    size_bytes=info["sizeBytes"],
                    user_data=info["userData"],
                    strategy=info["strategy"],
                    usable=info["status"] != "broken",
                    attachments=len(info["attachments"]),
                )
        try:
            self.possible.see(seen)
        except AssertionError as error:
            raise AssertionError(self.in_short_names(str(error))) from None

    def in_short_names(self, text: str) -> str:
        for image_id, short in self.names._short.items():
            text = text.replace(image_id, short)
        return text

    def compare(self, actor: Actor, key: Key) -> None:
        """Read all of an image through QEMU."""
        asked = {"repositoryId": key[0], "imageId": key[1]}
        if key in self.graphs and self.image(key).kind == "virtual_disk":
            actual = self.guest.read({**self.graphs[key], "read-only": True})
        else:
            options = {"readOnly": True, "owner": "reader"}
            reader = Asked("prepareImage", {**asked, "options": options}, None)
            reader.must = self.image(key).complete
            for other in self.held():
                assert other.asked is not None
                other.asked.alone = False
            reader.alone = not self.held()
            actor.asked = reader
            heard = actor.process.run(reader.verb, reader.parameters)
            actor.asked = None
            if heard.answer is None:
                assert heard.error is not None
                self._judge_error(actor, reader, heard.error)
                return
            actual = self.guest.read(heard.answer[0]["blockdev"])
            ended = actor.process.run("teardownImage", {**asked, "options": {"owner": "reader"}})
            assert ended.answer is not None, ended.error
        Counts.bytes_compared += len(actual)
        try:
            self.possible.see_bytes(key, actual)
        except AssertionError as error:
            raise AssertionError(f"{self.names.of(key)}: {error}") from None

    def attach_asked(self, actor: Actor, key: Key) -> Asked:
        def answered(answer: Any) -> None:
            self.graphs[key] = dict(answer["blockdev"])

        parameters = {"repositoryId": key[0], "imageId": key[1], "options": {"owner": "vm"}}
        return Asked(
            "prepareImage", parameters, mean.attach(key, actor.number), keys=(key,), answered=answered
        )

    def detach_asked(self, actor: Actor, key: Key) -> Asked:
        """By the host that has it, or by another that answers for it."""
        options: dict[str, Any] = {"owner": "vm"}
        owner = self.image(key).attached_to
        if owner not in (None, actor.number):
            options |= {"hostID": f"host{owner}", "force": True}
        self.graphs.pop(key, None)  # from its call on, the guest does not use it
        parameters = {"repositoryId": key[0], "imageId": key[1], "options": options}
        return Asked("teardownImage", parameters, mean.detach(key), keys=(key,))
