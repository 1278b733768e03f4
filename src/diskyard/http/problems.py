"""Errors as HTTP sends them: ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from diskyard.errors import DiskyardError, TooManyRequests, Unauthorized

PROBLEM_TYPE = "application/problem+json"
_RETRY_AFTER_S = 1


def title_of(error: type[DiskyardError]) -> str:
    """The sentence that says what the errors of a code mean."""
    return (error.__doc__ or "").partition("\n")[0].strip()


def problem(error: DiskyardError, request_id: str, host_id: str) -> dict[str, object]:
    """The members of a problem. Those of the error itself take precedence over the daemon's."""
    return {
        "type": f"urn:diskyard:error:{error.code}",
        "title": title_of(type(error)),
        "detail": error.message,
        "code": error.code,
        "advice": error.advice,
        "retryable": error.retryable,
        "hostID": host_id,
        **error.details,
        "requestId": request_id,
    }


def problem_response(
    error: DiskyardError, request_id: str, host_id: str, *, status: int | None = None
) -> Response:
    """An error as a response.

    :param status: an HTTP status other than the code's own.
    """
    status = status or error.http_status
    members = {**problem(error, request_id, host_id), "status": status}
    headers = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, TooManyRequests):
        headers["Retry-After"] = str(error.retry_after_s)
    elif error.retryable and status == 503:
        headers["Retry-After"] = str(_RETRY_AFTER_S)
    return Response(msgspec.json.encode(members), status, headers, PROBLEM_TYPE)
