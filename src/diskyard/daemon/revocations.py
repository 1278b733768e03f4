"""Marks of revoked tokens, in a file that has its blocks already: revoking works on a full disk."""

from __future__ import annotations

import errno
import os
import re

import msgspec

from diskyard import errors
from diskyard.host import Host
from diskyard.host.files import PRIVATE_BITS
from diskyard.host.ownership import Grant
from diskyard.model.options import wire_name

# Each mark is written once, into a block of its own. That needs no new block on any file system, even on
# one that never overwrites written data in place (docs/decisions/0026-reserve.md).
_SLOT_BYTES = 4096
_SLOTS = 32
_FILE_BYTES = _SLOT_BYTES * _SLOTS
_MARKED = re.compile(rb"([0-9a-f]{8}) ")


class Revocation(msgspec.Struct, frozen=True, kw_only=True, rename=wire_name):
    """One token that was revoked.

    :param revoked_by: the user who revoked it; empty if a crash cut the mark, which is valid all the same.
    """

    token_id: str
    name: str = ""
    revoked_at: str = ""
    revoked_by: str = ""


class Revocations:
    """The marks of one state directory. They are changed only under its lock.

    Marks stay until there are many, as a record of who revoked what and when.
    """

    def __init__(self, host: Host, folder: str) -> None:
        self._host = host
        self._folder, self._name = folder, "tokens.revoked"
        self._path = os.path.join(folder, self._name)
        self._read: tuple[str, dict[str, Revocation]] | None = None

    def all(self) -> dict[str, Revocation]:
        """The marks, by the ids of their tokens, the oldest first.

        :raises OSError: the file cannot be read, or is damaged.
        """
        # Taken before the file is read, so that the next call notices a change in between.
        seen = self._fingerprint()
        known = self._read
        if known is not None and known[0] == seen:
            return known[1]
        found = {}
        for slot in self._slots():
            marked = _MARKED.match(slot)
            if marked is not None:
                one = _told(slot, marked[1].decode())
                found[one.token_id] = one
            elif slot[:1] != b"\0":  # a cut mark begins with zeros, and was never answered
                raise OSError(None, "a mark in it is damaged", self._path)
        self._read = (seen, found)
        return found

    def prepare(self) -> None:
        """Make space for marks, durably. If much of the file is used, replace it by one without marks.

        The existing marks must not be needed any more: no token that is kept may have one.

        :raises OSError: there is no space.
        """
        item = self._host.files.look(self._path)
        is_whole = item is not None and item.is_file and item.allocated_bytes >= _FILE_BYTES
        if is_whole and len(self._free()) > _SLOTS // 2:
            return
        temporary = self._host.files.temporary_path(self._folder)
        self._host.files.keep_room(self._folder, {self._name: _FILE_BYTES}, temporary, Grant(PRIVATE_BITS))
        self._host.files.sync_folder(self._folder)

    def mark(self, one: Revocation) -> None:
        """Mark a token as revoked, durably, without a new block.

        :raises OSError: all the prepared space is used.
        """
        free = self._free()
        if not free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        data = f"{one.token_id} ".encode() + msgspec.json.encode(one) + b"\n"
        fd = self._host.files.open_for_writing(self._path)
        try:
            self._host.files.write(fd, data, free[0] * _SLOT_BYTES)
            self._host.files.sync(fd)
        finally:
            os.close(fd)

    def _slots(self) -> list[bytes]:
        data = self._host.files.read(self._path, _FILE_BYTES) or b""
        return [data[at : at + _SLOT_BYTES] for at in range(0, len(data), _SLOT_BYTES)]

    def _free(self) -> list[int]:
        return [number for number, slot in enumerate(self._slots()) if not slot.strip(b"\0")]

    def _fingerprint(self) -> str:
        try:
            return self._host.files.fingerprint(self._path)
        except FileNotFoundError:
            return ""


def _told(slot: bytes, token_id: str) -> Revocation:
    """A mark with its details, if they are whole."""
    try:
        told = msgspec.json.decode(slot.partition(b" ")[2].rstrip(b"\0"), type=Revocation)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Revocation(token_id=token_id)
    return told if told.token_id == token_id else Revocation(token_id=token_id)


def no_room(error: OSError) -> errors.DiskyardError:
    """The error for a revocation that could not be kept."""
    told = errors.from_os_error(error, "revoking a token")
    return type(told)(
        told.message,
        advice="Free some room where the state folder is, and revoke it again. Moved elsewhere until then, "
        "tokens.json lets nobody in over TLS.",
    )
