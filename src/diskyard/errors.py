"""Every error Diskyard raises to a caller: code, HTTP status, exit status, advice.

The codes and HTTP statuses are part of the API. ``docs/errors.md`` is checked
against this file by a test. A caller catches the class of the code's name, or
:class:`DiskyardError` for all of them.

=========================  ====  ====
code                       HTTP  exit
=========================  ====  ====
InvalidParameter           422   10
UnknownRepositoryFormat    422   11
NotARepository             422   12
NotEmpty                   409   13
RepositoryIdInUse          409   14
RepositoryInUse            409   15
RepositoryNotConnected     404   16
RepositoryUnavailable      503   17
ImageNotFound              404   18
ImageIdInUse               409   19
NotAVirtualDisk            422   20
NotASnapshot               422   21
ImageBroken                409   22
ImageInUse                 409   23
LeaseHeld                  409   24
RevisionMismatch           409   25
NotSDM                     409   26
NoSpace                    507   27
UnsafeImage                422   28
PathNotAllowed             403   29
CorruptRecord              500   30
TaskNotFound               404   31
Unsupported                422   32
Unauthorized               401   33
Forbidden                  403   34
RequestTooLarge            413   35
TooManyRequests            429   36
StorageError               500   37
InternalError              500   38
=========================  ====  ====
"""

from __future__ import annotations

import errno
from typing import ClassVar, cast


class DiskyardError(Exception):
    """Base of all errors: a sentence that says what happened, and what to do next.

    :param message: one sentence for people.
    :param advice: what to do next; by default the class's own advice.
    :param details: identifiers that help a program: ``repositoryId``, ``imageId``,
        ``hostID``, ``taskId``, ``owner``.
    """

    http_status: ClassVar[int] = 500
    exit_status: ClassVar[int] = 38
    retryable: ClassVar[bool] = False
    default_advice: ClassVar[str] = ""

    def __init__(self, message: str, *, advice: str | None = None, **details: str | None) -> None:
        super().__init__(message)
        self.message = message
        self.advice = self.default_advice if advice is None else advice
        self.details = {name: value for name, value in details.items() if value is not None}

    @property
    def code(self) -> str:
        """The code of the API's table: the name of the class."""
        return type(self).__name__

    @property
    def request_id(self) -> str | None:
        """The id of the failed request to a daemon, as in the daemon's log."""
        return self.details.get("requestId")

    def to_json(self) -> dict[str, object]:
        """The error as ``diskyard call`` prints it and HTTP sends it."""
        return {
            "code": self.code,
            "message": self.message,
            "advice": self.advice,
            "retryable": self.retryable,
            **self.details,
        }


class InvalidParameter(DiskyardError):
    """A parameter has the wrong form or is out of range."""

    http_status, exit_status = 422, 10
    default_advice = "Correct the call and send it again."


class UnknownRepositoryFormat(DiskyardError):
    """There is no such repository format or version."""

    http_status, exit_status = 422, 11
    default_advice = "Use one of the formats that getHostInfo lists."


class NotARepository(DiskyardError):
    """The location has no repository of that format, or has one of a newer version."""

    http_status, exit_status = 422, 12
    default_advice = "Check the connection parameters, or create a repository there first."


class NotEmpty(DiskyardError):
    """The location or the repository is not empty."""

    http_status, exit_status = 409, 13
    default_advice = "Choose an empty location, or remove what it holds first."


class RepositoryIdInUse(DiskyardError):
    """Another repository is connected under this repoId."""

    http_status, exit_status = 409, 14
    default_advice = "Choose another repoId, or disconnect the other repository first."


class RepositoryInUse(DiskyardError):
    """Tasks or attachments use the repository."""

    http_status, exit_status = 409, 15
    default_advice = "Stop the tasks and tear down the attachments named, then try again."


class RepositoryNotConnected(DiskyardError):
    """No repository is connected under this repoId on this host."""

    http_status, exit_status = 404, 16
    default_advice = "Connect it with connectStorageRepository (diskyard repo connect)."


class RepositoryUnavailable(DiskyardError):
    """The storage does not answer."""

    http_status, exit_status, retryable = 503, 17, True
    default_advice = "Repair the storage or its connection, then try again."


class ImageNotFound(DiskyardError):
    """The image is in none of the repositories searched."""

    http_status, exit_status = 404, 18
    default_advice = "Connect the repository that holds it, or drop the hint that narrows the search."


class ImageIdInUse(DiskyardError):
    """newImageId names an image that another request made."""

    http_status, exit_status = 409, 19
    default_advice = "Choose another newImageId."


class NotAVirtualDisk(DiskyardError):
    """The verb needs a VirtualDisk and the image is a Snapshot."""

    http_status, exit_status = 422, 20
    default_advice = "Create a VirtualDisk from the Snapshot first."


class NotASnapshot(DiskyardError):
    """The verb needs a Snapshot and the image is a VirtualDisk."""

    http_status, exit_status = 422, 21
    default_advice = "Create a Snapshot of the VirtualDisk first."


class ImageBroken(DiskyardError):
    """The image cannot be read yet."""

    http_status, exit_status = 409, 22
    default_advice = "Wait until its mend is done, or run the mend that checkStorageRepository lists."


class ImageInUse(DiskyardError):
    """A guest uses the image, or a running QEMU its file; the message names host and owner, or the file."""

    http_status, exit_status = 409, 23
    default_advice = "Tear the attachment down first (teardownImage)."


class LeaseHeld(DiskyardError):
    """Another host or task is working on the image."""

    http_status, exit_status, retryable = 409, 24, True
    default_advice = "Try again when that work is done, or stop its task."


