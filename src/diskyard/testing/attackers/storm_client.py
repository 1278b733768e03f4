"""One client of a storm: ``python -m diskyard.testing.attackers.storm_client SETTINGS``, a JSON object.

It does random actions, and records each request before it makes it. If it was killed, its next life goes
on where the last one ended.
"""

from __future__ import annotations

import functools
import json
import os
import random
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from diskyard import errors
from diskyard.testing.attackers.callers import Caller, CommandCaller, EmbeddedCaller, HttpCaller
from diskyard.testing.attackers.hosts import FORMAT, Counts
from diskyard.testing.attackers.ledger import Kept, Ledger
from diskyard.testing.attackers.sectors import ProgramFailed, read_as_guest

Outcome = Literal["answered", "refused", "unknown"]
_UNKNOWN = ("RepositoryUnavailable", "StorageError", "InternalError")
#: Errors that no fault of the storage explains.
_NEVER = ("InternalError", "CorruptRecord")
_AGAIN, _PAUSE_S = 5, 0.3
_TEARDOWN_MOST_S, _CONNECT_MOST_S = 20.0, 60.0
_TOLD_EVERY = 10
_JUDGES = 3


class ClientSettings(msgspec.Struct, frozen=True):
    """The settings of a client.

    :param name: of the client; ``way``: how it calls Diskyard: as a host with a state directory, or by a URL.
    :param places: the repositories' paths by repoId.
    :param folder: of the storm, with the ledger, the transfer directory, and the clients' reports.
    :param over: a file; when it exists, it is time to end.
    """

    name: str
    way: Literal["http", "embedded", "command"]
    host: str
    state_folder: str
    url: str
    places: dict[str, str]
    folder: str
    seed: int
    over: str


