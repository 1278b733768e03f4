"""A row of the table of verbs. It has everything there is to say of one verb (decision 0041)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from diskyard.model import requests as ask
from diskyard.model.results import Task

#: What a token may do. Each scope includes the ones before it.
Access = Literal["read", "write", "admin"]
Codes = frozenset[str]

#: The errors of HTTP itself, of a body that does not have the verb's form, and of defects.
EVERY_CALL: Codes = frozenset(
    ("InvalidParameter", "Unauthorized", "Forbidden", "RequestTooLarge", "TooManyRequests", "InternalError")
)
# What several verbs may raise besides those.
STATE_FOLDER: Codes = frozenset(("RepositoryUnavailable", "StorageError"))
OPENING: Codes = STATE_FOLDER | {"UnknownRepositoryFormat", "NotARepository", "CorruptRecord", "Unsupported"}
READING: Codes = OPENING | {"RepositoryNotConnected"}
WRITING: Codes = READING | {"NoSpace"}
IMAGE: Codes = frozenset(("ImageNotFound",))
#: Of verbs that open volumes: one cannot be read, is being written to, or has a second name.
OPENED: Codes = frozenset(("ImageBroken", "ImageInUse", "UnsafeImage"))
NEW_IMAGE: Codes = WRITING | {"ImageIdInUse", "LeaseHeld"}


class Example(NamedTuple):
    """One call of a verb.

    :param shows: what it is an example of.
    :param request: the parameters as sent.
    :param answer: the result, if all goes well.
    """

    shows: str
    request: dict[str, Any]
    answer: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Verb:
    """One verb of the API. Its name is that of the request, with a small first letter.

    :param request: its parameters. The docstring is the verb's public description.
    :param access: the scope that a token needs for it.
    :param module: the module of Diskyard with the verb's function, which has the verb's name in
        snake_case, and takes an ``Engine`` and the request. It is imported at the first call of the verb.
    :param result: the type of its result; None if there is none.
    :param starts_tasks: it may start tasks after its commit.
    :param is_of_guests: a guest waits for it, so it is let in even if its caller has too many tasks waiting.
    :param is_long: its work may grow with the size of a repository, or with everything on this host.
    :param errors: the codes that it may raise, beyond :data:`EVERY_CALL`. They are reviewed by hand, as no
        analysis can find them: ``tests/conftest.py`` refuses every error that a verb raises in any test and
        that is not listed here.
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
        """The name of the verb's function."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", self.request.__name__).lower()

    @property
    def only_looks(self) -> bool:
        """Whether it changes nothing that matters to its caller; a deep check records damage all the same."""
        return self.access == "read"

    @property
    def is_task(self) -> bool:
        """Whether its work is a task, and the task is its result."""
        return self.starts_tasks and self.result is Task

    def access_of(self, request: ask.Request) -> Access:
        """The scope for one request: a deep check records what it finds in the repository."""
        deep = isinstance(request, ask.CheckStorageRepository) and request.options.deep
        return "write" if deep and self.access == "read" else self.access

    def may_add_tasks(self, request: ask.Request) -> bool:
        """Whether a call may add tasks. Calls about guests never count: they must be possible at any time."""
        if self.is_task:
            return True
        auto_fix = getattr(getattr(request, "options", None), "auto_fix", False)
        return self.starts_tasks and bool(auto_fix) and not self.is_of_guests


class Group(NamedTuple):
    """Verbs that people look for together.

    :param text: a sentence about them.
    """

    name: str
    text: str
    verbs: tuple[Verb, ...]
