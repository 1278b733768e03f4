"""Volumes as they are now: merges move bytes from one volume to another while others look at them.

A reader of an image does not hold the leases of all images below it. A merge below it does not change its
bytes, but moves them to other volumes. So a volume that is not found may have been merged since the state
that names it was read. Looking, planning and opening are therefore repeated until nothing moves meanwhile.
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
#: Finds volumes in a state, top first. If they are not there, it raises the error that the caller wants.
Finder = Callable[[State], Sequence[Volume]]
_TRIES = 100


@dataclass(frozen=True, slots=True)
class Sight:
    """Volumes of one state, top first, and which of them the storage does not have whole."""

    state: State
    volumes: tuple[Volume, ...]
    missing: Looked


def stored_by_id(state: State, listed: Iterable[StoredVolume]) -> dict[str, StoredVolume]:
    """The volumes on the storage that the log names, by id. A volume matches only if its whole name does."""
    found = {}
    for item in listed:
        give_way()
        name = item.name
        volume = state.volumes.get(name.volume_id)
        if volume is not None and volume.named_by == name.named_by and volume.format == name.format:
            found[volume.id] = item
    return found


def volumes_below(image_id: str | None) -> Finder:
    """Find the volumes of an image; none if the image does not exist."""

    def find(state: State) -> list[Volume]:
        image = state.images.get(image_id or "")
        return [] if image is None else [volume for _, volume in state.chain(image)]

    return find


def volumes_of(image: Image) -> Finder:
    """Find the volumes of an image, as long as it has the bytes that it had.

    The finder raises :class:`diskyard.errors.LeaseHeld` if the bytes may have changed, or the image is gone.
    """

    def find(state: State) -> list[Volume]:
        now = state.images.get(image.id)
        same = (image.data_generation, image.size_bytes)
        if now is None or (now.data_generation, now.size_bytes) != same:
            raise errors.LeaseHeld(f"Image {image.id} was changed or removed meanwhile.", imageId=image.id)
        return [volume for _, volume in state.chain(now)]

    return find


def volumes_being_built(new: NewVolume) -> Finder:
    """Find a volume that this work makes, and those that it reads.

    The finder raises :class:`diskyard.planner.common.Superseded` if this work no longer makes the volume.
    """
    return lambda state: state.volume_chain(require_building(state, new))


def look_at(repo: Repository, find: Finder, state: State | None = None) -> Sight:
    """Look at volumes of the newest state on the storage.

    If some are missing, the log still named them after the look.

    :param state: the newest state, if it was read just now.
    :raises diskyard.errors.LeaseHeld: the volumes change more quickly than they can be looked at.
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
    """Commit a plan that knows which of an image's volumes the storage does not have whole.

    This looks at the volumes in the newest known state, then plans on the newest state. If the image has
    other volumes there, this looks at those and plans again.

    :param image_id: the image, which need not exist.
    :raises diskyard.errors.LeaseHeld: the volumes change more quickly than they can be looked at.
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
    """Volumes of one state, top first, and their layers, which are open while they are used."""

    state: State
    volumes: tuple[Volume, ...]
    chain: Chain


def open_chains(
    wanted: Sequence[tuple[Repository, Finder]], use: Callable[..., Result], *, own: int = 0
) -> Result:
    """Use volumes that others may merge meanwhile. If the volumes have moved, use those of the newer state.

    :param wanted: chains to open together, each as the newest known state of its repository has it.
    :param use: called with an :class:`Opening` of each chain. It may be called again after it has failed.
    :param own: for how many volumes of each chain, from the top, the caller itself makes sure that the
        volumes below them show no more than their records say (:meth:`Repository.require_bounded`).
    :raises diskyard.errors.LeaseHeld: the volumes change more quickly than they can be opened.
    """
    # The caller has read each log with its lease or hold taken. Since then, the volumes may move at any time.
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
