"""The daemon's wire protocol, without any input or output: addresses, calls, answers, events."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from diskyard import errors
from diskyard.client.form import require_form
from diskyard.model import requests as ask
from diskyard.model.fix import Fix
from diskyard.model.results import Event
from diskyard.model.verbs import BY_REQUEST, VERBS

TASKS_HEADER = "Diskyard-Tasks"
REQUEST_ID_HEADER = "X-Request-ID"
PROBLEM_TYPE = "application/problem+json"
_VERB = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_TOKEN = re.compile(r"[!-~]+")
_UNIX = "unix://"
_SHOWN_LIMIT = 300
#: Members of a problem that are not details of the error.
_PROBLEM_MEMBERS = {"type", "title", "status", "detail", "code", "advice", "retryable"}
_BY_STATUS: dict[int, type[errors.DiskyardError]] = {
    401: errors.Unauthorized,
    403: errors.Forbidden,
    413: errors.RequestTooLarge,
    429: errors.TooManyRequests,
    502: errors.RepositoryUnavailable,
    503: errors.RepositoryUnavailable,
    504: errors.RepositoryUnavailable,
}


class ReceivedFix(Fix, kw_only=True, frozen=True, forbid_unknown_fields=False):
    """A fix as a daemon listed it. Its opaque part is sent back unchanged, whatever it means."""

    data: Any


class _FixAsReceived(ask.FixStorageRepository, kw_only=True, frozen=True):
    """fixStorageRepository, with a fix that may come from a newer version than this client's."""

    fix: ReceivedFix


# -- addresses -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Address:
    """Where a daemon listens.

    :param url: as it was given.
    :param base: the URL that HTTP paths are appended to.
    :param socket: the path of the Unix socket; None for TLS.
    """

    url: str
    base: str
    socket: str | None

    @classmethod
    def parse(cls, url: str) -> Address:
        """The address that a URL names.

        :raises diskyard.errors.InvalidParameter: it is not a daemon's URL.
        """
        if url.startswith(_UNIX + "/"):
            return cls(url, "http://localhost", url.removeprefix(_UNIX))
        from urllib.parse import urlsplit

        try:
            parts = urlsplit(url)
            is_plain = (parts.path.strip("/"), parts.query, parts.fragment, parts.username) == (
                "",
                "",
                "",
                None,
            )
            if parts.scheme == "https" and parts.hostname and is_plain and parts.port != 0:
                return cls(url, f"https://{parts.netloc}", None)
        except ValueError:
            pass  # refused below, as any other URL that is not a daemon's
        raise errors.InvalidParameter(
            f"{url!r:.300} is not the URL of a daemon.",
            advice="Give unix:///path/to.sock or https://host:port.",
        )


def require_token(token: str) -> str:
    """The token, if it can be sent.

    :raises diskyard.errors.InvalidParameter: it contains characters that no token has.
    """
    if not _TOKEN.fullmatch(token):
        raise errors.InvalidParameter(
            "The token contains characters that no token contains.",
            advice="Give the token exactly as 'diskyard token' printed it.",
        )
    return token