class StormClient:
    """A client: how it makes requests, runs guests, and judges.

    :ivar ledger: what all images must hold.
    :ivar told: counts of what was done, and of what was wrong.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self.rng = random.Random(settings.seed)
        self.ledger = Ledger(Path(settings.folder) / "ledger")
        self.told = Counts()
        self._told_path = Path(settings.folder) / "told" / f"{settings.name}-{os.getpid()}.json"
        self.call: Caller
        state_folder = Path(settings.state_folder)
        if settings.way == "http":
            self.call = HttpCaller(settings.url)
        elif settings.way == "embedded":
            self.call = EmbeddedCaller(settings.host, state_folder)
        else:
            self.call = CommandCaller(settings.host, state_folder, wait=self.rng.random() < 0.5)

    # -- telling --------------------------------------------------------------------------

    def tell(self) -> None:
        """Write the counts down: the next moment may be the last."""
        fresh = self._told_path.with_suffix(".fresh")
        fresh.write_text(json.dumps(vars(self.told)))
        fresh.rename(self._told_path)

    def serious(self, words: str) -> None:
        """Record something that must not happen."""
        self.told.serious.append(f"{self.name}: {words}")
        self.tell()

    # -- asking -----------------------------------------------------------------------------

    def ask(self, verb: str, **parameters: Any) -> Any:
        """Call a verb and return its result; errors are counted.

        :raises diskyard.errors.DiskyardError: as the verb does.
        """
        try:
            return self.call(verb, parameters)
        except errors.DiskyardError as error:
            self.told.refused[error.code] = self.told.refused.get(error.code, 0) + 1
            if error.code in _NEVER:
                self.serious(f"{verb} {parameters}: {error.to_json()} because of {error.__cause__!r}")
            raise

    def attempt(self, verb: str, parameters: dict[str, Any], times: int = 1) -> tuple[Outcome, Any]:
        """How a verb ended, and its result. It is tried this many times while the outcome is unknown."""
        was_unknown = False
        for number in range(times):
            if number:
                time.sleep(_PAUSE_S)
            try:
                return "answered", self.ask(verb, **parameters)
            except errors.DiskyardError as error:
                is_unknown = isinstance(error, errors.UnknownOutcome) or error.code in _UNKNOWN
                if not is_unknown and not was_unknown:
                    return "refused", error
                was_unknown = True
        return "unknown", None

    def new_id(self) -> str:
        """A new id for an image."""
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def make(self, kept: Kept, verb: str, parameters: dict[str, Any]) -> None:
        """Request a new image under an id of this client's."""
        kept.asked = (verb, parameters)
        self.ledger.put(kept)
        self._settle_make(kept, _AGAIN)

    def _settle_make(self, kept: Kept, times: int) -> bool:
        assert kept.asked is not None
        outcome, error = self.attempt(*kept.asked, times)
        if isinstance(error, errors.LeaseHeld):
            outcome = "unknown"  # the request of this client's earlier life may still be under way
        elif outcome == "refused" and self.settings.way == "command":
            outcome = self._found(kept)
        if outcome == "answered":
            self.ledger.take_from_source(kept)
            kept.state, kept.asked = "there", None
            self.ledger.put(kept)
        elif outcome == "refused":
            self.ledger.drop(kept)
        return outcome == "answered"

    def _found(self, kept: Kept) -> Outcome:
        """Whether an image was made. A command that waits also fails if the work fails."""
        try:
            self.ask("getImageInfo", repositoryId=kept.place, imageId=kept.image_id)
        except errors.ImageNotFound:
            return "refused"
        except errors.DiskyardError:
            return "unknown"
        return "answered"

    def change(self, kept: Kept, data: bytes, verb: str, parameters: dict[str, Any]) -> None:
        """Request a change after which an image holds these bytes."""
        kept.add(self.ledger.keep_bytes(data), certain=False)
        self.ledger.put(kept)
        outcome, _ = self.attempt(verb, parameters)
        if outcome == "answered":
            kept.moments[-1].certain = True
        elif outcome == "refused":
            kept.moments.pop()
        else:
            kept.left = True  # it may still happen
        self.ledger.put(kept)

    def remove(self, kept: Kept, options: dict[str, Any]) -> None:
        """Request that an image be removed."""
        kept.state = "going"
        self.ledger.put(kept)
        asked = {"repositoryId": kept.place, "imageId": kept.image_id, "options": options}
        outcome, error = self.attempt("removeImage", asked, _AGAIN)
        if outcome == "answered" or isinstance(error, errors.ImageNotFound):
            self.ledger.drop(kept)
        elif outcome == "refused":
            kept.state = "there"
            self.ledger.put(kept)

    # -- as a guest ----------------------------------------------------------------------------

    def tear_down(self, kept: Kept, owner: str) -> bool:
        """Detach an image, with as many attempts as that takes. Return whether it is detached."""
        deadline_s = time.monotonic() + _TEARDOWN_MOST_S
        asked = {"repositoryId": kept.place, "imageId": kept.image_id, "options": {"owner": owner}}
        while True:
            try:
                self.ask("teardownImage", **asked)
                return True
            except errors.ImageNotFound:
                return True
            except errors.DiskyardError:
                if time.monotonic() > deadline_s:
                    return False
            time.sleep(_PAUSE_S / 3)

    def read(self, kept: Kept) -> bytes:
        """An image's bytes.

        :raises diskyard.errors.DiskyardError: they cannot be read now.
        """
        owner = f"judge-{self.name}-{self.rng.randrange(_JUDGES)}"
        options = {"owner": owner, "readOnly": True}
        asked = {"repositoryId": kept.place, "imageId": kept.image_id, "options": options}
        try:
            return read_as_guest(self.ask("prepareImage", **asked)["blockdev"])
        finally:
            self.tear_down(kept, owner)

    def judge(self, kept: Kept) -> bytes | None:
        """Read an image and compare. Return its bytes if they could be read and are right."""
        data = self.read(kept)
        after = self.ledger.get(kept.place, kept.image_id)
        if after is None or after.state != "there":
            return None
        if wrong := self.ledger.wrong(kept, data, after):
            self.told.wrong.append(wrong)
            self.tell()
            return None
        self.told.reads += 1
        return data

    def settle(self, kept: Kept) -> bytes | None:
        """What one of this client's own disks certainly holds; None if that is not known now."""
        if (digest := kept.known()) is not None:
            return self.ledger.bytes_of(digest)
        data = self.judge(kept)
        if data is None:
            return None
        kept.mixed = False
        kept.add(self.ledger.keep_bytes(data), certain=True)
        self.ledger.put(kept)
        return data

    # -- a life --------------------------------------------------------------------------------

    def begin(self) -> None:
        """Connect, and go on where an earlier life of this client ended."""
        for place, path in self.settings.places.items():
            self._connect(place, path)
        for kept in self.ledger.all():
            if kept.owner == self.name and kept.kind == "disk" and kept.state == "there":
                self.tear_down(kept, f"guest-{self.name}")
            if kept.owner == self.name and kept.state == "going":
                self.remove(kept, {})
            if kept.owner == self.name and kept.state == "asked":
                self._settle_make(kept, 1)
        for kept in self.ledger.all():
            is_open = kept.moments and not kept.moments[-1].certain and not kept.mixed
            if is_open and kept.owner == self.name and kept.state == "there":
                kept.left = True  # a change was under way when the earlier life ended
                self.ledger.put(kept)

    def _connect(self, place: str, path: str) -> None:
        deadline_s = time.monotonic() + _CONNECT_MOST_S
        asked = {"repoId": place, "repoFormat": FORMAT, "connectionParameters": {"path": path}}
        while True:
            try:
                self.ask("connectStorageRepository", **asked)
                return
            except errors.DiskyardError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(_PAUSE_S)

    def live(self, act: Callable[[], None]) -> None:
        """Do one action after another until the storm is over, and judge an image now and then."""
        number, over = 0, Path(self.settings.over)
        self.tell()
        while not over.exists():
            number += 1
            self._one(act)
            if number % 3 == 0:
                there = [kept for kept in self.ledger.all() if kept.state == "there"]
                if there:
                    self._one(functools.partial(self._judge, self.rng.choice(there)))
            if number % _TOLD_EVERY == 0:
                self.tell()
        self.tell()

    def _judge(self, kept: Kept) -> None:
        try:
            self.judge(kept)
        except ProgramFailed as error:
            self.serious(f"an attached image cannot be read: {error}")

    def _one(self, act: Callable[[], None]) -> None:
        try:
            act()
        except errors.DiskyardError:
            pass  # counted where it was called
        except ProgramFailed:
            self.told.refused["a guest's program"] = self.told.refused.get("a guest's program", 0) + 1


def main() -> None:
    """Run the client."""
    from diskyard.testing.attackers.storm_acts import Acts

    client = StormClient(msgspec.json.decode(sys.argv[1], type=ClientSettings))
    try:
        client.begin()
        client.live(Acts(client).one)
    except BaseException as error:
        client.serious(f"ended with {error!r}")
        raise
    client.call.close()
    client.tell()


if __name__ == "__main__":
    main()
