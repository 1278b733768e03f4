"""Parameters as a verb's struct has them, or a refusal before anything is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from diskyard import errors
from diskyard.model.requests import Request

Form = TypeVar("Form", bound=Request)


def require_form(kind: type[Form], name: str, words: Mapping[str, Any]) -> Form:
    """The request of a verb's parameters.

    :raises diskyard.errors.InvalidParameter: the parameters are not of the verb's form.
    """
    try:
        return msgspec.convert(words, kind)
    except (msgspec.ValidationError, TypeError, RecursionError) as error:
        raise errors.InvalidParameter(f"{name}: {error}.") from error
