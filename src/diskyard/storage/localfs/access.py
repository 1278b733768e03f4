"""Who may use the files of a localfs repository: its creator decides, and its lock file records it.

The lock file is never replaced or removed, and every process that works on the repository opens it for
writing. So every new file gets its owner and group, whoever makes the file. If the lock file's group may
write to it, the group may write to volumes. There is no other record that could contradict this.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from diskyard import errors
from diskyard.host import Host
from diskyard.host.ownership import Grant, Ownership
from diskyard.storage.localfs import layout

ASKED_ONCE = ("owner", "group", "mode")
_MODE = re.compile(r"0?[0-7]{3}")
_OWNERS, _GROUP_WRITES, _OTHERS_WRITE, _FOR_OTHERS = 0o700, 0o020, 0o002, 0o007
_PASSED_BY_ALL, _LISTED_BY_GROUP = 0o711, 0o751
_FILES_OF_OWNER, _FILES_OF_GROUP, _FOLDERS = 0o640, 0o660, 0o750
_ID_LIMIT = (1 << 32) - 1  # chown(2) takes this number for "leave it"


@dataclass(frozen=True, slots=True)
class Access:
    """The owner, group and modes that the creator of a repository wants.

    :param mode_bits: of the repository's own directory and of the volumes' directory, which guests pass.
    :param inner_bits: of all other directories.
    :param is_given: whether the creator gave any of these. If not, an empty directory that exists already
        keeps its own.
    """

    user_id: int | None
    group_id: int | None
    mode_bits: int
    inner_bits: int
    is_given: bool

    def of_folder(self, folder: str) -> Grant:
        """The grant for one of the repository's directories; ``""`` is its own directory."""
        bits = self.mode_bits if folder in ("", layout.VOLUMES) else self.inner_bits
        return Grant(bits, self.group_id, self.user_id)

    def of_locks(self) -> Grant:
        """The grant for the lock file, which decides about every other file."""
        bits = _FILES_OF_OWNER if self.group_id is None else _FILES_OF_GROUP
        return Grant(bits, self.group_id, self.user_id)


def access_asked(parameters: Mapping[str, Any]) -> Access:
    """The access that the parameters of a creation name.

    :raises diskyard.errors.InvalidParameter: a parameter does not have its form, or names nobody.
    """
    user_id = _id(parameters, "owner", lambda name: pwd.getpwnam(name).pw_uid)
    group_id = _id(parameters, "group", lambda name: grp.getgrnam(name).gr_gid)
    mode = parameters.get("mode")
    if mode is None:
        bits = _PASSED_BY_ALL if group_id is None else _LISTED_BY_GROUP
        inner_bits = _FOLDERS
    elif not isinstance(mode, str) or _MODE.fullmatch(mode) is None:
        raise errors.InvalidParameter('mode must be a string of three octal digits, such as "0711".')
    else:
        bits = int(mode, 8)
        inner_bits = bits & ~_FOR_OTHERS
    if bits & _OWNERS != _OWNERS or bits & _OTHERS_WRITE:
        raise errors.InvalidParameter(
            f"mode must be 7 for the owner and without 2 for all others, not {mode}.",
            advice="0711 lets guests of every user pass to their disks, 0750 only those of the group.",
        )
    return Access(user_id, group_id, bits, inner_bits, any(name in parameters for name in ASKED_ONCE))


def _id(parameters: Mapping[str, Any], name: str, find: Callable[[str], int]) -> int | None:
    value = parameters.get(name)
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value) if len(value) <= len(str(_ID_LIMIT)) else _ID_LIMIT
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _ID_LIMIT:
        return value
    if not isinstance(value, str) or not value:
        raise errors.InvalidParameter(f"{name} must be a name, or a number below {_ID_LIMIT}.")
    try:
        return find(value)
    except (KeyError, ValueError) as error:
        raise errors.InvalidParameter(
            f"There is no {'user' if name == 'owner' else 'group'} {value!r:.80} on this host.",
            advice="Name one that is there, or give its number.",
        ) from error


class Follower:
    """Gives new files in a repository the owner and group of the lock file.

    Only root can give a file to another user, and only a member of a group can give it to that group. If
    nothing needs to be given, or can be, nothing is done.
    """

    def __init__(self, host: Host, root: str) -> None:
        self._files = host.files
        folder, locks = host.files.ownership_of(root), None
        with contextlib.suppress(FileNotFoundError):  # reported to callers that need a lease
            locks = host.files.ownership_of(os.path.join(root, layout.LOCKS))
        if locks is None or (locks.user_id, locks.group_id) != (folder.user_id, folder.group_id):
            # Anyone who may write to the directory can put a file of their own there. Only root, or the
            # directory's owner, can make the directory look as if it belonged to that user too.
            locks = Ownership(os.geteuid(), os.getegid(), _FILES_OF_OWNER)
        is_root = os.geteuid() == 0
        self._user_id = locks.user_id if is_root and locks.user_id != 0 else None
        may_give = is_root or locks.group_id in os.getgroups()
        self._group_id = locks.group_id if may_give and locks.group_id != os.getegid() else None
        self._is_groups = locks.mode_bits & _FILES_OF_GROUP == _FILES_OF_GROUP
        log_bits = host.files.ownership_of(os.path.join(root, layout.LOG)).mode_bits
        self._logs_for_group = self._is_groups and bool(log_bits & _GROUP_WRITES)
        self._gives = self._is_groups or not (self._user_id is self._group_id is None)

    def of_volume(self) -> Grant | None:
        """The owner of a new volume: the group may write to it if it may write to the lock file."""
        return self._grant(_FILES_OF_GROUP if self._is_groups else _FILES_OF_OWNER)

    def of_file(self) -> Grant | None:
        """The same for a file that no guest opens: the group may only read it."""
        return self._grant(_FILES_OF_OWNER)

    def of_reserve(self) -> tuple[Grant | None, Grant | None]:
        """The same for the directory of the reserve, and for a file in it.

        Users who may make entries may use the reserve too: otherwise they could free nothing on a full
        storage.
        """
        if self._logs_for_group:
            return self._grant(_FOLDERS | _GROUP_WRITES), self._grant(_FILES_OF_GROUP)
        return self._grant(_FOLDERS), self._grant(_FILES_OF_OWNER)

    def _grant(self, mode_bits: int) -> Grant | None:
        return Grant(mode_bits, self._group_id, self._user_id) if self._gives else None

    def making(self, path: str, data: bytes) -> Callable[[], str] | None:
        """A function that makes a temporary file beside ``path`` with durable contents, for publishing it.

        :returns: None if new files need no other owner, group or mode.
        """
        grant = self.of_file()
        if grant is None:
            return None
        return partial(self._files.write_temporary, os.path.dirname(path), data, grant=grant)
