"""The part of the OpenAPI document about what is no verb: events, metrics, health, documents."""

from __future__ import annotations

from typing import Any

from diskyard.http.responses import REQUEST_ID_HEADER, failures, security
from diskyard.model.verbs import Access

_EVENTS = """\
What happens on this host, as server-sent events: `id`, `event` and one line of `data`, a JSON object
with the `repositoryId` (null if it is about none) and more by the type of event:

- `task`: a task was queued, has started, got on or ended: the schema TaskEvent.
- `image`: an image was created, changed or removed in a connected repository: ImageEvent.
- `repository`: a repository was connected or disconnected: RepositoryEvent.
- `reset`: events were missed: read again whatever you keep.

The id of the last event that was seen, sent as `Last-Event-ID` (browsers and `curl -H` alike) or as
`lastEventId` in the query, continues after it. A token that is bound to repositories sees only theirs.
While nothing happens a comment comes every 15 seconds.
"""


def _field(kind: str | list[str], description: str) -> dict[str, Any]:
    return {"type": kind, "description": description}


_REPOSITORY_ID = _field(["string", "null"], "The repoId of the repository that it is about.")

#: What the data of events is, by the names of components.
EVENT_SCHEMAS: dict[str, Any] = {
    "TaskEvent": {
        "description": "The data of a `task` event: the task as it is now.",
        "allOf": [{"$ref": "#/components/schemas/Task"}],
    },
    "ImageEvent": {
        "type": "object",
        "description": "The data of an `image` event.",
        "properties": {
            "repositoryId": _REPOSITORY_ID,
            "imageId": _field("string", "The image."),
            "change": {"enum": ["created", "changed", "removed"], "description": "What happened to it."},
            "status": {
                "enum": ["optimized", "degraded", "broken", None],
                "description": "As of getImageStatus; null if it is removed.",
            },
            "kind": {"enum": ["virtual_disk", "snapshot"], "description": "What it is."},
            "entry": _field("integer", "The number of the entry of the log that changed it."),
            "verb": _field(["string", "null"], "The verb or type of fix that changed it, if it is known."),
            "hostID": _field(["string", "null"], "The host that changed it, if it is known."),
        },
        "required": ["repositoryId", "imageId", "change", "status", "kind", "entry", "verb", "hostID"],
    },
    "RepositoryEvent": {
        "type": "object",
        "description": "The data of a `repository` event.",
        "properties": {
            "repositoryId": _REPOSITORY_ID,
            "change": {"enum": ["connected", "disconnected"], "description": "What happened."},
            "repoFormat": _field("string", "Of what was connected."),
        },
        "required": ["repositoryId", "change"],
    },
}

HEALTH: dict[str, Any] = {
    "type": "object",
    "description": "How the daemon is; no storage is asked for it.",
    "properties": {
        "live": _field("boolean", "It answers."),
        "ready": _field("boolean", "It listens everywhere, and is not about to end."),
        "hostID": _field("string", "This host."),
        "version": _field("string", "Of Diskyard."),
    },
    "required": ["live", "ready", "hostID", "version"],
}


def _get(
    name: str,
    summary: str,
    description: str,
    answers: dict[str, Any],
    *,
    access: Access | None = None,
    parameters: tuple[dict[str, Any], ...] = (),
    refusals: tuple[str, ...] = ("InternalError",),
) -> dict[str, Any]:
    codes = (*refusals, "Unauthorized", "Forbidden", "TooManyRequests") if access else refusals
    return {
        "get": {
            "operationId": name,
            "summary": summary,
            "description": description + (f"\n\nNeeds the scope `{access}`." if access else ""),
            "tags": ["host"],
            "security": security(access),
            "parameters": [{"$ref": "#/components/parameters/RequestID"}, *parameters],
            "responses": {**answers, **failures(codes)},
        }
    }


def _answer(description: str, media_type: str, schema: dict[str, Any], example: Any) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {"X-Request-ID": REQUEST_ID_HEADER},
        "content": {media_type: {"schema": schema, "example": example}},
    }


def _query(name: str, description: str, example: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "description": description,
        "schema": {"type": "string"},
        "example": example,
    }


def paths_to_watch() -> dict[str, Any]:
    """The paths that are no verbs."""
    text, health = {"type": "string"}, {"$ref": "#/components/schemas/Health"}
    well = {"live": True, "ready": True, "hostID": "kvm-07", "version": "0.1.0"}
    return {
        "/v1/events": _get(
            "events",
            "Listen to what happens on this host",
            _EVENTS,
            {"200": _answer("A stream without end.", "text/event-stream", text, _EXAMPLE_STREAM)},
            access="read",
            parameters=_EVENTS_PARAMETERS,
            refusals=("InvalidParameter", "InternalError"),
        ),
        "/metrics": _get(
            "metrics",
            "Figures for Prometheus",
            "Of all repositories: a token that is bound to some does not get them.",
            {"200": _answer("Figures as text.", "text/plain", text, _EXAMPLE_METRICS)},
            access="read",
        ),
        "/healthz": _get(
            "health",
            "Ask how the daemon is",
            "Answers as long as the daemon runs, whatever its storage does.",
            {"200": _answer("It runs.", "application/json", health, well)},
        ),
        "/healthz/live": _get(
            "healthLive",
            "Ask whether the daemon runs",
            "For whoever would start it again if it did not.",
            {"200": _answer("It runs.", "application/json", health, well)},
        ),
        "/healthz/ready": _get(
            "healthReady",
            "Ask whether the daemon takes requests",
            "For whoever sends requests elsewhere if it does not.",
            {
                "200": _answer("It does.", "application/json", health, well),
                "503": _answer("It starts or ends.", "application/json", health, {**well, "ready": False}),
            },
        ),
        "/openapi.json": _get(
            "openapi",
            "Read this document",
            "It is of the version of the daemon that answers it.",
            {"200": _answer("This document.", "application/json", {"type": "object"}, {"openapi": "3.1.0"})},
            refusals=("TooManyRequests",),
        ),
        "/docs": _get(
            "docs",
            "Read this document as a page",
            "It needs no script and nothing from elsewhere.",
            {"200": _answer("A page.", "text/html", text, "<!DOCTYPE html>…")},
            refusals=("TooManyRequests",),
        ),
    }


_EVENTS_PARAMETERS: tuple[dict[str, Any], ...] = (
    {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "Continue after this event. An id that is not known any more is answered by `reset`.",
        "schema": {"type": "string"},
    },
    {
        **_query("lastEventId", "The same, for who cannot send the header, which wins.", ""),
        "example": "4f1c2a9b0d3e-118",
    },
    _query("types", "Only events of these types, separated by commas; `reset` comes always.", "task,image"),
    _query("repositoryId", "Only events of this repository.", "fast"),
)
_EXAMPLE_STREAM = """\
id: 4f1c2a9b0d3e-119
event: image
data: {"repositoryId":"fast","imageId":"5b1c9f0e-3a44-4d0c-8f2e-6f5f6a0f7d11","change":"created",\
"status":"optimized","kind":"virtual_disk","entry":41,"verb":"createVirtualDisk","hostID":"kvm-07"}

"""
_EXAMPLE_METRICS = """\
# HELP diskyard_requests_total Verbs called.
# TYPE diskyard_requests_total counter
diskyard_requests_total{code="ok",verb="createVirtualDisk"} 12.0
"""