# -- calls -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a verb.

    :param body: its parameters as JSON.
    :param only_looks: whether it changes nothing.
    :param repeatable: whether doing it twice is the same as doing it once.
    :param result: the type of its result; Any for JSON-like values.
    :param lenient: the type to try if the result may come from a newer version.
    :param request_id: for the daemon's log.
    """

    verb: str
    body: bytes
    only_looks: bool
    repeatable: bool
    result: Any
    lenient: Any
    request_id: str

    @property
    def path(self) -> str:
        """The path that it is sent to."""
        return f"/v1/{self.verb}"


def typed_call(kind: type[ask.Request], words: Mapping[str, Any], new_id: str | None = None) -> Call:
    """A call of a verb.

    :param new_id: the id for a new image, if the caller gave none.
    :raises diskyard.errors.InvalidParameter: the parameters do not have the verb's form.
    """
    verb = BY_REQUEST[kind]
    if new_id is not None:
        words = {**words, "options": {**words.get("options", {}), "newImageId": new_id}}
    require_form(_FixAsReceived if kind is ask.FixStorageRepository else kind, verb.request.__name__, words)
    lenient = list[ReceivedFix] if kind is ask.CheckStorageRepository else None
    return _call(verb.name, words, verb.result, lenient)


def raw_call(verb: str, parameters: Any) -> Call:
    """A call of a verb that this client need not know.

    :raises diskyard.errors.InvalidParameter: it cannot be sent.
    """
    if not _VERB.fullmatch(verb):
        raise errors.InvalidParameter(f"There is no verb {verb!r:.80}.", advice="See GET /openapi.json.")
    return _call(verb, parameters, Any, None)


def _call(verb: str, parameters: Any, result: Any, lenient: Any) -> Call:
    known = VERBS.get(verb)
    only_looks = known is not None and known.only_looks
    repeatable = known is not None and (
        only_looks or (_makes_image(known.request) and _has_new_id(parameters))
    )
    try:
        body = msgspec.json.encode(parameters)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise errors.InvalidParameter(f"{verb}: {error}.") from error
    return Call(verb, body, only_looks, repeatable, result, lenient, uuid.uuid4().hex)


def new_id_for(kind: type[ask.Request], words: Mapping[str, Any]) -> str | None:
    """An id for the image that a call makes, so that it may be sent twice; None if it cannot have one.

    A copy gets none: its source may be a Snapshot, whose copy has the same id.
    """
    if kind is ask.CopyImage or not _makes_image(kind) or _has_new_id(words):
        return None
    return str(uuid.uuid4())


def _makes_image(kind: type[ask.Request]) -> bool:
    options = {field.name: field.type for field in msgspec.structs.fields(kind)}.get("options")
    return "new_image_id" in getattr(options, "__struct_fields__", ())


def _has_new_id(words: Any) -> bool:
    options = words.get("options") if isinstance(words, Mapping) else None
    return isinstance(options, Mapping) and options.get("newImageId") is not None


# -- answers ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """A response over HTTP.

    :param url: of the daemon that was called.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    def decoded(self, result: Any, lenient: Any = None) -> Any:
        """The result in an answer that is not an error.

        :param lenient: another type, for a result that does not have the expected type.
        :raises diskyard.errors.DiskyardError: the answer is an error, or does not have the expected type.
        """
        if self.status != 200:
            raise self.error()
        try:
            return msgspec.json.decode(self.body, type=result)
        except msgspec.ValidationError as error:
            if lenient is not None:
                return self.decoded(lenient)
            raise self._unreadable(error) from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> errors.InternalError:
        return errors.InternalError(
            f"The answer of {self.url} cannot be decoded: {error}.",
            advice="Compare the versions of the client and of the daemon. The call itself took effect.",
            requestId=self.headers.get(REQUEST_ID_HEADER),
        )

    def is_ours(self) -> bool:
        """Whether an error comes from a daemon, and not from a proxy in front of it."""
        return self._problem() is not None

    def error(self) -> errors.DiskyardError:
        """The error in the answer."""
        problem = self._problem()
        return self._foreign() if problem is None else _error(problem, str(problem.get("detail", "")))

    def _problem(self) -> dict[str, Any] | None:
        if self.headers.get("Content-Type", "").partition(";")[0].strip() != PROBLEM_TYPE:
            return None
        try:
            problem = msgspec.json.decode(self.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None  # no daemon sends this
        return problem if isinstance(problem, dict) and isinstance(problem.get("code"), str) else None

    def _foreign(self) -> errors.DiskyardError:
        """The error for an answer that no daemon sends, but a proxy or another server."""
        kind = _BY_STATUS.get(self.status, errors.InternalError)
        if self.status >= 500:
            kind = errors.unknown_outcome(kind)
        text = self.body[:_SHOWN_LIMIT].decode(errors="replace")
        shown = "".join(character if character.isprintable() else " " for character in text).strip()
        return kind(
            f"The server at {self.url} is not a Diskyard daemon: HTTP {self.status} {shown}",
            advice="Check the URL, and any proxy in between.",
            url=self.url,
        )


def error_of(told: Mapping[str, Any]) -> errors.DiskyardError:
    """The error that a task failed with, in the class of its code."""
    return _error(told, str(told.get("message", "")))


def _error(told: Mapping[str, Any], message: str) -> errors.DiskyardError:
    code = str(told.get("code"))
    known = errors.CODES.get(code)
    kind = known or errors.InternalError
    if told.get("outcome") == "unknown":
        kind = errors.unknown_outcome(kind)
    details = {
        str(name): value if isinstance(value, str) else msgspec.json.encode(value).decode()
        for name, value in told.items()
        if name not in _PROBLEM_MEMBERS and name != "message" and value is not None
    }
    if known is None:  # from a newer version
        return kind(
            f"{code}: {message}", advice=str(told.get("advice", "")), **{**details, "unknownCode": code}
        )
    return kind(message, advice=str(told["advice"]) if "advice" in told else None, **details)


# -- events ----------------------------------------------------------------------------------


class EventLines:
    """Makes events from the lines of a stream.

    :ivar last_id: the id of the last event, from which the next stream goes on.
    """

    def __init__(self, last_id: str | None = None) -> None:
        self.last_id = last_id
        self._kind = ""
        self._data: list[str] = []

    def take(self, line: str) -> Event | None:
        """The event that ends with this line; None if none does."""
        if not line:
            return self._end()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "id":
            self.last_id = value
        elif field == "event":
            self._kind = value
        elif field == "data":
            self._data.append(value)
        return None

    def _end(self) -> Event | None:
        kind, lines = self._kind, self._data
        self._kind, self._data = "", []
        if not lines:
            return None
        try:
            data = msgspec.json.decode("\n".join(lines))
            told = {"eventId": self.last_id or "", "kind": kind, "data": data}
            repository_id = data.get("repositoryId") if isinstance(data, dict) else None
            return msgspec.convert({**told, "repositoryId": repository_id}, Event)
        except msgspec.MsgspecError:
            return None  # a kind that only newer clients know
