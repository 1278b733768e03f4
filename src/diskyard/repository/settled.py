"""Volumes as they are now: merges move bytes from one to another while others look at them.

Nobody who reads an image has the leases of all that it reads. A merge below it does not change its
bytes, but in which volumes they are; a volume that is not found may have been merged since the state
was read that named it. So whoever looks, plans or opens does it again until nothing moved meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

from diskyard import errors
from diskyard.log.log import Author
from diskyard.model.courtesy import give_way
from diskyard.model.looked import LookAgain, Looked
from diskyard.model.records import Image, Volume
from diskyard.model.state import State
from diskyard.model.transaction import Draft
from diskyard.mover.interface import Chain
from diskyard.planner.building import NewVolume, require_building
from diskyard.repository.commit import Committed, newest_known
from diskyard.repository.repository import Repository
from diskyard.repository.volume_files import opening_chain
from diskyard.storage.interface import StoredVolume

Result = TypeVar("Result")
#: The volumes wanted of a state, top first; it raises what the caller wants where there are none.
Finder = Callable[[State], Sequence[Volume]]
_TRIES = 100


@dataclass(frozen=True, slots=True)
class Sight:
    """Volumes of one state, top first, and what storage has of them."""

    state: State
    volumes: tuple[Volume, ...]
    missing: Looked


def stored_by_id(state: State, listed: Iterable[StoredVolume]) -> dict[str, StoredVolume]:
    """The volumes on the storage that the log names, by id; a volume matches only if its whole name does."""
    found = {}
    for item in listed:
        give_way()
        name = item.name
        volume = state.volumes.get(name.volume_id)
        if volume is not None and volume.named_by == name.named_by and volume.format == name.format:
            found[volume.id] = item
    return found


def volumes_below(image_id: str | None) -> Finder:
    """The volumes of an image, which may not be there."""

    def find(state: State) -> list[Volume]:
        image = state.images.get(image_id or "")
        return [] if image is None else [volume for _, volume in state.chain(image)]

    return find


def volumes_of(image: Image) -> Finder:
    """The volumes of an image, for as long as its bytes are those that it had.

    :raises diskyard.errors.LeaseHeld: they may be others, or it is gone.
    """

    def find(state: State) -> list[Volume]:
        now = state.images.get(image.id)
        same = (image.data_generation, image.size_bytes)
        if now is None or (now.data_generation, now.size_bytes) != same:
            raise errors.LeaseHeld(f"Image {image.id} was changed or removed meanwhile.", imageId=image.id)
        return [volume for _, volume in state.chain(now)]

    return find


def volumes_being_built(new: NewVolume) -> Finder:
    """A volume that this work makes, and those that it reads.

    :raises diskyard.planner.common.Superseded: it is not this work's any more.
    """
    return lambda state: state.volume_chain(require_building(state, new))


def look_at(repo: Repository, find: Finder, state: State | None = None) -> Sight:
    """What storage has of volumes of the newest state; what is missing is still named after the look.

    :param state: the newest, if it was read just now.
    :raises diskyard.errors.LeaseHeld: they change more quickly than they can be looked at.
    """
    sight = _look(repo, find, state or repo.state())
    for _ in range(_TRIES):
        if not sight.missing:
            return sight
        newest = repo.state()
        if _ids(find(newest)) == _ids(sight.volumes):
            return sight
        sight = _look(repo, find, newest)
    raise _restless(sight.volumes)


def _look(repo: Repository, find: Finder, state: State) -> Sight:
    volumes = tuple(find(state))
    return Sight(state, volumes, repo.look(volumes))


def _ids(volumes: Sequence[Volume]) -> list[str]:
    return [volume.id for volume in volumes]


def _restless(volumes: Sequence[Volume]) -> errors.LeaseHeld:
    top = f"volume {volumes[0].id} and those that it reads" if volumes else "its volumes"
    return errors.LeaseHeld(f"Other tasks change {top} all the time.")


def commit_looking(
    repo: Repository, image_id: str | None, plan: Callable[[Draft], Result], author: Author
) -> Committed[Result]:
    """Commit what is planned knowing what storage has of an image's volumes.

    Looks at the volumes of the newest state that is known, then plans on the newest state. If the image has
    other volumes there, it looks at those and plans again.

    :param image_id: of an image that may not be there.
    :raises diskyard.errors.LeaseHeld: they change more quickly than they can be looked at.
    """
    find, volumes = volumes_below(image_id), list[Volume]()
    for _ in range(_TRIES):
        volumes = list(find(newest_known(repo.log)))
        try:
            return repo.try_commit(plan, author, repo.look(volumes))
        except LookAgain:
            continue
    raise _restless(volumes)


@dataclass(frozen=True, slots=True)
class Opening:
    """Volumes of one state, top first, and their files, which are open while they are used."""

    state: State
    volumes: tuple[Volume, ...]
    chain: Chain


def open_chains(
    wanted: Sequence[tuple[Repository, Finder]], use: Callable[..., Result], *, own: int = 0
) -> Result:
    """Use volumes that others may merge meanwhile; again with what there is then, if one was gone.

    :param wanted: chains to be opened together, each as the newest known state of its repository has it.
    :param use: is given an :class:`Opening` of each. What it does may be done twice.
    :param own: of how many volumes, from the top, it sees to it that those below show no more than their
        records say (:meth:`Repository.require_bounded`).
    :raises diskyard.errors.LeaseHeld: they change more quickly than they can be opened.
    """
    # Who uses them has read each log with its lease or hold taken; since then they may move at any moment.
    states = [newest_known(repo.log) for repo, _ in wanted]
    found: list[tuple[State, tuple[Volume, ...]]] = []
    for _ in range(_TRIES):
        found = [(state, tuple(find(state))) for (_, find), state in zip(wanted, states, strict=True)]
        try:
            with ExitStack() as stack:
                openings = []
                for (repo, _), (state, volumes) in zip(wanted, found, strict=True):
                    chain = stack.enter_context(opening_chain(repo, state, volumes, own=own))
                    openings.append(Opening(state, volumes, chain))
                return use(*openings)
        except (errors.StorageError, errors.ImageBroken, FileNotFoundError):
            states = [repo.state() for repo, _ in wanted]
            now = [_ids(find(state)) for (_, find), state in zip(wanted, states, strict=True)]
            if now == [_ids(volumes) for _, volumes in found]:
                raise
    raise _restless(found[0][1])
