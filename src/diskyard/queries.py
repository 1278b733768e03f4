"""Answers from a repository's state: statuses, lists, space. They take no lease."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from diskyard import errors
from diskyard.model.chains import Chains
from diskyard.model.records import Image, TrackHold
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
from diskyard.model.status import image_status
from diskyard.opened import Opened, stored_by_id
from diskyard.planner.common import strong_image
from diskyard.repositories.interface import StoredVolume


def status_of(opened: Opened, image_id: str, task_id: str | None) -> ImageStatus:
    """getImageStatus: the status now, and the last persisted progress of work on the image."""
    state = opened.state()
    image = strong_image(state, image_id)
    status = image_status(state, image, opened.storage.capabilities, opened.missing_of(state, image))
    progress = opened.progress(image_id)
    return ImageStatus(
        status=status,
        host_id=None if progress is None else progress.host.host_id,
        stage="" if progress is None else progress.stage,
        percent_complete=-1 if progress is None else progress.percent,
        last_error=image.last_error or "",
        task_id=task_id,
    )


def _trackers(state: State) -> dict[str, list[str]]:
    """The copies since which each disk's changes are tracked."""
    found: dict[str, list[str]] = {}
    for image_id in state.held:
        for hold in state.images[image_id].held_for:
            if isinstance(hold, TrackHold):
                found.setdefault(hold.disk_id, []).append(hold.copy_id)
    return found


class _Unreadable(Container[str]):
    """The volumes that the storage does not have whole; each is looked at when it is asked for."""

    def __init__(self, opened: Opened, state: State, stored: Mapping[str, StoredVolume]) -> None:
        self._opened, self._state, self._stored = opened, state, stored

    def __contains__(self, volume_id: object) -> bool:
        volume = self._state.volumes[str(volume_id)]
        return self._opened.is_unreadable(volume, self._stored.get(volume.id))


@dataclass(frozen=True)
class _Known:
    """What the answers about several images share."""

    opened: Opened
    state: State
    trackers: Mapping[str, list[str]]
    allocated: Mapping[str, int]
    chains: Chains

    @classmethod
    def of(cls, opened: Opened, state: State, stored: Mapping[str, StoredVolume]) -> _Known:
        allocated = {key: item.allocated_bytes for key, item in stored.items()}
        chains = Chains(state, _Unreadable(opened, state, stored), allocated)
        return cls(opened, state, _trackers(state), allocated, chains)


def _info(known: _Known, image: Image) -> ImageInfo:
    """What is known of an image."""
    exclusive = exclusive_bytes(known.state, image, known.allocated)
    return ImageInfo(
        image_id=image.id,
        kind=image.kind,
        size_bytes=image.size_bytes,
        exclusive_bytes=exclusive,
        shared_bytes=known.chains.allocated_bytes(image) - exclusive,
        strategy=image.strategy,
        status=known.chains.status(image, known.opened.storage.capabilities),
        created_at=image.created_at,
        captured_at=image.captured_at,
        user_data=image.user_data,
        revision=image.revision,
        tracking=tuple(sorted(known.trackers.get(image.id, ()))),
        attachments=tuple(
            AttachmentInfo(
                host_id=found.host.host_id,
                owner=found.owner,
                mode=found.mode,
                attached_at=found.attached_at,
            )
            for found in known.state.attachments_of(image.id)
        ),
    )


def image_info(opened: Opened, image_id: str) -> ImageInfo:
    """GetImageInfo."""
    state = opened.state()
    image = strong_image(state, image_id)
    found = {volume.id: opened.stored(volume) for _, volume in state.chain(image)}
    stored = {key: item for key, item in found.items() if item is not None}
    return _info(_Known.of(opened, state, stored), image)


def list_images(opened: Opened, request: ListImages) -> ImagePage:
    """listImages: in the order of ids, so that a page's end is a place in any later state.

    :raises diskyard.errors.InvalidParameter: the limit is out of range.
    """
    if not 1 <= request.limit <= PAGE_LIMIT:
        raise errors.InvalidParameter(f"limit must be from 1 to {PAGE_LIMIT}.")
    state = opened.state()
    known = _Known.of(opened, state, stored_by_id(state, opened.storage.list_volumes()))
    page: list[ImageInfo] = []
    for image in _candidates(state, request):
        info = _info(known, image)
        if request.status is not None and info.status != request.status:
            continue
        if len(page) == request.limit:
            return ImagePage(images=tuple(page), next_cursor=page[-1].image_id)
        page.append(info)
    return ImagePage(images=tuple(page), next_cursor=None)


def _candidates(state: State, request: ListImages) -> Iterator[Image]:
    ids = state.images if request.image_ids is None else set(request.image_ids)
    for image_id in sorted(ids):
        if request.cursor is not None and image_id <= request.cursor:
            continue
        image = state.images.get(image_id)
        if image is None or not image.is_strong:
            continue
        if request.kind in (None, image.kind):
            yield image


def repository_info(opened: Opened, repo_id: str, parameters: Mapping[str, object]) -> RepositoryInfo:
    """One line of listStorageRepositories; the sums of :class:`Usage` add up to used_bytes."""
    state = opened.state()
    leftovers_bytes = sum(item.allocated_bytes for item in opened.storage.list_leftovers())
    listed = opened.storage.list_volumes()
    named = {item.name: key for key, item in stored_by_id(state, listed).items()}
    allocated = {named.get(item.name, str(item.name)): item.allocated_bytes for item in listed}
    used = usage(state, allocated, leftovers_bytes)
    capacity = opened.storage.capacity()
    strong = [image for image in state.images.values() if image.is_strong]
    return RepositoryInfo(
        repo_id=repo_id,
        repo_format=opened.format,
        capacity_bytes=capacity.capacity_bytes,
        free_bytes=capacity.free_bytes,
        used_bytes=used.total_bytes,
        provisioned_bytes=sum(image.size_bytes for image in strong),
        reclaimable_bytes=used.reclaimable_bytes,
        mergeable_bytes=used.mergeable_bytes,
        retained_bytes=used.retained_bytes,
        strong_bytes=used.strong_bytes,
        building_bytes=used.building_bytes,
        health="ok" if opened.log.damage is None else f"read-only: {opened.log.damage}",
        connection_parameters=dict(parameters),
    )
