"""The sender of a request, and what it may do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request

from diskyard import errors
from diskyard.caller import Caller, HandedFile, Share
from diskyard.model.verbs import Access

#: The header with the ticket of a file that was handed over for a request.
HANDED_HEADER = "Diskyard-Handed"
_RANK: dict[Access, int] = {"read": 0, "write": 1, "admin": 2}


class Grant(Protocol):
    """What a valid token allows."""

    @property
    def name(self) -> str:
        """The name that was given to the token."""

    @property
    def scope(self) -> Access:
        """The scope that the token has."""

    @property
    def repositories(self) -> tuple[str, ...] | None:
        """The repoIds that it is bound to; None for all."""

    @property
    def transfer_folders(self) -> tuple[str, ...] | None:
        """The only directories for its imports and exports; None for those of the configuration."""


class TokenCheck(Protocol):
    """Distinguishes valid tokens from others."""

    def verify(self, text: str) -> Grant | None:
        """What a token allows; None if it is not valid.

        :raises diskyard.errors.DiskyardError: the tokens cannot be read, so nobody is let in.
        """


class Handed(Protocol):
    """Keeps files that callers handed over until their requests come."""

    def take(self, ticket: str, actor: str) -> HandedFile | None:
        """The file of a ticket, once, for the caller that handed it over; None if there is none."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Somebody who may send requests.

    :param is_still_let_in: whether a long request may go on: False once the token is revoked or has
        expired.
    """

    caller: Caller
    scope: Access
    is_still_let_in: Callable[[], bool] = lambda: True

    @property
    def share(self) -> Share:
        """The sender's share of what all callers use."""
        return self.caller.share

    @property
    def limited(self) -> bool:
        """Whether the sender's requests are limited in rate."""
        return self.caller.is_limited

    def require(self, access: Access) -> None:
        """Refuse access that the scope does not include.

        :raises diskyard.errors.Forbidden: another scope is needed.
        """
        if _RANK[self.scope] < _RANK[access]:
            raise errors.Forbidden(
                f"This needs the scope {access}, and the token has {self.scope}.",
                advice=f"Use a token with the scope {access}.",
            )


class Authenticator:
    """Decides who may send requests.

    :param tokens: None if no token is valid.
    :param transfer_folders: the directories for imports and exports, except for tokens that name their own.
    :param repository_folders: the directories in which tokens may make, connect and remove repositories.
    :param handed: keeps the files that callers on the Unix socket hand over; None if nothing does.
    """

    def __init__(
        self,
        tokens: TokenCheck | None,
        transfer_folders: tuple[str, ...],
        repository_folders: tuple[str, ...],
        handed: Handed | None,
    ) -> None:
        self._handed = handed
        self._tokens = tokens
        self._transfer_folders = transfer_folders
        self._repository_folders = repository_folders

    def admit(self, request: Request, request_id: str) -> Sender:
        """Identify the sender of a request.

        Anyone who may open the Unix socket may do everything: the socket's mode and group decide who that is.

        :raises diskyard.errors.Unauthorized: the request has no valid token.
        :raises diskyard.errors.InvalidParameter: the file that it names as handed over is not here.
        """
        if request.scope["scheme"] == "http":
            actor = peer_of(request)
            file = self._handed_with(request, actor)
            caller = Caller(actor, request_id, transfer_folders=self._transfer_folders, handed=file)
            return Sender(caller, "admin")
        kind, _, text = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not text:
            raise errors.Unauthorized("The request carries no bearer token.")
        text = text.strip()
        grant = self._grant_of(text)
        if grant is None:
            raise errors.Unauthorized("The token is not valid: it is unknown, revoked or expired.")
        bound = None if grant.repositories is None else frozenset(grant.repositories)
        caller = Caller(
            f"token:{grant.name}",
            request_id,
            bound,
            self._transfer_folders if grant.transfer_folders is None else grant.transfer_folders,
            self._repository_folders,
            is_limited=True,
        )
        return Sender(caller, grant.scope, is_still_let_in=lambda: self._is_valid(text))

    def _handed_with(self, request: Request, actor: str) -> HandedFile | None:
        ticket = request.headers.get(HANDED_HEADER)
        if ticket is None:
            return None
        file = None if self._handed is None else self._handed.take(ticket, actor)
        if file is None:
            raise errors.InvalidParameter(
                "The daemon does not have the file that was handed over for this request: its ticket was "
                "used already, is over a minute old, or belongs to another daemon.",
                advice="Hand the file over again, and repeat the request with the new ticket.",
            )
        return file

    def _grant_of(self, text: str) -> Grant | None:
        return None if self._tokens is None else self._tokens.verify(text)

    def _is_valid(self, text: str) -> bool:
        try:
            return self._grant_of(text) is not None
        except errors.DiskyardError:
            return False


def peer_of(request: Request) -> str:
    """The other side of a connection, as logs name it."""
    client = request.scope.get("client")
    return str(client[0]) if client else "unknown"
