"""Which errors each verb may answer, beyond those that every call may get.

Reviewed by hand, as no analysis can tell. ``tests/conftest.py`` refuses every error that a verb
raises in any test and that is not here.
"""

from __future__ import annotations

from diskyard import errors

Codes = frozenset[str]

#: HTTP's own, a body that is not of the verb's form, and defects.
EVERY_CALL: Codes = frozenset(
    (
        "InvalidParameter",
        "Unauthorized",
        "Forbidden",
        "RequestTooLarge",
        "TooManyRequests",
        "InternalError",
    )
)

_STATE_FOLDER: Codes = frozenset(("RepositoryUnavailable", "StorageError"))
_OPENING: Codes = _STATE_FOLDER | {
    "UnknownRepositoryFormat",
    "NotARepository",
    "CorruptRecord",
    "Unsupported",
}
_READING: Codes = _OPENING | {"RepositoryNotConnected"}
_WRITING: Codes = _READING | {"NoSpace"}
_IMAGE: Codes = frozenset(("ImageNotFound",))
#: Of what opens volumes: one cannot be read, is written to, or has a second name.
_OPENED: Codes = frozenset(("ImageBroken", "ImageInUse", "UnsafeImage"))
_NEW_IMAGE: Codes = _WRITING | {"ImageIdInUse", "LeaseHeld"}

#: By verb.
FAILURES: dict[str, Codes] = {
    "connectStorageRepository": _OPENING
    | {"PathNotAllowed", "RepositoryIdInUse", "RepositoryInUse", "NoSpace"},
    "disconnectStorageRepository": _WRITING | {"RepositoryInUse"},
    "createStorageRepository": _OPENING | {"PathNotAllowed", "NotEmpty", "NoSpace"},
    "removeStorageRepository": _WRITING | {"PathNotAllowed", "NotEmpty", "RepositoryInUse"},
    "listStorageRepositories": frozenset(("RepositoryUnavailable",)),
    "createVirtualDisk": _NEW_IMAGE | _IMAGE | _OPENED | {"NotASnapshot"},
    "createSnapshot": _NEW_IMAGE | _IMAGE | _OPENED | {"NotAVirtualDisk"},
    "copyImage": _NEW_IMAGE | _IMAGE | _OPENED | {"NotASnapshot", "NotAVirtualDisk"},
    "importImage": _NEW_IMAGE | {"PathNotAllowed", "UnsafeImage", "ImageInUse"},
    "exportImage": _WRITING
    | _IMAGE
    | {"PathNotAllowed", "NotEmpty", "ImageBroken", "ImageInUse", "LeaseHeld"},
    "listImages": _READING,
    "getImageInfo": _READING | _IMAGE,
    "getImageStatus": _READING | _IMAGE,
    "setUserData": _WRITING | _IMAGE | {"RevisionMismatch"},
    "setStrategy": _WRITING | _IMAGE,
    "extendVirtualDisk": _WRITING | _IMAGE | _OPENED | {"NotAVirtualDisk", "LeaseHeld"},
    "revertVirtualDisk": _WRITING | _IMAGE | _OPENED | {"NotAVirtualDisk", "NotASnapshot", "LeaseHeld"},
    "untrackChanges": _WRITING | _IMAGE | {"NotAVirtualDisk"},
    "removeImage": _WRITING | _IMAGE | {"ImageInUse"},
    "prepareImage": _WRITING | _IMAGE | _OPENED | {"NotAVirtualDisk", "LeaseHeld"},
    "teardownImage": _WRITING | _IMAGE | {"ImageInUse"},
    "checkStorageRepository": _READING | {"NoSpace"},  # a deep one runs programs, and notes damage
    "fixStorageRepository": _READING,
    "listTasks": _STATE_FOLDER,
    "getTask": _STATE_FOLDER | {"TaskNotFound"},
    "stopTask": _STATE_FOLDER | {"TaskNotFound", "NoSpace"},
    "getHostInfo": frozenset(),
}


def may_answer(verb: str) -> list[type[errors.DiskyardError]]:
    """Every error that a verb may answer, in the order of their HTTP statuses."""
    codes = EVERY_CALL | FAILURES[verb]
    return sorted(
        (errors.CODES[code] for code in codes), key=lambda error: (error.http_status, error.__name__)
    )
