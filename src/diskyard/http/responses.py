"""Parts of the OpenAPI document that every operation has: errors, headers, who may call."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from diskyard.errors import CODES, DiskyardError
from diskyard.http.problems import PROBLEM_TYPE, problem, title_of
from diskyard.model.verbs import Access

REQUEST_ID_HEADER = {"$ref": "#/components/headers/RequestID"}
_REQUEST_ID = "[A-Za-z0-9._-]{1,64}"
_EXAMPLE_REQUEST_ID = "3d0a7c1e-0f4b-4a57-9b57-6f0f4d1c2b3a"

REQUEST_ID_PARAMETER: dict[str, Any] = {
    "name": "X-Request-ID",
    "in": "header",
    "description": "The caller's name for this request, for logs, errors and the audit trail. A name that "
    f"does not match `{_REQUEST_ID}` is replaced.",
    "schema": {"type": "string"},
    "example": _EXAMPLE_REQUEST_ID,
}

HEADERS: dict[str, Any] = {
    "RequestID": {
        "description": "The caller's X-Request-ID, or a new UUID.",
        "required": True,
        "schema": {"type": "string", "pattern": f"^{_REQUEST_ID}$"},
    },
    "Tasks": {
        "description": "The ids of the tasks that the verb started, separated by commas, in the order in "
        "which they run; absent if it started none.",
        "schema": {"type": "string"},
    },
    "RetryAfter": {"description": "Seconds to wait.", "required": True, "schema": {"type": "integer"}},
    "Challenge": {"description": "`Bearer`", "required": True, "schema": {"const": "Bearer"}},
}


def _detail(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


_COMMON: dict[str, Any] = {
    "code": {"enum": list(CODES), "description": "What happened, for programs."},
    "advice": _detail("What to do next."),
    "retryable": {
        "type": "boolean",
        "description": "Whether the same call may succeed later without the caller changing anything.",
    },
}
_DETAILS: dict[str, Any] = {
    "repositoryId": _detail("The repoId that the error is about."),
    "imageId": _detail("The image that the error is about."),
    "taskId": _detail("The task that the error is about."),
    "owner": _detail("For whom the image is attached."),
    "outcome": {
        "const": "unknown",
        "description": "The call may have taken effect, or may still take effect: check before you repeat "
        "it. A call with newImageId can be repeated as it is.",
    },
}

PROBLEM: dict[str, Any] = {
    "type": "object",
    "description": "Why a request was refused or failed, in the form of RFC 9457.",
    "properties": {
        "type": {
            "type": "string",
            "pattern": "^urn:diskyard:error:[A-Za-z]+$",
            "description": "The code as a URN.",
        },
        "title": _detail("What every error of this code means."),
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": _detail("What happened, for people."),
        **_COMMON,
        "requestId": _detail("The X-Request-ID of the answer."),
        "hostID": _detail("This host, or the host that is in the way."),
        **_DETAILS,
    },
    "required": ["type", "title", "status", "detail", "code", "advice", "retryable", "requestId", "hostID"],
}
FAILURE: dict[str, Any] = {
    "type": "object",
    "description": "The error that a task ended with.",
    "properties": {
        "message": _detail("What happened, for people."),
        **_COMMON,
        "hostID": _detail("The host that is in the way."),
        **_DETAILS,
    },
    "required": ["code", "message", "advice", "retryable"],
}


def security(access: Access | None) -> list[dict[str, list[str]]]:
    """Who may call: over TCP a token with the scope, over the Unix socket anybody. With None, anybody."""
    return [] if access is None else [{"token": [access]}, {}]


def failures(codes: Iterable[str]) -> dict[str, Any]:
    """The error responses, in the order of their HTTP statuses."""
    found = sorted((CODES[code] for code in codes), key=lambda error: (error.http_status, error.__name__))
    return {
        str(status): _failure(status, list(those))
        for status, those in groupby(found, key=lambda error: error.http_status)
    }


def _failure(status: int, found: list[type[DiskyardError]]) -> dict[str, Any]:
    codes = [error.__name__ for error in found]
    headers = {"X-Request-ID": REQUEST_ID_HEADER}
    if status == 401:
        headers["WWW-Authenticate"] = {"$ref": "#/components/headers/Challenge"}
    if status in (429, 503):
        headers["Retry-After"] = {"$ref": "#/components/headers/RetryAfter"}
    return {
        "description": "\n".join(
            f"- `{error.__name__}`: {title_of(error)} {error.default_advice}" for error in found
        ),
        "headers": headers,
        "content": {
            PROBLEM_TYPE: {
                "schema": {
                    "allOf": [
                        {"$ref": "#/components/schemas/Problem"},
                        {"properties": {"status": {"const": status}, "code": {"enum": codes}}},
                    ]
                },
                "examples": {code: {"$ref": f"#/components/examples/{code}"} for code in codes},
            }
        },
    }


def example_of(error: type[DiskyardError]) -> dict[str, Any]:
    """A response with an error of this code."""
    shown = error(title_of(error))
    return {
        "summary": title_of(error),
        "value": {**problem(shown, _EXAMPLE_REQUEST_ID, "kvm-07"), "status": error.http_status},
    }
