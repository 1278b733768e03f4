"""The results of verbs, with the API's names on the wire."""

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
    """Whether an image can be used, and how far the last work on it came.

    :param status: ``optimized``: nothing better is known; ``degraded``: it can be used, and an
        optimize would make it better; ``broken``: it cannot be read yet.
    :param host_id: the last host that tried to optimize or mend the image.
    :param stage: the last persisted stage of that work, as "1/2".
    :param percent_complete: of that stage; -1 if it is not known.
    :param last_error: why that work ended early, if not by I/O or a crash.
    :param task_id: this host's running task on the image.
    """

    status: Status
    host_id: str | None
    stage: str
    percent_complete: int
    last_error: str
    task_id: str | None


class Result(msgspec.Struct, frozen=True, kw_only=True, rename=wire_name, gc=False):
    """Base of the other results. None refers to what refers to it: the garbage collector passes them by."""


class RepositoryInfo(Result, kw_only=True, frozen=True):
    """A connected repository: its space and its health.

    Sizes are null if the storage does not answer.

    :param repo_id: its name on this host.
    :param repo_format: its format and version.
    :param capacity_bytes: the size of the file system or pool, as far as this user may fill it.
    :param used_bytes: used by this repository's volumes and temporary files.
    :param free_bytes: what this user may still fill.
    :param provisioned_bytes: the sizes of all images together.
    :param reclaimable_bytes: what the clean fixes would free now.
    :param mergeable_bytes: held by removed images that a merge would eliminate.
    :param retained_bytes: held by removed images that others need.
    :param strong_bytes: held by images that verbs return.
    :param building_bytes: held by volumes that are being made.
    :param health: ``ok``, or what is wrong.
    :param sdm_host: the host that its SDM runs on, for formats that need one.
    :param connection_parameters: the parameters of the connection.
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
    """Who has an image attached.

    :param host_id: the host.
    :param owner: the caller's name of the guest.
    :param mode: whether the owner may write to it.
    :param attached_at: when it was attached, in RFC 3339 form.
    :param live: the guest can be talked to while it runs: verbs that need that work on its host.
    :param switching: the guest is being moved to another volume, or was when that was interrupted.
    """

    host_id: str
    owner: str
    mode: Literal["read_only", "read_write"]
    attached_at: str
    live: bool
    switching: bool


class ImageInfo(Result, kw_only=True, frozen=True):
    """What callers may know of an image.

    :param image_id: its id.
    :param kind: a ``virtual_disk`` can change, a ``snapshot`` cannot.
    :param size_bytes: what a guest sees.
    :param exclusive_bytes: what removing the image, and cleaning up, would free.
    :param shared_bytes: the rest of the bytes that it reads, which other images need too.
    :param strategy: what it is optimized for.
    :param status: as in getImageStatus.
    :param created_at: when it was made here, in RFC 3339 form.
    :param captured_at: the moment that its bytes are from, if they were copied from another image.
    :param user_data: what the caller stored.
    :param revision: for setUserData's ifRevision.
    :param tracking: the copies since which the disk's changes are tracked.
    :param attachments: who has it attached, on any host.
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
    revision: str
    tracking: tuple[str, ...] = ()
    attachments: tuple[AttachmentInfo, ...] = ()


class ImagePage(Result, kw_only=True, frozen=True):
    """One page of images.

    :param images: ordered by id.
    :param next_cursor: the cursor for the next page; null if this is the last page.
    """

    images: tuple[ImageInfo, ...]
    next_cursor: str | None


class Attached(Result, kw_only=True, frozen=True):
    """An attachment: what QEMU and libvirt need to open the image.

    :param image_id: the image.
    :param host_id: the host that it is attached on.
    :param owner: the caller's name of the guest.
    :param mode: whether it may be written to.
    :param blockdev: the explicit graph, in the form that QEMU's blockdev-add takes.
    :param path: the image's file, if one file is enough; null otherwise.
    :param format: the format of the file at ``path``.
    :param nbd_uri: where the image is served over NBD.
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
    """Work that runs, or ran within the last day, on this host.

    :param task_id: its id on this host.
    :param verb: the verb or the type of fix that runs.
    :param repository_id: the repoId of the repository that it works in.
    :param image_id: the image that it works on.
    :param state: queued, running, or how it ended.
    :param stage: the stage of the work, as "1/2"; empty if it has none.
    :param percent: how much of the bytes to move in that stage has moved; -1 if it is not known.
    :param done_bytes: bytes that were moved in that stage.
    :param total_bytes: bytes to move in that stage; 0 if it is not known.
    :param rate_bytes_per_s: bytes per second over the last seconds; 0 unless the task runs.
    :param remaining_s: seconds that the rest of that stage takes at that rate; null if it is not known.
    :param changed: whether it changed anything; null until it has ended.
    :param error: an error of the API, if it failed.
    :param queued_at: when it was asked for, in RFC 3339 form.
    :param started_at: when it began to run.
    :param ended_at: when it ended.
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
    remaining_s: int | None = None
    changed: bool | None = None
    error: dict[str, Any] | None = None
    queued_at: str = ""
    started_at: str | None = None
    ended_at: str | None = None


class FormatInfo(Result, kw_only=True, frozen=True):
    """A repository format of this host, with its connection parameters.

    :param name: the repoFormat that verbs take.
    :param parameters: each connection parameter with its meaning.
    :param capabilities: what it can do; null where that depends on the location.
    """

    name: str
    parameters: dict[str, str]
    capabilities: dict[str, bool | None]


class ConnectionInfo(Result, kw_only=True, frozen=True):
    """A connection of this host, as it was made; the storage is not asked whether it answers.

    :param repo_id: the caller's name of the repository.
    :param repo_format: the format's name and version.
    :param connection_parameters: as they were given.
    """

    repo_id: str
    repo_format: str
    connection_parameters: dict[str, Any] = {}


class HostInfo(Result, kw_only=True, frozen=True):
    """This host.

    :param host_id: its id, as statuses, attachments and errors name it.
    :param version: of Diskyard.
    :param formats: the repository formats that it knows.
    :param connections: its connections, in the order in which they were made.
    """

    host_id: str
    version: str
    formats: tuple[FormatInfo, ...]
    connections: tuple[ConnectionInfo, ...] = ()


class Event(Result, kw_only=True, frozen=True):
    """One thing that happened on this host.

    :param event_id: ordered within the process that reports the event; another process has other ids.
    :param repository_id: the repository that it is about, if there is one.
    :param data: the event's data in the API, as JSON-like values.
    """

    event_id: str
    kind: Literal["task", "image", "repository", "reset"]
    repository_id: str | None
    data: Any
