"""Running verbs: each is a row of the table (model/verbs) and the function that it names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import msgspec

from diskyard import errors
from diskyard.model.requests import Request
from diskyard.model.verbs import BY_REQUEST, VERBS, Verb
from diskyard.operations.engine import Engine, Outcome
from diskyard.service.service import Service

__all__ = ["VERBS", "Verb", "call", "function_of", "run", "run_unwatched", "translated"]


@cache
def function_of(verb: Verb) -> Callable[[Engine, Any], Any]:
    """What does a verb: it answers, or says in an Outcome what is to be run next.

    Imported when the verb is called first: what moves bytes is half of all there is, and who only looks,
    such as a command that lists, needs none of it. A process that lives long has imported all
    (service/whole.py).
    """
    function: Callable[[Engine, Any], Any] = getattr(import_module(f"diskyard.{verb.module}"), verb.function)
    return function


def run(service: Service, request: Request) -> Any:
    """Run a decoded request.

    :raises diskyard.errors.DiskyardError: of the table; errors of the system become such too,
        and what nobody expected is an InternalError that has it as its cause.
    """
    verb = BY_REQUEST[type(request)]
    return service.supervisor.run(lambda: run_unwatched(service, request), may_be_done=not verb.only_looks)


def run_unwatched(service: Service, request: Request) -> Any:
    """Run a decoded request in this thread, however long the storage takes.

    :raises diskyard.errors.DiskyardError: as :func:`run` says.
    """
    verb = BY_REQUEST[type(request)]
    with translated(verb):
        if verb.may_add_tasks(request):
            service.tasks.require_free_space()
        answer = function_of(verb)(service.engine, request)
        return service.finish(verb, request, answer) if isinstance(answer, Outcome) else answer


@contextmanager
def translated(verb: Verb) -> Iterator[None]:
    """While a verb runs: what it raises becomes an error of the table.

    :raises diskyard.errors.DiskyardError: as :func:`run` says.
    """
    try:
        yield
    except errors.DiskyardError:
        raise
    except OSError as error:
        raise errors.from_os_error(error, f"running {verb.name}") from error
    except Exception as error:
        raise errors.unexpected(error) from error


def call(service: Service, name: str, parameters: Any) -> Any:
    """Run a verb by its name with JSON-like parameters; a JSON-like answer.

    :raises diskyard.errors.DiskyardError: of the table; it raises nothing else.
    """
    verb = VERBS.get(name)
    if verb is None:
        raise errors.InvalidParameter(
            f"There is no verb {name!r:.80}.", advice=f"The verbs are: {', '.join(VERBS)}."
        )
    try:
        request = msgspec.convert(parameters, verb.request)
    except (msgspec.ValidationError, RecursionError) as error:
        raise errors.InvalidParameter(f"{name}: {error}.") from error
    return msgspec.to_builtins(run(service, request))
