"""Every question that a caller can ask about a repository. Whatever is wrong, only proper errors may come."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any

import msgspec

from diskyard import errors
from diskyard.fixes.runner import run_fix
from diskyard.fixes.scan import scan
from diskyard.model.fix import AnyAction, Fix
from diskyard.planner.find_fixes import find_fixes
from diskyard.service import Service, call
from diskyard.testing.corruption import SECRET
from diskyard.testing.read_chain import read_image
from diskyard.testing.world import PLACES, SIZE_BYTES, World, host_named

_ROUNDS = 6


class Hung(AssertionError):
    """Something that must answer at once did not."""


@contextmanager
def watchdog(limit_s: int) -> Iterator[None]:
    """Fail if something takes longer, even inside a system call; in the main thread only."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hung(f"no answer within {limit_s} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(limit_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Survey:
    """The results, step by step.

    :ivar errors: by step, the error with which it ended.
    :ivar bytes: of the images that could be read, by repository and id.
    :ivar said: all words of all results and errors.
    :ivar listed: descriptions of the fixes found by normal and deep checks, runnable or not.
    """

    world: World
    errors: dict[str, errors.DiskyardError] = field(default_factory=dict)
    bytes: dict[tuple[str, str], bytes] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)

    def step(self, name: str, act: Callable[[], Any], *, shown: bool = True) -> Any:
        """Do something. One of Diskyard's errors is a result; any other exception is a failure.

        :param shown: the result is one that a caller sees.
        """
        try:
            answer = act()
        except errors.InternalError as error:
            raise AssertionError(f"{name}: a traceback: {error.message}") from error
        except errors.DiskyardError as error:
            self.errors[name] = error
            self.said.append(json.dumps(error.to_json()))
            return None
        if shown:
            self.said.append(msgspec.json.encode(answer).decode())
        return answer

    @property
    def words(self) -> str:
        """All words of all results."""
        return "\n".join(self.said)

    def judge_silence(self) -> None:
        """Require that nothing of what is outside is shown."""
        secret = SECRET.decode()
        assert secret not in self.words, "an answer shows what lies outside of the repository"
        for (place, image_id), data in self.bytes.items():
            assert SECRET not in data, f"image {image_id} in {place} shows what lies outside"


def survey(world: World, name: str = "surveyor", *, only_ask: bool = False) -> Survey:
    """A host that is new to the repositories asks everything, changes something, and fixes what it can.

    :param only_ask: change nothing.
    """
    found = Survey(world)
    folder = str(world.folder / f"state-{name}")
    service = found.step("start", lambda: Service(host_named(name), folder), shown=False)
    if service is None:
        return found
    try:
        for place in PLACES:
            asked = {"repoFormat": world.format, "connectionParameters": world.parameters(place)}
            found.step(f"connect {place}", _verb(service, "connectStorageRepository", repoId=place, **asked))
        _ask(found, service)
        if not only_ask:
            _change(found, service)
            run_fixes(found, service)
    finally:
        service.close()
    found.judge_silence()
    return found


def _verb(service: Service, verb: str, **parameters: Any) -> Callable[[], Any]:
    return lambda: call(service, verb, parameters)


def _ask(found: Survey, service: Service) -> None:
    found.step("list repositories", _verb(service, "listStorageRepositories"))
    for place in PLACES:
        found.step(f"list {place}", _verb(service, "listImages", repositoryId=place))
        for options in ({}, {"deep": True}):
            check = _verb(service, "checkStorageRepository", repositoryId=place, options=options)
            for fix in found.step(f"check {place} {options}", check) or ():
                found.listed.append(f"{fix['description']} {fix['waitsFor'] or ''} {fix['imageId'] or ''}")
    for place, image_id in found.world.images:
        asked = {"repositoryId": place, "imageId": image_id}
        found.step(f"info {image_id} in {place}", _verb(service, "getImageInfo", **asked))
        found.step(f"status {image_id} in {place}", _verb(service, "getImageStatus", **asked))
        _read(found, service, place, image_id)


def _read(found: Survey, service: Service, place: str, image_id: str) -> None:
    """Read an image as a guest would: only through the result of prepareImage."""
    options = {"owner": "surveyor"}
    asked = {"repositoryId": place, "imageId": image_id}
    prepare = _verb(service, "prepareImage", **asked, options={**options, "readOnly": True})
    if found.step(f"prepare {image_id} in {place}", prepare) is None:
        return
    found.bytes[place, image_id] = read_image(service.connections.get(place), image_id)
    found.step(f"teardown {image_id}", _verb(service, "teardownImage", **asked, options=options))


def _change(found: Survey, service: Service) -> None:
    for place in PLACES:
        here = [image_id for where, image_id in found.world.images if where == place]
        for image_id in here[:1]:
            asked = {"repositoryId": place, "imageId": image_id, "userData": {"made as": "surveyed"}}
            found.step(f"set user data in {place}", _verb(service, "setUserData", **asked))
            found.world.user_data[place, image_id] = asked["userData"]
        make = {"targetRepoId": place, "size": SIZE_BYTES, "options": {"AutoFix": False}}
        made = found.step(f"create in {place}", _verb(service, "createVirtualDisk", **make))
        if made is not None:
            asked = {"repositoryId": place, "imageId": made, "options": {"AutoFix": False}}
            found.step(f"remove in {place}", _verb(service, "removeImage", **asked))


def run_fixes(found: Survey, service: Service) -> None:
    """Run everything runnable, until nothing is, or nothing changes any more."""
    order = random.Random(0)
    for _ in range(_ROUNDS):
        changed = False
        for place in PLACES:
            fixes = found.step(f"fixes of {place}", partial(_listed, service, place), shown=False)
            runnable = [fix for fix in fixes or () if fix.runnable]
            order.shuffle(runnable)
            for fix in runnable:
                done = found.step(f"fix {fix.description}", partial(_run, service, place, fix.data.action))
                changed = changed or bool(done)
        if not changed:
            return


def _listed(service: Service, place: str) -> list[Fix]:
    try:
        return find_fixes(scan(service.engine, service.connections.get(place), deep=True, participating=None))
    except OSError as error:  # as the verb does
        raise errors.from_os_error(error, "looking for fixes") from error


def _run(service: Service, place: str, action: AnyAction) -> bool:
    return run_fix(service.engine, service.connections.get(place), action)
