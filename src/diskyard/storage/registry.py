"""The repository formats. This is the only module that names a concrete one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from diskyard import errors
from diskyard.host import Host
from diskyard.model.capabilities import Capabilities
from diskyard.storage.interface import Storage
from diskyard.storage.localfs import connect as localfs
from diskyard.storage.localfs.marker import set_marker
from diskyard.storage.localfs.remove import remove, require_removable
from diskyard.storage.memory import connect as memory


@dataclass(frozen=True, slots=True)
class Format:
    """A repository format.

    :param parameters: each connection parameter with a sentence for people.
    :param capabilities: the :class:`~diskyard.model.capabilities.Capabilities` that every repository of this
        format has or does not have; None for one that depends on the location.
    :param require_removable: refuses to remove a repository that contains foreign files; None if there can
        be none.
    :param set_marker: writes another marker into the repository's record; None if it cannot be copied.
    :param folder_of: the directory that connection parameters lead to, with links resolved; None if the
        format does not use a file system.
    :param create_in: creates a repository in exactly that directory; given together with ``folder_of``.
    :param remembered: a host can connect the repository again in another process.
    """

    name: str
    parameters: Mapping[str, str]
    capabilities: Mapping[str, bool | None]
    create: Callable[[Mapping[str, Any], Host], None]
    connect: Callable[[Mapping[str, Any], Host], Storage]
    remove: Callable[[Any, Host], None]
    require_removable: Callable[[Any, Host], None] | None = None
    set_marker: Callable[[Any, str, str, Host], None] | None = None
    folder_of: Callable[[Mapping[str, Any], Host], str] | None = None
    create_in: Callable[[str, Mapping[str, Any], Host], None] | None = None
    remembered: bool = True


def _abilities(capabilities: Capabilities) -> dict[str, bool | None]:
    return {name: can for name, can in asdict(capabilities).items() if isinstance(can, bool)}


FORMATS: dict[str, Format] = {
    found.name: found
    for found in (
        Format(
            name=localfs.FORMAT,
            parameters={
                "path": "absolute path of a directory on a local file system",
                "sharedByOneHost": "true: no other host uses the file system, although its kind is not known "
                "to be local; default false",
                "owner": "for creation only: the user, by name or number, to whom all files are given",
                "group": "for creation only: the group, by name or number, that may write to volumes",
                "mode": "for creation only: octal mode of the directories that guests pass; default 0711",
            },
            capabilities={**_abilities(Capabilities(preallocation=True)), "reflink": None},
            create=localfs.create,
            connect=localfs.connect,
            remove=remove,
            require_removable=require_removable,
            set_marker=set_marker,
            folder_of=localfs.folder_of,
            create_in=localfs.create_in,
        ),
        Format(
            name=memory.FORMAT,
            parameters={"name": "name of the repository, which ends with this process"},
            capabilities=_abilities(Capabilities(preallocation=True)),
            create=memory.create,
            connect=memory.connect,
            remove=memory.remove,
            remembered=False,
        ),
    )
}


def find_format(name: str) -> Format:
    """The format with this name.

    :raises diskyard.errors.UnknownRepositoryFormat: there is none; the message lists the known ones.
    """
    found = FORMATS.get(name)
    if found is None:
        known = ", ".join(sorted(FORMATS))
        raise errors.UnknownRepositoryFormat(f"There is no format {name!r:.80}. Known: {known}.")
    return found
