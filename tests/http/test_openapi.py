"""The OpenAPI document: valid, complete, and true to the verbs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from diskyard.errors import CODES
from diskyard.http import described, openapi
from diskyard.model.verbs import EVERY_CALL, GROUPS, VERBS

DOCUMENT = openapi.document()
SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS = [
    (path, method, operation) for path, of in DOCUMENT["paths"].items() for method, operation in of.items()
]
OTHERS = {"/v1/events", "/metrics", "/healthz", "/healthz/live", "/healthz/ready", "/openapi.json", "/docs"}
#: Only formats that need an SDM answer it, and there is none yet.
NEVER = {"NotSDM"}


def everything(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON value."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from everything(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from everything(inner)


def resolve(reference: str) -> Any:
    found: Any = DOCUMENT
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    return found


def validator(schema: dict[str, Any]) -> Any:
    """Of a schema of the document, with the components that it refers to."""
    return jsonschema_rs.Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def test_it_is_an_openapi_document() -> None:
    OPENAPI_31_VALIDATOR.validate(DOCUMENT)
    assert msgspec.json.decode(openapi.encoded()) == DOCUMENT


def test_every_reference_leads_somewhere() -> None:
    for found in everything(DOCUMENT):
        if isinstance(found.get("$ref"), str):
            assert resolve(found["$ref"]) is not None


def test_every_schema_is_one() -> None:
    for schema in SCHEMAS.values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


def test_every_verb_is_an_operation_and_nothing_else_but_what_is_known() -> None:
    assert set(DOCUMENT["paths"]) == {f"/v1/{verb}" for verb in VERBS} | OTHERS
    ids = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(ids)) == len(ids)
    assert set(VERBS) < set(ids)


def test_every_verb_has_one_tag() -> None:
    of_verbs = {name: DOCUMENT["paths"][f"/v1/{name}"]["post"]["tags"] for name in VERBS}
    assert of_verbs == {verb.name: [group.name] for group in GROUPS for verb in group.verbs}


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS, ids=[path for path, _, _ in OPERATIONS])
def test_every_operation_says_what_it_does(path: str, method: str, operation: dict[str, Any]) -> None:
    assert method == ("post" if path.removeprefix("/v1/") in VERBS else "get")
    assert operation["summary"]
    assert operation["description"]
    assert set(operation["tags"]) <= {group.name for group in GROUPS}
    for parameter in operation["parameters"]:
        assert (resolve(parameter["$ref"]) if "$ref" in parameter else parameter)["description"]
    for answer in operation["responses"].values():
        assert answer["description"]
        assert "X-Request-ID" in answer["headers"]
        assert all("example" in content or content["examples"] for content in answer["content"].values())


@pytest.mark.parametrize("name", SCHEMAS)
def test_everything_has_a_description(name: str) -> None:
    """Every parameter, every option, and every field of every result."""
    schema = SCHEMAS[name]
    assert schema["description"]
    assert ":param" not in schema["description"]
    for field, told in schema.get("properties", {}).items():
        assert told.get("description") or field in ("do", "purpose"), f"{name}.{field} is not described"
        assert "`" * 2 not in told.get("description", "")


def test_no_docstring_describes_what_there_is_not() -> None:
    of = [verb.request for verb in VERBS.values()]
    of += [verb.result for verb in VERBS.values() if verb.result is not None]
    for cls in described.structs(of):
        fields = {field.name for field in msgspec.structs.fields(cls)}
        assert set(described.said_of(cls).parameters) <= fields, cls


@pytest.mark.parametrize("verb", VERBS)
def test_parameters_defaults_and_refusals_are_the_structs_own(verb: str) -> None:
    for cls in described.structs([VERBS[verb].request]):
        schema = SCHEMAS[cls.__name__]
        assert schema["additionalProperties"] is False
        for field in msgspec.structs.fields(cls):
            told = schema["properties"][field.encode_name]
            assert (field.encode_name in schema["required"]) == field.required
            if not field.required:
                default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
                assert told["default"] == msgspec.to_builtins(default)


@pytest.mark.parametrize("verb", VERBS)
def test_examples_are_what_verbs_take_and_answer(verb: str) -> None:
    operation = DOCUMENT["paths"][f"/v1/{verb}"]["post"]
    asked = operation["requestBody"]["content"]["application/json"]
    answered = operation["responses"]["200"]["content"]["application/json"]
    assert VERBS[verb].examples
    for example in VERBS[verb].examples:
        msgspec.convert(example.request, VERBS[verb].request)
        answer = msgspec.convert(example.answer, VERBS[verb].result)
        assert msgspec.json.decode(msgspec.json.encode(answer)) == example.answer
        validator(asked["schema"]).validate(example.request)
        validator(answered["schema"]).validate(example.answer)
    assert [found["value"] for found in asked["examples"].values()] == [
        example.request for example in VERBS[verb].examples
    ]


def test_examples_of_errors_are_problems() -> None:
    for path, _, operation in OPERATIONS:
        for status, answer in operation["responses"].items():
            for told in answer["content"].values():
                for code, example in told.get("examples", {}).items():
                    if "$ref" in example:
                        validator(told["schema"]).validate(resolve(example["$ref"])["value"])
                        assert CODES[code].http_status == int(status), path


def codes_of(operation: dict[str, Any]) -> set[str]:
    return {
        code
        for answer in operation["responses"].values()
        for told in answer["content"].values()
        if "allOf" in told["schema"]
        for code in told["schema"]["allOf"][1]["properties"]["code"]["enum"]
    }


@pytest.mark.parametrize("verb", VERBS)
def test_errors_follow_from_the_parameters(verb: str) -> None:
    """What can be told of the table of errors by what verbs take and need."""
    fields = {field.name: field for field in msgspec.structs.fields(VERBS[verb].request)}
    options = fields.get("options")
    choices = {field.name for field in msgspec.structs.fields(options.type)} if options else set()
    codes = codes_of(DOCUMENT["paths"][f"/v1/{verb}"]["post"])
    assert codes == EVERY_CALL | VERBS[verb].errors
    assert not EVERY_CALL & VERBS[verb].errors
    on_repository = bool({"repository_id", "target_repo_id"} & set(fields)) or verb.startswith("disconnect")
    assert ("RepositoryNotConnected" in codes) == on_repository
    on_image = bool({"image_id", "base_snapshot_id", "base_virtual_disk_id"} & set(fields))
    assert ("ImageNotFound" in codes) == (on_image and on_repository)
    assert ("ImageIdInUse" in codes) == ("new_image_id" in choices)
    on_place = verb in ("createStorageRepository", "connectStorageRepository", "removeStorageRepository")
    assert ("PathNotAllowed" in codes) == ("path" in fields or on_place)
    assert ("RevisionMismatch" in codes) == ("if_revision" in choices)
    assert ("UnknownRepositoryFormat" in codes) == ("repo_format" in fields or on_repository)
    assert ("TaskNotFound" in codes) == ("task_id" in fields)
    writes = VERBS[verb].access != "read" or "deep" in choices  # a deep check notes damage
    assert ("NoSpace" in codes) == (writes and verb != "fixStorageRepository")


def test_every_error_is_some_verbs() -> None:
    assert EVERY_CALL.union(*(verb.errors for verb in VERBS.values())) == set(CODES) - NEVER


@pytest.mark.parametrize("verb", VERBS)
def test_who_may_call(verb: str) -> None:
    operation = DOCUMENT["paths"][f"/v1/{verb}"]["post"]
    assert operation["security"] == [{"token": [VERBS[verb].access]}, {}]
