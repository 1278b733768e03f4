"""The base of all requests, and the requests of the verbs about whole repositories."""

from __future__ import annotations

from typing import Any

import msgspec

from diskyard.model.fix import Fix
from diskyard.model.options import CheckOptions, FixOptions, RepoId, wire_name


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=wire_name):
    """Base of all requests."""


class ConnectStorageRepository(Request, kw_only=True, frozen=True):
    """Connect a repository on this host under a name that the caller chooses.

    The host remembers the connection and makes it again after a restart. Making the same connection
    again changes nothing. If a connected location is given under its repoId with another path, that path
    is used from then on. Under another repoId it becomes an alias, which is searched only once. A byte
    copy of a connected repository is refused.

    :param repo_id: the caller's name for it on this host: 1-255 bytes of UTF-8 without control
        characters. It is not stored in the repository.
    :param repo_format: the format and its version; getHostInfo lists the known ones.
    :param connection_parameters: where the repository is; getHostInfo lists the parameters of each
        format. For callers with tokens it must be inside the directories that the daemon's configuration
        allows (``[repositories] folders``; none by default). ``newMarker: true`` says that the location has
        a byte copy of a repository. The copy first gets an identity of its own and loses what the original
        keeps for others. This parameter is not remembered. A copy that has its own identity already is
        connected as it is; an original is refused.
    """

    repo_id: RepoId
    repo_format: str
    connection_parameters: dict[str, Any] = {}


class DisconnectStorageRepository(Request, kw_only=True, frozen=True):
    """Disconnect a repository from this host.

    The repository and everything in it stay as they are.

    :param repo_id: the name under which it is connected.
    """

    repo_id: RepoId


class CreateStorageRepository(Request, kw_only=True, frozen=True):
    """Make an empty repository in an empty location.

    This does not connect it.

    :param repo_format: the format and its version; getHostInfo lists the known ones.
    :param connection_parameters: where to make it, as for connectStorageRepository.
    """

    repo_format: str
    connection_parameters: dict[str, Any] = {}


class RemoveStorageRepository(Request, kw_only=True, frozen=True):
    """Remove a repository that holds no image.

    It is disconnected from this host under every name that it has here. Callers with tokens can remove only
    repositories inside the directories in which they may make them.

    :param repository_id: the repoId under which the repository is connected on this host.
    """

    repository_id: RepoId


class ListStorageRepositories(Request, kw_only=True, frozen=True):
    """List the repositories connected on this host, with their space."""


class CheckStorageRepository(Request, kw_only=True, frozen=True):
    """List the fixes that a repository needs. It runs none; only a deep check records damage that it finds.

    :param repository_id: the repoId under which the repository is connected on this host.
    :param options: what to look for.
    """

    repository_id: RepoId
    options: CheckOptions = CheckOptions()


class FixStorageRepository(Request, kw_only=True, frozen=True):
    """Start a fix that check listed.

    Every fix looks at the current state of the repository. It may be run twice, late, or by two hosts:
    work that is done already is not done again.

    :param repository_id: the repoId under which the repository is connected on this host. It may
        have another name on the host that listed the fix.
    :param fix: the whole fix, as checkStorageRepository returned it on any host.
    :param options: how to run it.
    """

    repository_id: RepoId
    fix: Fix
    options: FixOptions = FixOptions()
