"""Parameters as they are sent, and refusing them before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from diskyard import errors
from diskyard.model.options import wire_name
from diskyard.model.requests import Request

DEFAULT_TIMEOUT_S = 600.0
Options = Mapping[str, Any]
Form = TypeVar("Form", bound=Request)


def require_form(kind: type[Form], name: str, words: Mapping[str, Any]) -> Form:
    """The request with a verb's parameters.

    :raises diskyard.errors.InvalidParameter: the parameters do not have the verb's form.
    """
    try:
        return msgspec.convert(words, kind)
    except (msgspec.ValidationError, TypeError, RecursionError) as error:
        raise errors.InvalidParameter(f"{name}: {error}.") from error


def words_of(kind: type[Request], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters in snake_case as JSON-like values with their names on the wire.

    :raises diskyard.errors.InvalidParameter: a value cannot be JSON.
    """
    words: dict[str, Any] = {}
    for name, value in parameters.items():
        if name == "options":
            value = {wire_name(key): found for key, found in (value or {}).items()}
        words[wire_name(name)] = value
    try:
        built: dict[str, Any] = msgspec.to_builtins(words)
    except (TypeError, RecursionError) as error:
        raise errors.InvalidParameter(f"{kind.__name__}: {error}.") from error
    return built


def or_empty(user_data: Any) -> Any:
    """The userData given, or an empty object."""
    return {} if user_data is msgspec.UNSET else user_data
