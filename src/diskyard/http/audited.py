"""What the audit trail keeps of a call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec

from diskyard import errors
from diskyard.http.access import Sender
from diskyard.http.running import Answer, repository_of
from diskyard.model import requests as ask
from diskyard.model.verbs import Verb


class AuditTrail(Protocol):
    """Keeps the record of who did what."""

    def note(self, call: AuditedCall) -> None:
        """Keep a call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedCall:
    """A verb that was called, or a request that was not let in.

    :param verb: empty if the request was refused before its verb was read.
    :param image_id: the image in the request, or the one that was made.
    :param outcome: ``ok``, or the code of the error.
    :param task_ids: the tasks that it started, or was to stop.
    """

    request_id: str
    actor: str
    peer: str
    verb: str
    repository_id: str | None
    image_id: str | None
    outcome: str
    duration_s: float
    task_ids: tuple[str, ...] = ()


def is_audited(verb: Verb | None, request: ask.Request | None, outcome: str) -> bool:
    """Whether a call may change something, or wanted more than its caller may do or see."""
    access = "read" if verb is None else verb.access if request is None else verb.access_of(request)
    return access != "read" or outcome == errors.Forbidden.__name__


def about(request: ask.Request | None, answer: Answer) -> tuple[str | None, str | None]:
    """The repository and the image that a call was about, as far as that is known."""
    if request is None:
        return None, None
    fix = request.fix if isinstance(request, ask.FixStorageRepository) else None
    image_id = getattr(request, "image_id", None) if fix is None else fix.image_id
    if image_id is None and answer.first and answer.rest is None:
        made = msgspec.json.decode(answer.first)
        image_id = made if isinstance(made, str) else None
    return repository_of(request), image_id


def tasks_of(request: ask.Request | None, sender: Sender) -> tuple[str, ...]:
    """The tasks that a call started, or was to stop."""
    if isinstance(request, ask.StopTask):
        return (request.task_id,)
    return tuple(sender.caller.started)
