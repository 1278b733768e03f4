"""What verbs answer, with the names of the API on the wire."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from diskyard.model.options import wire_name
from diskyard.model.records import ImageKind, Strategy
from diskyard.model.status import Status

_RFC_NAMES = {"host_id": "hostID", "percent_complete": "percent_complete", "last_error": "last_error"}


def _status_name(name: str) -> str:
    return _RFC_NAMES.get(name) or ("taskId" if name == "task_id" else name)


class ImageStatus(msgspec.Struct, frozen=True, kw_only=True, rename=_status_name):
    """Whether an image can be used, and what was last done about it.

    :param host_id: the last host that tried to optimize or mend the image.
    :param stage: the last persisted stage of that, as "1/2".
    :param percent_complete: of that stage; -1 if it cannot be told.
    :param last_error: why it ended early, if not by I/O or a crash.
    :param task_id: this host's running task on the image.
    """

    status: Status
    host_id: str | None
    stage: str
    percent_complete: int
    last_error: str
    task_id: str | None


class Result(msgspec.Struct, frozen=True, kw_only=True, rename=wire_name):
    """Base of the other results."""


class RepositoryInfo(Result, kw_only=True, frozen=True):
    """A connected repository: its room, and whether it is well.

    :param capacity_bytes: of the file system or pool, as far as this user may fill it.
    :param used_bytes: by this repository's volumes and temporary files.
    :param provisioned_bytes: the sizes of all images.
    :param reclaimable_bytes: what running the clean fixes gives back now.
    :param mergeable_bytes: in images removed that a merge does away with.
    :param retained_bytes: in images removed that others need.
    :param health: ``ok``, or what is wrong.
    """

    repo_id: str
    repo_format: str
    capacity_bytes: int | None
    used_bytes: int | None
    free_bytes: int | None
    provisioned_bytes: int | None
    reclaimable_bytes: int | None
    mergeable_bytes: int | None
    retained_bytes: int | None
    strong_bytes: int | None
    building_bytes: int | None
    health: str
    sdm_host: str | None = None
    connection_parameters: dict[str, Any] = {}


class AttachmentInfo(Result, kw_only=True, frozen=True):
    """Who has an image attached."""

    host_id: str
    owner: str
    mode: Literal["read_only", "read_write"]
    attached_at: str


class ImageInfo(Result, kw_only=True, frozen=True):
    """What callers may know of an image.

    :param exclusive_bytes: what removing the image would free, once cleaned.
    :param shared_bytes: what it reads besides, and others too.
    :param revision: for setUserData's ifRevision.
    :param tracking: the copies since which the disk's changes are tracked.
    """

    image_id: str
    kind: ImageKind
    size_bytes: int
    exclusive_bytes: int
    shared_bytes: int
    strategy: Strategy
    status: Status
    created_at: str
    captured_at: str
    user_data: Any
    revision: int
    tracking: tuple[str, ...] = ()
    attachments: tuple[AttachmentInfo, ...] = ()


class ImagePage(Result, kw_only=True, frozen=True):
    """One page of images.

    :param next_cursor: for the next page; None if this is the last.
    """

    images: tuple[ImageInfo, ...]
    next_cursor: str | None


class Attached(Result, kw_only=True, frozen=True):
    """An attachment: what QEMU and libvirt need to open the image.

    :param blockdev: the explicit graph, as QEMU's blockdev-add takes it.
    :param path: where one file is enough; ``format`` is its format then.
    :param nbd_uri: where it is served.
    :param libvirt_xml: a <disk> element with its backing chain spelled out.
    """

    image_id: str
    host_id: str
    owner: str
    mode: Literal["read_only", "read_write"]
    blockdev: dict[str, Any]
    path: str | None
    format: str | None
    nbd_uri: str | None
    libvirt_xml: str


class Task(Result, kw_only=True, frozen=True):
    """Something that runs, or ran within the last day, on this host.

    :param verb: the verb or the type of fix that runs.
    :param changed: whether it changed anything; None until it has ended.
    :param rate_bytes_per_s: over the last seconds.
    :param error: as an error of the API, if it failed.
    """

    task_id: str
    verb: str
    repository_id: str | None
    image_id: str | None
    state: Literal["queued", "running", "done", "failed", "stopped"]
    stage: str = ""
    percent: int = -1
    done_bytes: int = 0
    total_bytes: int = 0
    rate_bytes_per_s: int = 0
    changed: bool | None = None
    error: dict[str, Any] | None = None
    queued_at: str = ""
    started_at: str | None = None
    ended_at: str | None = None


class FormatInfo(Result, kw_only=True, frozen=True):
    """A repository format of this host, with its connection parameters.

    :param capabilities: what it can do; null where that depends on the place.
    """

    name: str
    parameters: dict[str, str]
    capabilities: dict[str, bool | None]


class ConnectionInfo(Result, kw_only=True, frozen=True):
    """A connection of this host, as it was made; whether its storage answers is not asked."""

    repo_id: str
    repo_format: str
    connection_parameters: dict[str, Any] = {}


class HostInfo(Result, kw_only=True, frozen=True):
    """This host.

    :param connections: in the order in which they were made.
    """

    host_id: str
    version: str
    formats: tuple[FormatInfo, ...]
    connections: tuple[ConnectionInfo, ...] = ()


class Event(Result, kw_only=True, frozen=True):
    """One thing that happened on this host.

    :param event_id: in order within the process that tells; another process has others.
    :param repository_id: the repository that it is about, if it is about one.
    :param data: what the API says of it, as JSON-like values.
    """

    event_id: str
    kind: Literal["task", "image", "repository", "reset"]
    repository_id: str | None
    data: Any
