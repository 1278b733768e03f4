"""Running verbs: each is a row of the table (model/verbs), which names its function."""

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
    """The function of a verb. It returns the result, or an Outcome that says what to run next.

    It is imported at the first call of the verb: the code that moves bytes is half of the whole program, and
    a command that only lists, for example, does not need it. A process that lives long imports everything
    at its start (service/whole.py).
    """
    function: Callable[[Engine, Any], Any] = getattr(import_module(f"diskyard.{verb.module}"), verb.function)
    return function


def run(service: Service, request: Request) -> Any:
    """Run a decoded request.

    :raises diskyard.errors.DiskyardError: one of Diskyard's errors. Errors of the system are turned into
        such; an unexpected exception becomes the cause of an InternalError.
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
    """A context for running a verb, which turns every exception into one of Diskyard's errors.

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
    """Run a verb by its name with JSON-like parameters. Return a JSON-like result.

    :raises diskyard.errors.DiskyardError: one of Diskyard's errors, and nothing else.
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
