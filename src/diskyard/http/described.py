"""JSON schemas of structs, with the descriptions of fields from their docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import inspect as types

REFERENCE = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"^:param (\w+):\s*(.*)$")
_FIELD = re.compile(r"^:\w+( [\w.]+)?:")


@dataclass(frozen=True, slots=True)
class Said:
    """What a docstring says.

    :param summary: its first sentence, without the full stop.
    :param more: the paragraphs between the summary and the fields.
    :param parameters: its text for each parameter, by the parameter's name in Python.
    """

    summary: str
    more: list[str]
    parameters: dict[str, str]


def said_of(cls: type) -> Said:
    """What a class's docstring says, and for parameters also what those of its bases say."""
    lines = inspect.cleandoc(cls.__doc__ or "").splitlines()
    start = next((at for at, line in enumerate(lines) if _FIELD.match(line)), len(lines))
    text = _plain("\n".join(lines[:start]).strip())
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    parameters: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        parameters |= _parameters(inspect.cleandoc(base.__dict__.get("__doc__") or ""))
    return Said(paragraphs[0].removesuffix("."), paragraphs[1:], parameters)


def _parameters(docstring: str) -> dict[str, str]:
    found: dict[str, str] = {}
    name = None
    for line in docstring.splitlines():
        if match := _PARAMETER.match(line):
            name = match[1]
            found[name] = match[2]
        elif name is not None and line.startswith(" "):
            found[name] += f" {line.strip()}"
        else:
            name = None
    return {name: _sentence(text) for name, text in found.items()}


def _sentence(text: str) -> str:
    plain = _plain(text)
    # A text may begin with a parameter's name on the wire, which keeps its small letter.
    return plain if plain.startswith("`") else plain[:1].upper() + plain[1:]


def _plain(text: str) -> str:
    """Markdown for OpenAPI, from the few forms of reStructuredText that docstrings use."""
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")


def components(of: Iterable[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The schemas of types, and the components that they refer to, each field described."""
    wanted = list(of)
    schemas, found = msgspec.json.schema_components(wanted, ref_template=REFERENCE)
    for cls in structs(wanted):
        _describe(found[cls.__name__], cls)
    return list(schemas), found


def _describe(schema: dict[str, Any], cls: type[msgspec.Struct]) -> None:
    said = said_of(cls)
    schema["description"] = "\n\n".join((f"{said.summary}.", *said.more))
    for field in msgspec.structs.fields(cls):
        if field.name in said.parameters:
            schema["properties"][field.encode_name]["description"] = said.parameters[field.name]


def structs(of: Iterable[Any]) -> list[type[msgspec.Struct]]:
    """Every struct that these types consist of, each once."""
    found: dict[type[msgspec.Struct], None] = {}
    for told in types.multi_type_info(of):
        found |= dict.fromkeys(_structs(told, set()))
    return list(found)


def _structs(told: types.Type, seen: set[type]) -> Iterator[type[msgspec.Struct]]:
    if isinstance(told, types.StructType):
        if told.cls in seen:
            return
        seen.add(told.cls)
        yield told.cls
        inner = [field.type for field in told.fields]
    elif isinstance(told, types.UnionType):
        inner = list(told.types)
    elif isinstance(told, types.DictType):
        inner = [told.key_type, told.value_type]
    elif isinstance(told, types.ListType | types.VarTupleType):
        inner = [told.item_type]
    elif isinstance(told, types.Metadata):
        inner = [told.type]
    else:
        inner = []
    for part in inner:
        yield from _structs(part, seen)
