"""Judgements that need a look at other repositories: whether a hold is over, and where a source is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from diskyard import errors
from diskyard.caller import may_use
from diskyard.model.records import AnyHold, CopyHold, FileSource, Image, TrackHold
from diskyard.model.state import State
from diskyard.model.status import why_broken
from diskyard.operations.freeze import in_place
from diskyard.operations.writers import WRITER_WORDS, has_stranger, why_unasked
from diskyard.planner.same import why_no_source
from diskyard.repository.connections import Connections
from diskyard.repository.repository import Repository, volume_name
from diskyard.repository.settled import look_at, volumes_below

_ANOTHER_PLACE = (
    "the connected repository is a byte copy of the copy's repository, or that one was moved or restored"
)
_ANOTHER_HISTORY = "the copy's repository has been restored to an older state since"

Judged = tuple[bool, str | None]
"""Whether the purpose of a hold has provably ended; and why this host cannot know that, or None."""


def hold_is_over(connections: Connections, state: State, hold: AnyHold) -> Judged:
    """Judge one hold, as :func:`judge_holds` does."""
    return judge_holds(connections, state, [hold])[hold]


def judge_holds(connections: Connections, state: State, holds: Iterable[AnyHold]) -> dict[AnyHold, Judged]:
    """Judge the holds of a repository. Each target is asked once for all of its holds.

    A copy is over when its work lease is free, and the target's newest state has no such pending copy, nor a
    Snapshot with the id of the held one that cannot be read there and is to be restored. A
    marker alone does not identify the target: it must be at the location, and have the history, that the
    hold names. The lease is checked first, because whoever commits a copy takes it before the hold and keeps
    it until the copy is recorded. Targets that the caller may not use are judged too: data that is wanted
    there must not be given up because the caller may not look.

    :param state: the newest state of the repository that has the holds.
    """
    judged: dict[AnyHold, Judged] = {}
    copies: dict[str, list[CopyHold]] = {}
    for hold in holds:
        if isinstance(hold, TrackHold):
            disk = state.images.get(hold.disk_id)
            judged[hold] = disk is None or not disk.is_strong, None
        else:
            copies.setdefault(hold.target_marker, []).append(hold)
    for marker, of_target in copies.items():
        judged.update(_judge_copies(connections, state, marker, of_target))
    return judged


def _judge_copies(
    connections: Connections, home_state: State, marker: str, holds: Sequence[CopyHold]
) -> Iterator[tuple[CopyHold, Judged]]:
    target_repo = connections.by_marker(marker, to_anybody=True)
    if target_repo is None:
        absent = "the copy's repository is not connected on this host"
        yield from ((hold, (False, absent)) for hold in holds)
        return
    worked_on: frozenset[str] = frozenset()
    why_unknown: str | None = None
    state: State | None = None
    try:
        worked_on = target_repo.locked_among({hold.copy_id for hold in holds})
        if any(hold.copy_id not in worked_on for hold in holds):
            state = target_repo.state()
            target_repo.log.require_whole()
    except (errors.DiskyardError, OSError) as error:
        why_unknown = _unreadable(target_repo, error)
    for hold in holds:
        if not in_place(hold, target_repo):
            yield hold, (False, _ANOTHER_PLACE)
        elif hold.copy_id in worked_on:
            yield hold, (False, None)
        elif why_unknown is not None or state is None:
            yield hold, (False, why_unknown)
        elif hold.target_entry is not None and target_repo.log.has_entry(hold.target_entry) is False:
            yield hold, (False, _ANOTHER_HISTORY)
        else:
            yield hold, _is_over(target_repo, home_state, state, hold)


def _is_over(target_repo: Repository, home_state: State, state: State, hold: CopyHold) -> Judged:
    copy, held = state.images.get(hold.copy_id), home_state.images.get(hold.copy_id)
    if copy is None or not copy.is_strong:
        return True, None
    if copy.pending is not None:
        return False, None
    if held is None or hold not in held.held_for:
        return True, None
    try:
        sight = look_at(target_repo, volumes_below(copy.id), state)
    except (errors.DiskyardError, OSError) as error:
        return False, _unreadable(target_repo, error)
    copy = sight.state.images.get(copy.id)
    return copy is None or why_broken(sight.state, copy, sight.missing) is None, None


def _unreadable(target_repo: Repository, error: Exception) -> str:
    why = f": {error}" if may_use(target_repo.repo_id) else ""
    return f"the copy's repository cannot be read{why}"


@dataclass(frozen=True, slots=True)
class FoundSource:
    """A repository in which the bytes of an image can be read now."""

    repo: Repository
    state: State
    image: Image


@dataclass(frozen=True, slots=True)
class NoSource:
    """A mend has no readable source, and why.

    :param image_id: the image that it would read.
    :param reasons: why not, for each repository that has the image. They are for the caller, who may use
        these repositories. What is stored about the mend leaves them out, because others read it too.
    """

    image_id: str
    reasons: tuple[str, ...] = ()

    def kept(self) -> str:
        """The text that may be stored: everyone who may use the target can read it."""
        return f"no connected repository has image {self.image_id} whole"

    def told(self) -> str:
        """The text for the caller."""
        return self.kept() + (f" ({'; '.join(self.reasons)})" if self.reasons else "")


def find_source(
    connections: Connections,
    target_repo: Repository,
    image: Image,
    participating: list[Repository] | None = None,
) -> FoundSource | NoSource:
    """Find where a mend of ``image`` can read, or why there is no source.

    The bytes of a Snapshot are the same in every repository that has it whole.

    :param target_repo: the repository of ``image``.
    :param participating: where to look; None for all that are connected.
    """
    source = None if image.pending is None else image.pending.source
    if isinstance(source, FileSource):
        raise errors.InternalError("A file is not looked for in repositories.")
    image_id = image.id if source is None else source.image_id
    source_repos = connections.repositories() if participating is None else participating
    if source is not None:
        # First the repository that the commit names: it holds the image for this copy.
        source_repos = sorted(source_repos, key=lambda source_repo: source_repo.marker != source.marker)
    reasons = []
    for source_repo in source_repos:
        if source is None and source_repo.marker == target_repo.marker:
            continue
        found = _whole(source_repo, image, image_id)
        if isinstance(found, FoundSource):
            return found
        if found is not None:
            reasons.append(f"{source_repo.repo_id}: {found}")
    return NoSource(image_id, tuple(reasons))


def _whole(repo: Repository, wanted: Image, image_id: str) -> FoundSource | str | None:
    try:
        sight = look_at(repo, volumes_below(image_id))
        image = sight.state.images.get(image_id)
        if image is None or image.consumed_by is not None:
            return None
        why = why_no_source(wanted, image) or why_broken(sight.state, image, sight.missing)
    except (errors.DiskyardError, OSError) as error:
        return str(error)
    return FoundSource(repo, sight.state, image) if why is None else why


def why_not_read(repo: Repository, state: State, image: Image, *, own: int = 0) -> str | None:
    """Why the volumes of a chain cannot be read now; None if they can.

    Somebody may change one of them, or one of them shows more than its record says.

    :param own: how many volumes, from the top, are not read.
    """
    volumes = [volume for _, volume in state.chain(image)]
    try:
        repo.require_bounded(state, volumes)
        for volume in volumes[own:]:
            why = why_unasked(repo, volume_name(volume))
            if why is not None:
                return why
            if has_stranger(repo, volume, wait_s=0):
                return f"{WRITER_WORDS}, volume {volume.id}"
    except errors.ImageBroken as error:
        return error.message
    except (errors.DiskyardError, OSError) as error:
        return str(error)
    return None


def allocated_of(repo: Repository, state: State, image: Image, allocated: Mapping[str, int]) -> int:
    """The allocated bytes in an image's chain: a mend reads at most so many."""
    return sum(allocated.get(volume.id, 0) for _, volume in state.chain(image))
