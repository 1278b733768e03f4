"""What an operation works with, and what it returns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from diskyard import errors
from diskyard.asked_imports import AskedImports
from diskyard.attachments.serve import Servers
from diskyard.caller import CALLER, may_use
from diskyard.events import Events
from diskyard.host import Host
from diskyard.host.supervise import Supervisor
from diskyard.known_guests import KnownGuests
from diskyard.log.log import Author
from diskyard.model.fix import AnyAction
from diskyard.model.records import USER_DATA_LIMIT_BYTES
from diskyard.model.requests import ExportImage
from diskyard.model.state import State
from diskyard.repository.connections import Connections
from diskyard.repository.repository import Repository
from diskyard.settings import Settings
from diskyard.tasks.limits import Urgency
from diskyard.tasks.records import TaskRecords
from diskyard.tasks.runner import TaskRunner


@dataclass(frozen=True, slots=True)
class Engine:
    """This host's part of Diskyard: what operations and fixes are given.

    :param asked_imports: the imports that this host was asked for.
    :param known_guests: the running guests that this host can talk to.
    :param settings: what this host remembers for its next process.
    :param supervisor: runs calls that may not return, each on a thread of its own.
    :param records: the records of the tasks of all of this host's processes; ``tasks`` runs the tasks of this
        process.
    :param servers: the NBD servers of this process.
    :param actor: the caller, for the audit trail, if no request names it.
    :param transfer_folders: the directories from which whoever runs a mend may import files, if the request's
        caller has no transfer directories of its own.
    """

    host: Host
    connections: Connections
    asked_imports: AskedImports
    known_guests: KnownGuests
    settings: Settings
    events: Events
    supervisor: Supervisor
    records: TaskRecords
    tasks: TaskRunner
    servers: Servers
    actor: str = ""
    transfer_folders: tuple[str, ...] = ()

    def author(self, verb: str, request_digest: str | None = None) -> Author:
        """The author of entries that a verb or fix writes."""
        caller = CALLER.get()
        return Author(verb, self.actor if caller is None else caller.actor, request_digest)


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A fix that an operation starts after its commit.

    :param participating: the repositories in which a mend looks for images; None for all that are connected.
    :param force: see ``run_fix``: the caller vouches for what this host cannot know.
    """

    repo: Repository
    action: AnyAction
    image_id: str | None = None
    rate_limit_bytes_per_s: int = 0
    participating: list[Repository] | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Export:
    """An export that may begin.

    :param path: the path of the new file, as checked by ``transfer_path``.
    """

    repo: Repository
    request: ExportImage
    path: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an operation has committed, and what tasks must run next.

    :param follow_ups: the tasks, run after the commit, in this order. If AutoFix is false they are not run,
        except where the verb does nothing but start its task.
    :param urgency: the urgency of these tasks.
    """

    image_id: str = ""
    follow_ups: Sequence[FollowUp | Export] = ()
    urgency: Urgency = Urgency.ASKED


_NOT_IN_DIGEST = frozenset(
    (
        "targetRepoId",
        "repositoryId",
        "repoId",
        "AutoFix",
        "rateLimit",
        "force",
        "participatingRepositories",
        "imageHints",
    )
)


def request_digest(verb: str, request: Any) -> str:
    """A digest that tells a repeated request from another one. It leaves out where and how a request runs."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in _NOT_IN_DIGEST}
        return value

    fields = msgspec.to_builtins(request)
    user_data = fields.pop("userData", None)
    text = msgspec.json.encode([verb, strip(fields), user_data], order="sorted")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def require_user_data(user_data: Any) -> None:
    """Refuse userData that cannot be kept as sent.

    :raises diskyard.errors.InvalidParameter: over 16 KiB, or not JSON.
    """
    try:
        data = msgspec.json.encode(user_data)
        as_kept = msgspec.json.decode(data)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise errors.InvalidParameter(f"userData is not JSON: {error}.") from error
    if as_kept != user_data:
        # JSON turns some Python values into others: NaN, tuples, keys that are numbers.
        raise errors.InvalidParameter("userData would not come back as sent: use JSON's own types only.")
    if len(data) > USER_DATA_LIMIT_BYTES:
        raise errors.InvalidParameter(
            f"userData has {len(data)} bytes as JSON; at most {USER_DATA_LIMIT_BYTES} are kept."
        )


def require_new_id(
    engine: Engine, target_repo: Repository, image_id: str | None, known: dict[str, State]
) -> None:
    """Refuse an id of the caller's that another connected repository has already.

    Images with one id count as the same image wherever they are. Repositories that do not answer are left
    out: different images with one id can still be told apart (:mod:`diskyard.planner.same`).

    :param target_repo: the repository in which the image is to be made.
    :param image_id: None if the id will be a fresh one.
    :param known: the states that the verb has read, by the markers of their repositories. The states that
        this reads are added.
    :raises diskyard.errors.ImageIdInUse: says which repository has the id.
    """
    if image_id is None:
        return
    for other_repo in engine.connections.repositories(to_anybody=True):
        if other_repo.marker == target_repo.marker:
            continue
        try:
            state = known[other_repo.marker] = known.get(other_repo.marker) or other_repo.state()
        except errors.DiskyardError:
            continue
        if image_id in state.images:
            where = (
                f"repository {other_repo.repo_id}" if may_use(other_repo.repo_id) else "another repository"
            )
            raise errors.ImageIdInUse(
                f"Image id {image_id} belongs to an image of {where}.", imageId=image_id
            )
