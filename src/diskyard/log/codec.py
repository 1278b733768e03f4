r"""Bytes of the log's objects: one line of header, one line of JSON, a checksum over both.

The header is text, so that a person can read an object with any tool::

    diskyard-entry 1.0 412 6f0c…\n{"marker": …}\n

It names the kind, the format's version, the payload's length in bytes and the BLAKE2b
checksum (256 bits) of kind, version and payload. Decoding is strict: a field that this version does
not know is damage, unless the object says that a newer minor version wrote it.
"""

from __future__ import annotations

import hashlib
import typing
from typing import Annotated, Any, TypeVar

import msgspec

from diskyard.model.identity import HostIdentity
from diskyard.model.records import (
    IMAGE_SIZE_LIMIT_BYTES,
    Attachment,
    EntryId,
    EntryNumber,
    Image,
    Record,
    Uuid,
    Volume,
    entry_id,
)
from diskyard.model.state import State
from diskyard.model.transaction import Entry

MAJOR, MINOR = 1, 2
ENTRY_LIMIT_BYTES = 64 << 20
CHECKPOINT_LIMIT_BYTES = 1 << 30
HEADER_LIMIT_BYTES = 256

T = TypeVar("T", bound=msgspec.Struct)


class Checkpoint(Record, kw_only=True, frozen=True):
    """The state after entry ``version``, and the nonces of entries up to it.

    :param nonces: of the newest entries up to ``version``, the newest last. A writer that published one
        of them can see that its entry stood, even if the entries around it are trimmed.
    """

    marker: str
    version: EntryNumber
    nonce: str
    nonces: tuple[str, ...]
    images: tuple[Image, ...]
    volumes: tuple[Volume, ...]
    attachments: tuple[Attachment, ...]

    def state(self) -> State:
        """The state that the checkpoint holds."""
        return State.of(self.marker, self.version, self.nonce, self.images, self.volumes, self.attachments)


class CheckpointWritten(Record, kw_only=True, frozen=True):
    """A :class:`Checkpoint` that is about to be written, with records that are already encoded."""

    marker: str
    version: EntryNumber
    nonce: str
    nonces: tuple[str, ...]
    images: tuple[msgspec.Raw, ...]
    volumes: tuple[msgspec.Raw, ...]
    attachments: tuple[msgspec.Raw, ...]


class RepositoryRecord(Record, kw_only=True, frozen=True):
    """What a repository says of itself: written at creation, and when it is given another marker.

    :param marker: random. It names lock spaces, and shows when two paths lead to one repository.
    :param place: the digest (:func:`diskyard.log.entries.place_digest`) of the location that it was written
        in; at any other location it is a copy. Empty if the location was not noted.
    :param given: the repository was given this marker; before, it had the marker of its original.
    """

    marker: str
    format: str
    place: str = ""
    given: bool = False


class Progress(Record, kw_only=True, frozen=True):
    """How far the work on an image was when this was last written. It may be lost.

    :param fix: the fix's type.
    :param stage: as "1/2".
    :param percent: -1 if it is not known.
    :param work_id: from the volume's building record; the progress of other work is of no use.
    :param durable_bytes: everything in the volume below this offset is durable.
    :param fingerprint: of the source that the bytes came from.
    :param error: why the work ended early, unless it was an I/O error or a crash.
    """

    image_id: Uuid
    host: HostIdentity
    fix: str
    stage: str
    percent: Annotated[int, msgspec.Meta(ge=-1, le=100)]
    volume_id: Uuid | None = None
    work_id: str | None = None
    durable_bytes: Annotated[int, msgspec.Meta(ge=0, le=IMAGE_SIZE_LIMIT_BYTES)] = 0
    fingerprint: str = ""
    error: str | None = None


_KINDS: dict[type[msgspec.Struct], bytes] = {
    RepositoryRecord: b"diskyard-repository",
    Entry: b"diskyard-entry",
    Checkpoint: b"diskyard-checkpoint",
    CheckpointWritten: b"diskyard-checkpoint",
    Progress: b"diskyard-progress",
}
_HAVE_RECORDS = (Entry, Checkpoint)


class Damaged(Exception):
    """The bytes are not what was written. The message is for people."""


class NewerMajor(Exception):
    """A newer major version of the format wrote this; this program must not touch it."""


