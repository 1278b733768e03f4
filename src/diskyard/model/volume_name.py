"""The name that a volume has on the storage."""

from __future__ import annotations

import re

import msgspec

from diskyard.model.records import EntryId, entry_id, split_entry_id

_NAME = re.compile(
    r"([0-9a-f]{16})-(?:([0-9a-f]{32})-)?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.(raw|qcow2)"
)


class VolumeName(msgspec.Struct, frozen=True, order=True, gc=False):
    """The name of a volume on the storage. A struct, because there may be very many.

    As text it is ``NUMBER-NONCE-ID.FORMAT``, in format 1.0 without the nonce.

    :param named_by: the entry that first named it. If its number is above the newest entry, or the entry is
        not in the log's history, the volume belongs to another history, of which this log knows nothing.
    """

    named_by: EntryId
    volume_id: str
    format: str

    def __str__(self) -> str:
        number, nonce = split_entry_id(self.named_by)
        return f"{number:016x}-{nonce}{'-' if nonce else ''}{self.volume_id}.{self.format}"

    @classmethod
    def parse(cls, text: str) -> VolumeName | None:
        """The name in ``text``; None if it does not have the form."""
        found = _NAME.fullmatch(text)
        if found is None:
            return None
        number, nonce, volume_id, format = found.groups()
        return cls(entry_id(int(number, 16), nonce or ""), volume_id, format)


def backing_name(image_id: str | None) -> str | None:
    """The parent's name in a qcow2 header. It is for people, and no tool can open it (I7)."""
    return None if image_id is None else f"diskyard:{image_id}"
