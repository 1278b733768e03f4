"""What all requests are, and those of the verbs about repositories as a whole."""

from __future__ import annotations

from typing import Any

import msgspec

from diskyard.model.fix import Fix
from diskyard.model.options import CheckOptions, FixOptions, RepoId, wire_name


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=wire_name):
    """Base of all requests."""


class ConnectStorageRepository(Request, kw_only=True, frozen=True):
    """Connect a repository on this host under a name of the caller's.

    The host remembers the connection and makes it again when it is restarted. The same connection
    again changes nothing. The same place by another path under its repoId is connected by that path from
    then on; under another repoId it is an alias, searched once. A copy of a connected place is refused.

    :param repo_id: the caller's name for it on this host: 1-255 bytes of UTF-8 without control
        characters. It is stored in no repository.
    :param repo_format: the format and its version; getHostInfo lists those there are.
    :param connection_parameters: where the repository is; getHostInfo lists the parameters of each
        format. For callers with tokens it is inside the folders that the daemon's configuration allows
        (``[repositories] folders``; none by default). ``newMarker``, true: the place is a copy of a
        repository, and first becomes one of its own, without what the original keeps for others; this is
        not remembered. One that has become so already is connected as it is; an original is refused.
    """

    repo_id: RepoId
    repo_format: str
    connection_parameters: dict[str, Any] = {}


class DisconnectStorageRepository(Request, kw_only=True, frozen=True):
    """Disconnect a repository from this host.

    The repository and all that it holds stay as they are.

    :param repo_id: the name under which it is connected.
    """

    repo_id: RepoId


class CreateStorageRepository(Request, kw_only=True, frozen=True):
    """Make an empty repository in an empty place.

    It is not connected by this.

    :param repo_format: the format and its version; getHostInfo lists those there are.
    :param connection_parameters: where it is to be, as for connectStorageRepository.
    """

    repo_format: str
    connection_parameters: dict[str, Any] = {}


class RemoveStorageRepository(Request, kw_only=True, frozen=True):
    """Remove a repository that holds no image.

    It is disconnected from this host under every name that it has here. Callers with tokens remove what is
    inside the folders in which they may make repositories.

    :param repository_id: the repoId under which the repository is connected on this host.
    """

    repository_id: RepoId


class ListStorageRepositories(Request, kw_only=True, frozen=True):
    """List the repositories connected on this host, with their room."""


class CheckStorageRepository(Request, kw_only=True, frozen=True):
    """List the fixes that a repository needs; changes nothing.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param options: what to look for.
    """

    repository_id: RepoId
    options: CheckOptions = CheckOptions()


class FixStorageRepository(Request, kw_only=True, frozen=True):
    """Start a fix that check listed.

    Every fix looks at the repository as it is now, and may be run twice, late, or by two hosts: what
    is done already is not done again.

    :param repository_id: the repoId under which the repository is connected on this host. It may
        have another name on the host that listed the fix.
    :param fix: the whole fix, as checkStorageRepository answered it on any host.
    :param options: how to run it.
    """

    repository_id: RepoId
    fix: Fix
    options: FixOptions = FixOptions()