def _checksum(kind: bytes, version: bytes, payload: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    for part in (kind, b" ", version, b"\n", payload):
        digest.update(part)
    return digest.hexdigest().encode()


def encode(value: msgspec.Struct, *, version: tuple[int, int] = (MAJOR, MINOR)) -> bytes:
    """The bytes of an entry, a checkpoint or a progress file."""
    kind = _KINDS[type(value)]
    payload = msgspec.json.encode(value)
    words = b"%d.%d" % version
    return b"%s %s %d %s\n%s\n" % (kind, words, len(payload), _checksum(kind, words, payload), payload)


def decode(data: bytes, kind: type[T]) -> tuple[T, bool]:
    """The value in ``data``, and whether a newer minor version wrote it.

    :raises Damaged: the bytes are not exactly what :func:`encode` wrote.
    :raises NewerMajor: this program cannot read the version.
    """
    words, begin = _header(data)
    if begin == 0 or words[0] != _KINDS[kind]:
        raise Damaged("it does not begin with the header of its kind")
    payload = memoryview(data)[begin:-1]  # a checkpoint may be large: do not copy it
    if data[-1:] != b"\n" or words[2] != b"%d" % len(payload):
        raise Damaged("it is not as long as its header says")
    if words[3] != _checksum(words[0], words[1], payload):
        raise Damaged("its checksum does not match")
    major, minor = _version(words[1])
    if major > MAJOR:
        raise NewerMajor(words[1].decode())
    try:
        if (major, minor) > (MAJOR, MINOR):
            known = _without_unknown_fields(msgspec.json.decode(payload), kind)
            return msgspec.convert(known, kind), True
        if (major, minor) == (1, 0) and kind in _HAVE_RECORDS:
            return msgspec.convert(_from_1_0(msgspec.json.decode(payload), kind), kind), False
        return msgspec.json.decode(payload, type=kind), False
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"its contents are not of the format: {error}") from error


def may_be_whole(head: bytes, tail: bytes, length_bytes: int) -> bool:
    """Whether a file may be an object of the log, so that it is worth reading all of it.

    :param head: its first :data:`HEADER_LIMIT_BYTES`.
    :param tail: its last two bytes.
    """
    words, begin = _header(head)
    return begin > 0 and words[2] == b"%d" % (length_bytes - begin - 1) and tail == b"}\n"


def _header(data: bytes) -> tuple[list[bytes], int]:
    """The words of the header line, and where the payload begins: 0 if there is no header line."""
    header, newline, _ = data[:HEADER_LIMIT_BYTES].partition(b"\n")
    words = header.split(b" ")
    return (words, len(header) + 1) if newline and len(words) == 4 else (words, 0)


def _version(words: bytes) -> tuple[int, int]:
    major, _, minor = words.partition(b".")
    if not (major.isdigit() and minor.isdigit()):
        raise Damaged("its version is not a version")
    return int(major), int(minor)


def _without_unknown_fields(value: Any, kind: Any) -> Any:
    """``value`` without the fields that this version does not know, at any depth.

    A tagged union with an unknown tag is left unchanged and fails later: its meaning cannot be guessed.
    """
    structs = _structs_in(kind)
    if isinstance(value, list):
        return [_without_unknown_fields(item, kind) for item in value]
    if not isinstance(value, dict) or not structs:
        return value
    struct = structs[0]
    for candidate in structs:
        config = candidate.__struct_config__
        if config.tag_field is not None and value.get(config.tag_field) == config.tag:
            struct = candidate
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    tag_field = struct.__struct_config__.tag_field
    return {
        name: _without_unknown_fields(item, fields.get(name))
        for name, item in value.items()
        if name in fields or name == tag_field
    }


def _from_1_0(value: Any, kind: Any) -> Any:
    """``value`` with ids of entries where format 1.0 had their numbers. userData stays as it is."""
    if kind == EntryId:
        return entry_id(value, "") if type(value) is int and value >= 0 else value
    if isinstance(value, list):
        return [_from_1_0(item, kind) for item in value]
    if not isinstance(value, dict):
        return value
    fields: dict[str, Any] = {}
    for struct in _structs_in(kind):
        fields |= {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    return {name: _from_1_0(item, fields.get(name)) for name, item in value.items()}


def _structs_in(kind: Any) -> list[type[msgspec.Struct]]:
    """The structs in a type: the type itself, or its parts. For ``tuple[A | B, ...]``: A and B."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    return [struct for part in typing.get_args(kind) for struct in _structs_in(part)]
