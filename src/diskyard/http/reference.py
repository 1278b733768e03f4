"""The API's description as one page: no script, and nothing from elsewhere."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from html import escape
from typing import Any

from diskyard.http import openapi
from diskyard.http.page_style import CONTENT_SECURITY_POLICY, STYLE
from diskyard.model.records import UUID_PATTERN

__all__ = ["CONTENT_SECURITY_POLICY", "encoded", "page"]

_SOCKET = "/run/diskyard/diskyard.sock"
_BODY_TYPE = "application/json"
_LINE = 72  # an example is easy to read in a line of so many characters
_Schema = dict[str, Any]


@cache
def encoded() -> bytes:
    """The page of this daemon's document; made once, at the first request."""
    return page(openapi.document()).encode()


def page(document: dict[str, Any]) -> str:
    """An OpenAPI document of this package as HTML."""
    return _Page(document).html()


class _Page:
    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._schemas: dict[str, _Schema] = document["components"]["schemas"]
        self._operations = {
            operation["operationId"]: (method.upper(), path, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        }

    def html(self) -> str:
        info = self._document["info"]
        tags = {
            tag["name"]: [
                name for name, (_, _, found) in self._operations.items() if tag["name"] in found["tags"]
            ]
            for tag in self._document["tags"]
        }
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(info['title'])} API</title><style>{STYLE}</style></head>"
            f'<body><div class="frame">{self._contents(tags)}<main>'
            f"<h1>{escape(info['title'])} API</h1>"
            f'<p class="where">Version {escape(info["version"])} · '
            '<a href="/openapi.json">OpenAPI document</a></p>'
            f"{_prose(info['description'])}{''.join(self._group(tag, names) for tag, names in tags.items())}"
            f"<h2>Values</h2>{''.join(self._value(name) for name in self._shown_values())}"
            "</main></div></body></html>\n"
        )

    def _contents(self, tags: dict[str, list[str]]) -> str:
        groups = "".join(
            f"<h2>{escape(tag)}</h2><ul>{''.join(_entry(name, name) for name in names)}</ul>"
            for tag, names in tags.items()
        )
        values = "".join(_entry(f"value-{name}", name) for name in self._shown_values())
        return f"<nav><strong>Diskyard API</strong>{groups}<h2>values</h2><ul>{values}</ul></nav>"

    def _group(self, tag: str, names: list[str]) -> str:
        text = next(found["description"] for found in self._document["tags"] if found["name"] == tag)
        return f"<h2>{escape(tag)}</h2>{_prose(text)}{''.join(self._operation(name) for name in names)}"

    def _operation(self, name: str) -> str:
        method, path, operation = self._operations[name]
        scopes = [scope for way in operation["security"] for found in way.values() for scope in found]
        scope = scopes[0] if scopes else "none"
        said = f"scope {scope}" if scopes else "no token"
        return (
            f'<section id="{escape(name)}"><h3>{escape(name)} <span class="scope {scope}">{said}</span></h3>'
            f'<p class="where"><code>{method} {escape(path)}</code></p>'
            f"{_prose(operation['summary'] + '.')}{_prose(operation['description'])}"
            f"{self._parameters(operation)}{self._answer(operation)}{_examples(method, path, operation)}"
            f"{self._errors(operation)}</section>"
        )

    # -- parameters and results --------------------------------------------------------------

    def _parameters(self, operation: _Schema) -> str:
        if "requestBody" in operation:
            schema = operation["requestBody"]["content"][_BODY_TYPE]["schema"]
            rows = "".join(self._rows(self._resolve(schema), ""))
        else:
            rows = "".join(
                self._row(found["name"], found["schema"], found["description"])
                for found in operation["parameters"]
                if "name" in found
            )
        if not rows:
            return '<h4>Parameters</h4><p class="faint">None.</p>'
        return f"<h4>Parameters</h4>{_table(('name', 'type', ''), rows)}"

    def _rows(self, schema: _Schema, prefix: str) -> Iterator[str]:
        """A row for each parameter. Those of options follow right after."""
        for name, field in schema["properties"].items():
            required = name in schema.get("required", ())
            is_options = not prefix and "$ref" in field and name == "options"
            shown = {key: value for key, value in field.items() if key != "default" or not is_options}
            yield self._row(prefix + name, shown, field.get("description", ""), required=required)
            if is_options:
                yield from self._rows(self._resolve(field), f"{name}.")

    def _row(self, name: str, schema: _Schema, text: str, *, required: bool = False) -> str:
        default = (
            f" Default: <code>{escape(json.dumps(schema['default']))}</code>." if "default" in schema else ""
        )
        must = ' <span class="must">required</span>' if required else ""
        return (
            f'<tr><td><code>{escape(name)}</code>{must}</td><td class="kind">{self._kind(schema)}</td>'
            f"<td>{_inline(text)}{default}</td></tr>"
        )

    def _answer(self, operation: _Schema) -> str:
        answer = operation["responses"]["200"]
        media_type, content = next(iter(answer["content"].items()))
        kind = self._kind(content["schema"])
        told = "" if media_type == _BODY_TYPE else f" as <code>{escape(media_type)}</code>"
        more = "".join(
            f"<li><code>{escape(name)}</code>: {_inline(self._resolve(header)['description'])}</li>"
            for name, header in answer["headers"].items()
            if name != "X-Request-ID"
        )
        what = "Nothing: <code>null</code>." if content["schema"] == {"type": "null"} else f"{kind}{told}."
        what += f" {_inline(content['schema'].get('description', ''))}"
        return f"<h4>Result</h4><p>{what}</p>" + (f"<ul>{more}</ul>" if more else "")

    def _value(self, name: str) -> str:
        schema = self._schemas[name]
        rows = "".join(
            self._row(field, told, told.get("description", ""))
            for field, told in schema.get("properties", {}).items()
        )
        table = _table(("name", "type", ""), rows) if rows else f"<p>{self._kind(schema)}</p>"
        return f'<section id="value-{name}"><h3>{name}</h3>{_prose(schema["description"])}{table}</section>'

    def _shown_values(self) -> list[str]:
        """The components that operations return, and their parts, except for opaque ones."""
        bodies = {
            operation["requestBody"]["content"][_BODY_TYPE]["schema"]["$ref"].rpartition("/")[2]
            for _, _, operation in self._operations.values()
            if "requestBody" in operation
        }
        return [
            name
            for name, schema in self._schemas.items()
            if name not in bodies and not name.endswith("Options") and not _is_variant(schema)
        ]

    def _kind(self, schema: _Schema) -> str:
        """The type of a value, as HTML."""
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            if name.endswith("Options"):
                return "object"
            return f'<a href="#value-{name}">{name}</a>'
        if "discriminator" in schema:
            return f"object, by its <code>{escape(schema['discriminator']['propertyName'])}</code>"
        for key in ("anyOf", "allOf"):
            if key in schema:
                return " or ".join(self._kind(found) for found in schema[key])
        if "enum" in schema:
            return " or ".join(f"<code>{escape(json.dumps(found))}</code>" for found in schema["enum"])
        if "const" in schema:
            return f"<code>{escape(json.dumps(schema['const']))}</code>"
        kind = schema.get("type", "any JSON")
        if kind == "array":
            return f"array of {self._kind(schema['items'])}"
        if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
            return f"object of {self._kind(schema['additionalProperties'])}"
        return escape(" or ".join(kind) if isinstance(kind, list) else kind) + _bounds(schema)

    def _resolve(self, schema: _Schema) -> _Schema:
        if "$ref" not in schema:
            return schema
        found: Any = self._document
        for name in schema["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        resolved: _Schema = found
        return resolved

    # -- errors -----------------------------------------------------------------------------

    def _errors(self, operation: _Schema) -> str:
        rows = "".join(
            f"<tr><td>{status}</td><td><code>{escape(code)}</code></td><td>{escape(shown['title'])} "
            f'<span class="faint">{escape(shown["advice"])}</span></td></tr>'
            for status, answer in operation["responses"].items()
            for content in answer["content"].values()
            for code, found in content.get("examples", {}).items()
            if "$ref" in found
            for shown in (self._resolve(found)["value"],)
        )
        return f"<details><summary>Errors</summary>{_table(('status', 'code', ''), rows)}</details>"


def _is_variant(schema: _Schema) -> bool:
    """Whether a schema is one of several that a member's value distinguishes."""
    return any(len(field.get("enum", ())) == 1 for field in schema.get("properties", {}).values())


def _bounds(schema: _Schema) -> str:
    if schema.get("pattern") == UUID_PATTERN:
        return " (a UUID)"
    if "maxLength" in schema:
        return f" of {schema['minLength']} to {schema['maxLength']} characters"
    names = (("minimum", "from"), ("maximum", "to"), ("multipleOf", "a multiple of"))
    words = [f"{word} {schema[key]:,}" for key, word in names if key in schema]
    return f", {' '.join(words)}" if words else ""


def _examples(method: str, path: str, operation: _Schema) -> str:
    if "requestBody" not in operation:
        shown = next(iter(operation["responses"]["200"]["content"].values()))["example"]
        text = shown if isinstance(shown, str) else json.dumps(shown, indent=2)
        return f"<details><summary>Example</summary>{_code(_curl(path, None))}{_code(text)}</details>"
    asked = operation["requestBody"]["content"][_BODY_TYPE]["examples"]
    answered = operation["responses"]["200"]["content"][_BODY_TYPE]["examples"]
    return "".join(
        f"<details><summary>Example: {escape(example['summary'])}</summary>"
        f"{_code(_curl(path, example['value']))}"
        f"{_code(json.dumps(answered[key]['value'], indent=2, ensure_ascii=False))}</details>"
        for key, example in asked.items()
    )


def _curl(path: str, body: Any) -> str:
    words = f"curl --unix-socket {_SOCKET} http://localhost{path}"
    if body is None:
        return words
    text = json.dumps(body, ensure_ascii=False)
    if len(text) > _LINE:
        text = json.dumps(body, ensure_ascii=False, indent=2)
    return f"{words} \\\n  --json {shlex.quote(text)}"


def _entry(anchor: str, text: str) -> str:
    return f'<li><a href="#{escape(anchor)}">{escape(text)}</a></li>'


def _code(text: str) -> str:
    return f"<pre><code>{escape(text)}</code></pre>"


def _table(heads: tuple[str, ...], rows: str) -> str:
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _prose(text: str) -> str:
    """Paragraphs and lists, from the few forms of Markdown that the document has."""
    parts = []
    for paragraph in text.strip().split("\n\n"):
        if paragraph.startswith("- "):
            items = re.split(r"^- ", paragraph, flags=re.MULTILINE)[1:]
            parts.append("<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>")
        else:
            parts.append(f"<p>{_inline(paragraph)}</p>")
    return "".join(parts)


def _inline(text: str) -> str:
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", marked)
