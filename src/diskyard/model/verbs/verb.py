"""What there is to say of a verb: one row has all of it (decision 0041)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from diskyard.model import requests as ask
from diskyard.model.results import Task

#: What a token may do: each includes the ones before it.
Access = Literal["read", "write", "admin"]
Codes = frozenset[str]

#: HTTP's own, a body that is not of the verb's form, and defects.
EVERY_CALL: Codes = frozenset(
    ("InvalidParameter", "Unauthorized", "Forbidden", "RequestTooLarge", "TooManyRequests", "InternalError")
)
# What several verbs may answer beside that.
STATE_FOLDER: Codes = frozenset(("RepositoryUnavailable", "StorageError"))
OPENING: Codes = STATE_FOLDER | {"UnknownRepositoryFormat", "NotARepository", "CorruptRecord", "Unsupported"}
READING: Codes = OPENING | {"RepositoryNotConnected"}
WRITING: Codes = READING | {"NoSpace"}
IMAGE: Codes = frozenset(("ImageNotFound",))
#: Of what opens volumes: one cannot be read, is written to, or has a second name.
OPENED: Codes = frozenset(("ImageBroken", "ImageInUse", "UnsafeImage"))
NEW_IMAGE: Codes = WRITING | {"ImageIdInUse", "LeaseHeld"}


class Example(NamedTuple):
    """One call of a verb.

    :param shows: what it is an example of.
    :param request: the parameters as sent.
    :param answer: what is answered, if all goes well.
    """

    shows: str
    request: dict[str, Any]
    answer: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Verb:
    """One verb of the API. Its name is that of the request, with a small first letter.

    :param request: its parameters; its docstring is what people are told of the verb.
    :param access: the scope that a token needs for it.
    :param module: the module of Diskyard that has its function, which is named as the verb is, in
        snake_case, and takes an ``Engine`` and the request. It is imported when the verb is called first.
    :param result: the type of its answer; None if it answers nothing.
    :param starts_tasks: it may start tasks after its commit.
    :param is_of_guests: a guest waits for it: it is not refused for what else its caller has asked for.
    :param is_long: its work may grow with what a repository, or this host, has in all.
    :param errors: the codes that it may answer, beyond :data:`EVERY_CALL`. Reviewed by hand, as no
        analysis can tell: ``tests/conftest.py`` refuses every error that a verb raises in any test and
        that is not here.
    :param examples: at least one.
    """

    request: type[ask.Request]
    access: Access
    module: str
    result: Any = None
    starts_tasks: bool = False
    is_of_guests: bool = False
    is_long: bool = False
    errors: Codes = frozenset()
    examples: tuple[Example, ...] = ()

    @property
    def name(self) -> str:
        """The name on the wire."""
        return self.request.__name__[0].lower() + self.request.__name__[1:]

    @property
    def function(self) -> str:
        """The name of the function that does it."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", self.request.__name__).lower()

    @property
    def only_looks(self) -> bool:
        """Whether it changes nothing that a caller sees."""
        return self.access == "read"

    @property
    def is_task(self) -> bool:
        """Whether what it does is a task, which it answers."""
        return self.starts_tasks and self.result is Task

    def access_of(self, request: ask.Request) -> Access:
        """The scope for one request: a deep check notes what it finds in the repository."""
        deep = isinstance(request, ask.CheckStorageRepository) and request.options.deep
        return "write" if deep and self.access == "read" else self.access

    def may_add_tasks(self, request: ask.Request) -> bool:
        """Whether a call may add to what waits; that a guest begins and ends can be said at any time."""
        if self.is_task:
            return True
        auto_fix = getattr(getattr(request, "options", None), "auto_fix", False)
        return self.starts_tasks and bool(auto_fix) and not self.is_of_guests


class Group(NamedTuple):
    """Verbs that people look for in one place.

    :param text: a sentence on them.
    """

    name: str
    text: str
    verbs: tuple[Verb, ...]
