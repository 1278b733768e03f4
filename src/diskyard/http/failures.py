"""Which errors each verb may answer: those of its row, and those that every call may get."""

from __future__ import annotations

from diskyard import errors
from diskyard.model.verbs import Verb

#: HTTP's own, a body that is not of the verb's form, and defects.
EVERY_CALL = frozenset(
    (
        "InvalidParameter",
        "Unauthorized",
        "Forbidden",
        "RequestTooLarge",
        "TooManyRequests",
        "InternalError",
    )
)


def may_answer(verb: Verb) -> list[type[errors.DiskyardError]]:
    """Every error that a verb may answer, in the order of their HTTP statuses."""
    codes = EVERY_CALL | verb.errors
    return sorted(
        (errors.CODES[code] for code in codes), key=lambda error: (error.http_status, error.__name__)
    )