class RevisionMismatch(DiskyardError):
    """The image changed since it was read."""

    http_status, exit_status = 409, 25
    default_advice = "Read the image again, then repeat the change with its new revision."


class NotSDM(DiskyardError):
    """The operation must run on the SDM host, which the message names."""

    http_status, exit_status = 409, 26
    default_advice = "Call the host named."


class NoSpace(DiskyardError):
    """The storage is full, or has less free space than the work needs."""

    http_status, exit_status = 507, 27
    default_advice = (
        "Free space (diskyard repo check lists what clean and merge would free), then try again, or "
        "run the fix that is listed for the work that was begun."
    )


class UnsafeImage(DiskyardError):
    """An image file refers to other files, contradicts itself, or has other names that may be anybody's."""

    http_status, exit_status = 422, 28
    default_advice = "Do not trust this file. Convert it where it was made, without backing or data files."


class PathNotAllowed(DiskyardError):
    """The path is outside the directories that the caller may use."""

    http_status, exit_status = 403, 29
    default_advice = "Use a path inside a directory that the daemon's configuration, or the token, allows."


class CorruptRecord(DiskyardError):
    """A record of the repository is missing, damaged in both replicas, or contradicts the others."""

    http_status, exit_status = 500, 30
    default_advice = (
        "Nothing is deleted while this lasts. Run checkStorageRepository with deep, "
        "and restore the record named from a backup of the repository's log."
    )


class TaskNotFound(DiskyardError):
    """There is no such task, or it ended over a day ago."""

    http_status, exit_status = 404, 31
    default_advice = "List the known tasks (diskyard task list)."


class Unsupported(DiskyardError):
    """This repository format or host lacks the capability named."""

    http_status, exit_status = 422, 32
    default_advice = "Use a repository or a host that has the capability named."


class Unauthorized(DiskyardError):
    """The request carries no valid token."""

    http_status, exit_status = 401, 33
    default_advice = "Send a valid bearer token."


class Forbidden(DiskyardError):
    """The token's scope does not cover the request."""

    http_status, exit_status = 403, 34
    default_advice = "Use a token with the scope named."


class RequestTooLarge(DiskyardError):
    """The request's body is over the limit."""

    http_status, exit_status = 413, 35
    default_advice = "Send a smaller request."


class TooManyRequests(DiskyardError):
    """The caller sends more requests than allowed.

    :param retry_after_s: how long to wait before the next one.
    """

    http_status, exit_status, retryable = 429, 36, True
    default_advice = "Wait, then send fewer requests at a time."

    def __init__(
        self, message: str, *, advice: str | None = None, retry_after_s: int = 1, **details: str | None
    ) -> None:
        super().__init__(message, advice=advice, **details)
        self.retry_after_s = retry_after_s


class StorageError(DiskyardError):
    """The storage failed an input or output operation."""

    http_status, exit_status = 500, 37
    default_advice = "Repair the storage, then run checkStorageRepository and the fixes it lists."


class InternalError(DiskyardError):
    """A defect of Diskyard."""

    http_status, exit_status = 500, 38
    default_advice = "Report it with the message and the call. Nothing is lost; run checkStorageRepository."


#: In the order of the table above.
CODES: dict[str, type[DiskyardError]] = {error.__name__: error for error in DiskyardError.__subclasses__()}


class UnknownOutcome(DiskyardError):
    """The call may have taken effect, or may still take effect: look before repeating it.

    It is never raised alone: :func:`unknown_outcome` combines it with an error of a code. On the wire it is
    ``outcome: unknown`` among the details.
    """

    def __init__(self, message: str, *, advice: str | None = None, **details: str | None) -> None:
        super().__init__(message, advice=advice, **{**details, "outcome": "unknown"})


_UNKNOWN = {
    kind: cast("type[UnknownOutcome]", type(code, (UnknownOutcome, kind), {"__doc__": kind.__doc__}))
    for code, kind in CODES.items()
}


def unknown_outcome(kind: type[DiskyardError]) -> type[UnknownOutcome]:
    """The class for a call that may have taken effect: caught as this code, and as UnknownOutcome."""
    return _UNKNOWN[kind]


def unexpected(error: Exception) -> InternalError:
    """The InternalError for an exception that no code covers."""
    return InternalError(f"{type(error).__name__}: {error}")


def from_os_error(error: OSError, doing: str) -> DiskyardError:
    """Diskyard's error for a failed system call.

    :param doing: what was being done, as in "writing the log".
    """
    where = f" ({error.filename})" if error.filename else ""
    words = f"{error.strerror or error}{where} while {doing}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"The storage is full: {words}.")
    if error.errno in (errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN):
        return RepositoryUnavailable(f"The storage does not answer: {words}.")
    if error.errno == errno.EFBIG:
        return StorageError(
            f"The file system cannot hold a file that long: {words}.",
            advice="Use a file system that can (such as XFS), or a format that stores only what was written "
            "(qcow2).",
        )
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return StorageError(
            f"The host has run out of a resource: {words}.",
            advice="Give the process more (ulimit, LimitNOFILE of its unit, memory), or let it do less at once; "
            "then try again.",
        )
    if error.errno == errno.ENOTDIR:
        return StorageError(
            f"The storage failed: {words}.",
            advice="A file or a link is where a directory should be, and links are not followed: put the "
            "directory back, then try again.",
        )
    if error.errno == errno.EROFS:
        return StorageError(
            f"The storage is read-only: {words}.",
            advice="Mount the file system so that it can be written to. If the kernel made it read-only "
            "after an error, check it first (fsck).",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return StorageError(
            f"The storage refuses access: {words}.",
            advice="Run as a user who may read and write there, or change its permissions.",
        )
    return StorageError(f"The storage failed: {words}.")
