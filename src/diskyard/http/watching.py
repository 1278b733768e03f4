"""The part of the OpenAPI document that is not about verbs: events, metrics, health, documents."""

from __future__ import annotations

from typing import Any

from diskyard.http.responses import REQUEST_ID_HEADER, failures, security
from diskyard.model.verbs import Access

_EVENTS = """\
What happens on this host, as server-sent events. Each has an `id`, an `event` and one line of `data`. The
data is a JSON object with the `repositoryId` (null if the event is not about a repository) and further
members that depend on the type of event:

- `task`: a task was queued, started, made progress or ended: the schema TaskEvent.
- `image`: an image was created, changed or removed in a connected repository: ImageEvent.
- `repository`: a repository was connected or disconnected: RepositoryEvent.
- `reset`: events were missed: read again everything that you keep.

To continue after the last event that you saw, send its id as the header `Last-Event-ID` or as
`lastEventId` in the query. A token that is bound to repositories gets only their events.
While nothing happens, a comment is sent every 15 seconds.
"""


def _field(kind: str | list[str], description: str) -> dict[str, Any]:
    return {"type": kind, "description": description}


_REPOSITORY_ID = _field(["string", "null"], "The repoId of the repository that it is about.")

#: The data of events, by the names of components.
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
            "repoFormat": _field("string", "The format of the repository that was connected."),
        },
        "required": ["repositoryId", "change"],
    },
}

HEALTH: dict[str, Any] = {
    "type": "object",
    "description": "The daemon's health; storage is not consulted.",
    "properties": {
        "live": _field("boolean", "The daemon answers."),
        "ready": _field("boolean", "The daemon listens on all its addresses, and is not about to end."),
        "hostID": _field("string", "This host."),
        "version": _field("string", "The version of Diskyard."),
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
    """The paths that are not verbs."""
    text, health = {"type": "string"}, {"$ref": "#/components/schemas/Health"}
    well = {"live": True, "ready": True, "hostID": "kvm-07", "version": "0.1.0"}
    return {
        "/v1/events": _get(
            "events",
            "Listen to what happens on this host",
            _EVENTS,
            {"200": _answer("An endless stream.", "text/event-stream", text, _EXAMPLE_STREAM)},
            access="read",
            parameters=_EVENTS_PARAMETERS,
            refusals=("InvalidParameter", "InternalError"),
        ),
        "/metrics": _get(
            "metrics",
            "Figures for Prometheus",
            "They cover all repositories: a token that is bound to some does not get them.",
            {"200": _answer("Figures as text.", "text/plain", text, _EXAMPLE_METRICS)},
            access="read",
        ),
        "/healthz": _get(
            "health",
            "Ask for the daemon's health",
            "Answers as long as the daemon runs, whatever its storage does.",
            {"200": _answer("It runs.", "application/json", health, well)},
        ),
        "/healthz/live": _get(
            "healthLive",
            "Ask whether the daemon runs",
            "For a supervisor that restarts the daemon if it does not run.",
            {"200": _answer("It runs.", "application/json", health, well)},
        ),
        "/healthz/ready": _get(
            "healthReady",
            "Ask whether the daemon accepts requests",
            "For a load balancer that sends requests elsewhere if it does not.",
            {
                "200": _answer("It does.", "application/json", health, well),
                "503": _answer("It starts or ends.", "application/json", health, {**well, "ready": False}),
            },
        ),
        "/openapi.json": _get(
            "openapi",
            "Read this document",
            "It describes the version of the daemon that answers.",
            {"200": _answer("This document.", "application/json", {"type": "object"}, {"openapi": "3.1.0"})},
            refusals=("TooManyRequests",),
        ),
        "/docs": _get(
            "docs",
            "Read this document as a page",
            "The page needs no script and nothing from other servers.",
            {"200": _answer("A page.", "text/html", text, "<!DOCTYPE html>…")},
            refusals=("TooManyRequests",),
        ),
    }


_EVENTS_PARAMETERS: tuple[dict[str, Any], ...] = (
    {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "Continue after this event. If its id is no longer known, a `reset` comes first.",
        "schema": {"type": "string"},
    },
    {
        **_query("lastEventId", "The same, for clients that cannot send the header; the header wins.", ""),
        "example": "4f1c2a9b0d3e-118",
    },
    _query("types", "Only events of these types, separated by commas; `reset` is always sent.", "task,image"),
    _query("repositoryId", "Only events of this repository.", "fast"),
)
_EXAMPLE_STREAM = """\
id: 4f1c2a9b0d3e-119
event: image
data: {"repositoryId":"fast","imageId":"5b1c9f0e-3a44-4d0c-8f2e-6f5f6a0f7d11","change":"created",\
"status":"optimized","kind":"virtual_disk","entry":41,"verb":"createVirtualDisk","hostID":"kvm-07"}

"""
_EXAMPLE_METRICS = """\
# HELP diskyard_requests_total Verbs answered.
# TYPE diskyard_requests_total counter
diskyard_requests_total{code="ok",verb="createVirtualDisk"} 12.0
"""
