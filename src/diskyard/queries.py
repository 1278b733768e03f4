"""Answers from a repository's state: statuses, lists, space. They take no lease."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import TypeVar

from immutables import Map
from msgspec.structs import replace

from diskyard import errors
from diskyard.model.chains import Chains
from diskyard.model.courtesy import give_way
from diskyard.model.records import Attachment, Image
from diskyard.model.requests import PAGE_LIMIT, ListImages
from diskyard.model.results import (
    AttachmentInfo,
    ImageInfo,
    ImagePage,
    ImageStatus,
    RepositoryInfo,
)
from diskyard.model.space import exclusive_bytes, usage
from diskyard.model.state import State
from diskyard.model.status import Status
from diskyard.planner.common import strong_image
from diskyard.repository.repository import Repository
from diskyard.repository.settled import stored_by_id

_LOOKED_AT_ONCE = 1_000
_FEW = 200  # with more, it is quicker to read all records there are than these one by one
_ATTEMPTS = 3
_LOOK_KEPT_S = 1.0  # for the next part of a page: slow readers must not get outdated answers
Answer = TypeVar("Answer")


class _Look:
    """What the answers about images of one state have in common. Each volume is examined once.

    :ivar unreadable: the examined volumes that are not whole on the storage.
    """

    def __init__(self, repo: Repository, state: State) -> None:
        self.repo, self.state = repo, state
        self.unreadable: set[str] = set()
        self._trackers = repo.remembered.trackers(state)
        self._looked: set[str] = set()
        self._allocated: dict[str, int] = {}
        self._chains = Chains(state, self.unreadable, self._allocated)

    def at(self, images: Iterable[Image]) -> None:
        """Examine the volumes that images read, except those that were examined before."""
        met = (volume for image in images for volume in self._chains.not_met(image))
        # By id: two images may be on one volume.
        volumes = list({volume.id: volume for volume in met if volume.id not in self._looked}.values())
        self._looked.update(volume.id for volume in volumes)
        for volume, stored in zip(volumes, self.repo.stored_all(volumes), strict=True):
            give_way()
            if stored is not None:
                self._allocated[volume.id] = stored.allocated_bytes
            if self.repo.is_unreadable(volume, stored):
                self.unreadable.add(volume.id)

    def status(self, image: Image) -> Status:
        """The status of an image whose volumes were examined."""
        return self._chains.status(image, self.repo.storage.capabilities)

    def info(self, image: Image, status: Status) -> ImageInfo:
        """The information about an image whose volumes were examined, and that has this status."""
        exclusive = exclusive_bytes(self.state, self._chains.links(image), self._allocated)
        return ImageInfo(
            image_id=image.id,
            kind=image.kind,
            size_bytes=image.size_bytes,
            exclusive_bytes=exclusive,
            shared_bytes=self._chains.allocated_bytes(image) - exclusive,
            strategy=image.strategy,
            status=status,
            created_at=image.created_at,
            captured_at=image.captured_at,
            user_data=image.user_data,
            revision=image.revision,
            tracking=self._trackers.get(image.id, ()),
            attachments=self._attachments_of(image),
        )

    def _attachments_of(self, image: Image) -> tuple[AttachmentInfo, ...]:
        if not self.state.attachments:
            return ()
        return tuple(map(_attachment_info, self.state.attachments_of(image.id)))


def _attachment_info(attachment: Attachment) -> AttachmentInfo:
    return AttachmentInfo(
        host_id=attachment.host.host_id,
        owner=attachment.owner,
        mode=attachment.mode,
        attached_at=attachment.attached_at,
        live=attachment.live is not None,
        switching=attachment.switching is not None,
    )


def _answer(repo: Repository, ask: Callable[[_Look], Answer], *, whole: bool = False) -> Answer:
    """The answer from the newest state, and from what the storage shows after it was read.

    :param whole: read all records at once: so many are needed that this is quicker.
    """
    answer, _ = _looked(repo, ask, None, whole=whole)
    return answer


def _looked(
    repo: Repository, ask: Callable[[_Look], Answer], before: _Look | None, *, whole: bool
) -> tuple[Answer, _Look]:
    """The same, and the examination that it rests on.

    A volume that was missing may have been merged into another one since the state was read. Then the
    answer is taken from the newer state.

    :param before: a recent examination, which is used again if it is of the newest state.
    """

    def newest() -> State:
        return repo.state().whole() if whole else repo.state()

    state = newest()
    look = before if before is not None and _is_same(before.state, state) else _Look(repo, state)
    answer = ask(look)
    for _ in range(_ATTEMPTS):
        asked = look.state
        if not look.unreadable:
            break
        look = _Look(repo, newest())
        if _is_same(look.state, asked):
            break
        answer = ask(look)
    return answer, look


def _is_same(one: State, other: State) -> bool:
    return (one.version, one.nonce) == (other.version, other.nonce)


def status_of(repo: Repository, image_id: str, task_id: str | None) -> ImageStatus:
    """getImageStatus: the status now, and the last persisted progress of work on the image."""

    def ask(look: _Look) -> tuple[Image, Status]:
        image = strong_image(look.state, image_id)
        look.at([image])
        return image, look.status(image)

    image, status = _answer(repo, ask)
    progress = repo.progress(image_id)
    return ImageStatus(
        status=status,
        host_id=None if progress is None else progress.host.host_id,
        stage="" if progress is None else progress.stage,
        percent_complete=-1 if progress is None else progress.percent,
        last_error=image.last_error or "",
        task_id=task_id,
    )


def image_info(repo: Repository, image_id: str) -> ImageInfo:
    """GetImageInfo."""

    def ask(look: _Look) -> ImageInfo:
        image = strong_image(look.state, image_id)
        look.at([image])
        return look.info(image, look.status(image))

    return _answer(repo, ask)


def list_images(repo: Repository, request: ListImages) -> ImagePage:
    """listImages: in the order of ids, so that a page's end is a valid position in any later state.

    It examines the images of the page and what they read. If only images with one status are wanted, it
    examines as many more as it takes to find them.

    :raises diskyard.errors.InvalidParameter: the limit is out of range.
    """
    _require_limit(request)
    return _answer(repo, lambda look: _page(look, request), whole=_is_long(request))


def list_images_in_parts(repo: Repository, request: ListImages, most: int) -> Iterator[ImagePage]:
    """The same page in parts of at most so many images, each examined when it is needed.

    Each part shows the newest state at that time, as if it were a page of its own.

    :raises diskyard.errors.InvalidParameter: the limit is out of range.
    """
    _require_limit(request)
    left, look, looked_s = request.limit, None, 0.0
    while True:
        asked = replace(request, limit=min(left, most))
        if time.monotonic() - looked_s > _LOOK_KEPT_S:
            look, looked_s = None, time.monotonic()
        ask = partial(_page, request=asked)
        part, look = _looked(repo, ask, look, whole=_is_long(request))
        yield part
        left -= len(part.images)
        if not left or part.next_cursor is None:
            return
        request = replace(request, cursor=part.next_cursor)


def _require_limit(request: ListImages) -> None:
    if not 1 <= request.limit <= PAGE_LIMIT:
        raise errors.InvalidParameter(f"limit must be from 1 to {PAGE_LIMIT}.")


def _is_long(request: ListImages) -> bool:
    return request.limit > _FEW or request.status is not None


def _page(look: _Look, request: ListImages) -> ImagePage:
    candidates = _candidates(look.repo, look.state, request)
    page: list[ImageInfo] = []
    at_once = request.limit if request.status is None else _LOOKED_AT_ONCE
    while some := list(islice(candidates, at_once)):
        look.at(some)
        for image in some:
            give_way()
            status = look.status(image)
            if request.status not in (None, status):
                continue
            if len(page) == request.limit:
                return ImagePage(images=tuple(page), next_cursor=page[-1].image_id)
            page.append(look.info(image, status))
        if request.status is None:
            more = next(candidates, None) is not None
            return ImagePage(images=tuple(page), next_cursor=page[-1].image_id if more else None)
    return ImagePage(images=tuple(page), next_cursor=None)


def _candidates(repo: Repository, state: State, request: ListImages) -> Iterator[Image]:
    cursor = request.cursor or ""
    images: Iterator[Image]
    if request.image_ids is None and isinstance(state.images, Map):
        ids = repo.remembered.ids(state)
        images = (state.images[key] for key in islice(ids, bisect_right(ids, cursor), None))
    elif request.image_ids is None:
        images = state.images_after(cursor)
    else:
        wanted = sorted(key for key in set(request.image_ids) if key > cursor)
        images = (state.images[key] for key in wanted if key in state.images)
    for image in images:
        if image.is_strong and request.kind in (None, image.kind):
            yield image


def _health(repo: Repository) -> str:
    log = repo.log
    why = log.damage if log.replaced is None else f"its history was replaced: {log.replaced}"
    why = why or repo.storage.read_only_because()
    return "ok" if why is None else f"read-only: {why}"


def repository_info(repo: Repository, repo_id: str, parameters: Mapping[str, object]) -> RepositoryInfo:
    """One line of listStorageRepositories; the sums of :class:`Usage` add up to used_bytes."""
    state = repo.state().whole()
    leftovers_bytes = sum(item.allocated_bytes for item in repo.storage.list_leftovers())
    listed = repo.storage.list_volumes()
    named = stored_by_id(state, listed)
    allocated = {
        item.name.volume_id
        if named.get(item.name.volume_id) is item
        else str(item.name): item.allocated_bytes
        for item in listed
    }
    used = usage(state, allocated, leftovers_bytes)
    capacity = repo.storage.capacity()
    return RepositoryInfo(
        repo_id=repo_id,
        repo_format=repo.format,
        capacity_bytes=capacity.capacity_bytes,
        free_bytes=capacity.free_bytes,
        used_bytes=used.total_bytes,
        provisioned_bytes=sum(image.size_bytes for image in state.images.values() if image.is_strong),
        reclaimable_bytes=used.reclaimable_bytes,
        mergeable_bytes=used.mergeable_bytes,
        retained_bytes=used.retained_bytes,
        strong_bytes=used.strong_bytes,
        building_bytes=used.building_bytes,
        health=_health(repo),
        connection_parameters=dict(parameters),
    )
