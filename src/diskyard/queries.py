"""Answers from a repository's state: statuses, lists, space. They take no lease."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from diskyard import errors
from diskyard.model.records import Image, TrackHold
from diskyard.model.requests import PAGE_LIMIT, ListImages
from diskyard.model.results import (
    AttachmentInfo,
    ImageInfo,
    ImagePage,
    ImageStatus,
    RepositoryInfo,
)
from diskyard.model.space import exclusive_and_shared, usage
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


def _info(
    opened: Opened,
    state: State,
    image: Image,
    stored: Mapping[str, StoredVolume],
    trackers: Mapping[str, list[str]],
    unreadable: dict[str, bool],
) -> ImageInfo:
    """What is known of an image.

    :param unreadable: which volumes were looked at already, and what was found: chains share them.
    """
    chain = [volume for _, volume in state.chain(image)]
    for volume in chain:
        if volume.id not in unreadable:
            unreadable[volume.id] = opened.is_unreadable(volume, stored.get(volume.id))
    missing = [volume.id for volume in chain if unreadable[volume.id]]
    allocated = {v.id: stored[v.id].allocated_bytes for v in chain if v.id in stored}
    exclusive_bytes, shared_bytes = exclusive_and_shared(state, image, allocated)
    return ImageInfo(
        image_id=image.id,
        kind=image.kind,
        size_bytes=image.size_bytes,
        exclusive_bytes=exclusive_bytes,
        shared_bytes=shared_bytes,
        strategy=image.strategy,
        status=image_status(state, image, opened.storage.capabilities, missing),
        created_at=image.created_at,
        captured_at=image.captured_at,
        user_data=image.user_data,
        revision=image.revision,
        tracking=tuple(sorted(trackers.get(image.id, ()))),
        attachments=tuple(
            AttachmentInfo(
                host_id=found.host.host_id,
                owner=found.owner,
                mode=found.mode,
                attached_at=found.attached_at,
            )
            for found in state.attachments_of(image.id)
        ),
    )


def image_info(opened: Opened, image_id: str) -> ImageInfo:
    """GetImageInfo."""
    state = opened.state()
    image = strong_image(state, image_id)
    found = {volume.id: opened.stored(volume) for _, volume in state.chain(image)}
    stored = {key: item for key, item in found.items() if item is not None}
    return _info(opened, state, image, stored, _trackers(state), {})


def list_images(opened: Opened, request: ListImages) -> ImagePage:
    """listImages: in the order of ids, so that a page's end is a place in any later state.

    :raises diskyard.errors.InvalidParameter: the limit is out of range.
    """
    if not 1 <= request.limit <= PAGE_LIMIT:
        raise errors.InvalidParameter(f"limit must be from 1 to {PAGE_LIMIT}.")
    state = opened.state()
    stored, trackers = stored_by_id(state, opened.storage.list_volumes()), _trackers(state)
    unreadable: dict[str, bool] = {}
    page: list[ImageInfo] = []
    for image in _candidates(state, request):
        info = _info(opened, state, image, stored, trackers, unreadable)
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
