"""listImages, getImageInfo, getImageStatus: answers from a repository's state."""

from __future__ import annotations

from diskyard import queries
from diskyard.model.requests import GetImageInfo, GetImageStatus, ListImages
from diskyard.model.results import ImageInfo, ImagePage, ImageStatus
from diskyard.operations.engine import Engine


def list_images(engine: Engine, request: ListImages) -> ImagePage:
    """One page of images."""
    return queries.list_images(engine.connections.get(request.repository_id), request)


def get_image_info(engine: Engine, request: GetImageInfo) -> ImageInfo:
    """Everything about one image that callers may know."""
    return queries.image_info(engine.connections.get(request.repository_id), request.image_id)


def get_image_status(engine: Engine, request: GetImageStatus) -> ImageStatus:
    """An image's status, with the task of this host that works on it, if there is one."""
    repo = engine.connections.get(request.repository_id)
    on_it = [task.task_id for task in engine.records.unended() if task.image_id == request.image_id]
    return queries.status_of(repo, request.image_id, min(on_it, default=None))
