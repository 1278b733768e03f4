"""The description of the API as an OpenAPI 3.1 document, made from the table of verbs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec

from diskyard.errors import CODES
from diskyard.http import described
from diskyard.http.prose import BEARER, DESCRIPTION
from diskyard.http.responses import (
    FAILURE,
    HEADERS,
    PROBLEM,
    REQUEST_ID_HEADER,
    REQUEST_ID_PARAMETER,
    example_of,
    failures,
    security,
)
from diskyard.http.watching import EVENT_SCHEMAS, HEALTH, paths_to_watch
from diskyard.model.records import UUID_PATTERN
from diskyard.model.verbs import EVERY_CALL, GROUPS, VERBS, Verb
from diskyard.version import version

#: The result of verbs that make an image.
_IMAGE_ID = {"type": "string", "pattern": UUID_PATTERN, "description": "The id of the image."}


@cache
def encoded() -> bytes:
    """The document as JSON; made once, at the first request."""
    return msgspec.json.encode(document())


def document() -> dict[str, Any]:
    """The document: every verb with its parameters, defaults, errors and examples, and the rest."""
    verbs = list(VERBS.values())
    of = [verb.request for verb in verbs] + [verb.result for verb in verbs if verb.result is not None]
    schemas, components = described.components(of)
    results = iter(schemas[len(verbs) :])
    paths: dict[str, Any] = {}
    for verb, request in zip(verbs, schemas, strict=False):
        result = {"type": "null"} if verb.result is None else next(results)
        if verb.result is str:
            result = _IMAGE_ID
        paths[f"/v1/{verb.name}"] = {"post": _operation(verb, request, result)}
    _complete(components, verbs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Diskyard",
            "version": version(),
            "summary": "Disk images of KVM hosts, in storage repositories",
            "description": DESCRIPTION,
            "license": {"name": "GPL-2.0-or-later", "identifier": "GPL-2.0-or-later"},
        },
        "servers": [{"url": "/", "description": "The daemon that this document is of"}],
        "tags": [{"name": group.name, "description": group.text} for group in GROUPS],
        "paths": {**paths, **paths_to_watch()},
        "components": {
            "schemas": components,
            "parameters": {"RequestID": REQUEST_ID_PARAMETER},
            "headers": HEADERS,
            "examples": {code: example_of(error) for code, error in CODES.items()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": BEARER}},
        },
    }


def _complete(components: dict[str, Any], verbs: list[Verb]) -> None:
    """Add what structs cannot express."""
    components |= {"Problem": PROBLEM, "Failure": FAILURE, "Health": HEALTH, **EVENT_SCHEMAS}
    error = components["Task"]["properties"]["error"]
    error["anyOf"] = [{"$ref": "#/components/schemas/Failure"}, {"type": "null"}]
    for cls in described.structs(verb.result for verb in verbs if verb.result is not None):
        # An answer always has all of its members. The defaults are for clients that read an older answer.
        schema = components[cls.__name__]
        if not cls.__struct_config__.forbid_unknown_fields:
            schema["required"] = list(schema["properties"])
            for field in schema["properties"].values():
                field.pop("default", None)


def _operation(verb: Verb, request: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    said = described.said_of(verb.request)
    headers = {"X-Request-ID": REQUEST_ID_HEADER}
    if verb.starts_tasks:
        headers["Diskyard-Tasks"] = {"$ref": "#/components/headers/Tasks"}
    has_required = any(field.required for field in msgspec.structs.fields(verb.request))
    return {
        "operationId": verb.name,
        "summary": said.summary,
        "description": "\n\n".join((*said.more, f"Needs the scope `{verb.access}`.")),
        "tags": [next(group.name for group in GROUPS if verb in group.verbs)],
        "security": security(verb.access),
        "parameters": [{"$ref": "#/components/parameters/RequestID"}],
        "requestBody": {
            "required": has_required,
            "description": "The parameters."
            if has_required
            else "The parameters; no body is an empty object.",
            "content": {
                "application/json": {
                    "schema": request,
                    "examples": _examples((example.shows, example.request) for example in verb.examples),
                }
            },
        },
        "responses": {
            "200": {
                "description": "Done." if verb.result is None else "Done; the result.",
                "headers": headers,
                "content": {
                    "application/json": {
                        "schema": result,
                        "examples": _examples((example.shows, example.answer) for example in verb.examples),
                    }
                },
            },
            **failures(EVERY_CALL | verb.errors),
        },
    }


def _examples(shown: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {
        f"example{number}": {"summary": shows, "value": value}
        for number, (shows, value) in enumerate(shown, start=1)
    }
