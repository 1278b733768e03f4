"""Bytes of the log's objects: exactly what was written, or Damaged."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diskyard.log.codec import (
    MAJOR,
    MINOR,
    Checkpoint,
    Damaged,
    NewerMajor,
    Progress,
    RepositoryRecord,
    _checksum,
    decode,
    encode,
)
from diskyard.model.records import Origin
from diskyard.model.transaction import Changes, Entry, Part
from tests.unit.records import HOST, MARKER, NOW, attachment, building, copy_hold, disk, uid, volume, weak

NEWER = b"%d.%d" % (MAJOR, MINOR + 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def entry(**changes: object) -> Entry:
    return Entry(
        marker=MARKER,
        number=7,
        nonce="n7",
        previous="n6",
        time=NOW,
        verb="test",
        host=HOST,
        actor="",
        request_digest=None,
        changes=msgspec.structs.replace(Changes(), **changes),
    )


def raw(kind: bytes, version: bytes, payload: bytes) -> bytes:
    """Bytes with a right checksum, whatever they say."""
    return b"%s %s %d %s\n%s\n" % (kind, version, len(payload), _checksum(kind, version, payload), payload)


ALONE = entry(
    put_images=(
        disk(uid("d"), uid("v"), user_data={"é": [1, None]}),
        weak(uid("w"), uid("p"), held_for=(copy_hold(uid("copy")),)),
    ),
    put_volumes=(volume(uid("v"), uid("w")), building(uid("b"), uid("d"))),
    put_attachments=(attachment(uid("a"), uid("d"), uid("v"), uid("p")),),
    remove_images=("i",),
)
OTHER = Part(verb="other", actor="é", request_digest="d", changes=Changes(put_volumes=(volume(uid("o")),)))
RICH = msgspec.structs.replace(ALONE, also=(OTHER,))


def test_an_entry_of_one_author_says_nothing_of_others() -> None:
    fields = list(msgspec.json.decode(msgspec.json.encode(ALONE)))
    assert fields == [
        "marker", "number", "nonce", "previous", "time", "verb", "host", "actor", "requestDigest", "changes",
    ]  # fmt: skip
    assert list(msgspec.json.decode(msgspec.json.encode(RICH))) == [*fields, "also"]


@pytest.mark.parametrize("left_out", ["verb", "actor", "requestDigest", "changes"])
def test_a_part_of_an_entry_is_whole(left_out: str) -> None:
    builtins = msgspec.json.decode(msgspec.json.encode(RICH))
    del builtins["also"][0][left_out]
    with pytest.raises(Damaged):
        decode(raw(b"diskyard-entry", b"1.0", msgspec.json.encode(builtins)), Entry)


@given(user_data=JSON, size=st.integers(0, 2**40), name=st.text())
def test_what_is_decoded_is_what_was_encoded(user_data: object, size: int, name: str) -> None:
    for value in (
        entry(
            put_images=(
                disk(uid(name), None, user_data=user_data, size_bytes=512 * (size % 2**36), last_error=name),
            )
        ),
        Checkpoint(
            marker=name, version=size, nonce="", nonces=(name,), images=(), volumes=(), attachments=()
        ),
        RepositoryRecord(marker=name, format=name),
        Progress(image_id=uid(name), error=name, host=HOST, fix="mend", stage="1/2", percent=-1),
    ):
        assert decode(encode(value), type(value)) == (value, False)


def test_every_byte_that_is_changed_is_found() -> None:
    data = encode(RICH)
    for at in range(len(data)):
        for value in {data[at] ^ 1, data[at] ^ 0x80, 0, 0x20, 0x0A, 0xFF} - {data[at]}:
            with pytest.raises(Damaged):
                decode(data[:at] + bytes([value]) + data[at + 1 :], Entry)


def test_every_length_but_its_own_is_found() -> None:
    data = encode(RICH)
    for length in range(len(data)):
        with pytest.raises(Damaged):
            decode(data[:length], Entry)
    for more in (b"\n", b"\0", b" ", data):
        with pytest.raises(Damaged):
            decode(data + more, Entry)
        with pytest.raises(Damaged):
            decode(more + data, Entry)


@settings(max_examples=300)
@given(st.binary(max_size=600))
def test_any_bytes(data: bytes) -> None:
    for prefix in (b"", b"diskyard-entry ", b"diskyard-entry 1.0 4 "):
        with pytest.raises(Damaged):
            decode(prefix + data, Entry)


@settings(max_examples=300)
@given(version=st.binary(max_size=8), payload=st.binary(max_size=100))
def test_any_payload_with_a_right_checksum(version: bytes, payload: bytes) -> None:
    for words in (b"1.0", b"1.7", version):
        with pytest.raises((Damaged, NewerMajor)):
            decode(raw(b"diskyard-entry", words, payload), Entry)


def test_deep_nesting_is_damage() -> None:
    for version in (b"1.0", b"1.1", b"1.2"):
        for depth in (200, 100_000):
            payload = b'{"marker": ' + b"[" * depth + b"]" * depth + b"}"
            with pytest.raises(Damaged):
                decode(raw(b"diskyard-entry", version, payload), Entry)


def test_one_kind_is_not_another() -> None:
    with pytest.raises(Damaged):
        decode(encode(RICH), Checkpoint)
    with pytest.raises(Damaged):
        decode(encode(RepositoryRecord(marker="m", format="f")), Entry)


def test_a_field_that_is_not_known_is_damage_in_this_version() -> None:
    strange = {"colour": "blue"}
    whole, part = msgspec.to_builtins(RICH), msgspec.to_builtins(OTHER)
    changes = {**part["changes"], **strange}
    for value in (
        {**whole, **strange},
        {**whole, "also": [{**part, **strange}]},
        {**whole, "also": [{**part, "changes": changes}]},
        {**whole, "also": [part, strange]},
        {**whole, "also": part},
    ):
        with pytest.raises(Damaged):
            decode(raw(b"diskyard-entry", b"1.1", msgspec.json.encode(value)), Entry)


def in_1_0(value: object) -> object:
    """What format 1.0 wrote: numbers where there are ids of entries now, and none of the new fields."""
    if isinstance(value, list):
        return [in_1_0(item) for item in value]
    if not isinstance(value, dict):
        return value
    new = ("captured", "targetPlace", "targetEntry")
    ids = ("dataGeneration", "revision", "namedBy")
    return {
        key: int(item.partition(".")[0]) if key in ids else item if key == "userData" else in_1_0(item)
        for key, item in value.items()
        if key not in new
    }


def test_format_1_0_is_read_with_entries_of_no_known_history() -> None:
    user_data = {"revision": 7, "namedBy": 1, "dataGeneration": [2]}
    origin = Origin(marker="m", image_id=uid("o"), data_generation="6.")
    old = disk(uid("d"), uid("v"), data_generation="4.", revision="5.", origin=origin, user_data=user_data)
    value = entry(put_images=(old,), put_volumes=(volume(uid("v"), named_by="3."),))
    builtins = in_1_0(msgspec.json.decode(msgspec.json.encode(value)))
    assert b'"namedBy":3' in msgspec.json.encode(builtins)
    data = raw(b"diskyard-entry", b"1.0", msgspec.json.encode(builtins))
    assert decode(data, Entry) == (value, False)
    with pytest.raises(Damaged):
        decode(raw(b"diskyard-entry", b"1.1", msgspec.json.encode(builtins)), Entry)
    checkpoint = Checkpoint(
        marker="m", version=5, nonce="n", nonces=("n",), images=(old,), volumes=(), attachments=()
    )
    builtins = in_1_0(msgspec.json.decode(msgspec.json.encode(checkpoint)))
    data = raw(b"diskyard-checkpoint", b"1.0", msgspec.json.encode(builtins))
    assert decode(data, Checkpoint) == (checkpoint, False)


def with_strange_fields(value: object) -> object:
    """Every object in it with one more field."""
    if isinstance(value, dict):
        return {**{key: with_strange_fields(item) for key, item in value.items()}, "colour": {"a": [1]}}
    if isinstance(value, list):
        return [with_strange_fields(item) for item in value]
    return value


def test_an_attachment_of_1_1_has_no_guest_to_talk_to() -> None:
    """It had no such fields, and nothing is guessed."""
    value = entry(put_attachments=(attachment(uid("a"), uid("d"), uid("v")),))
    builtins = msgspec.json.decode(msgspec.json.encode(value))
    (written,) = builtins["changes"]["putAttachments"]
    del written["live"], written["switching"]
    assert decode(raw(b"diskyard-entry", b"1.1", msgspec.json.encode(builtins)), Entry) == (value, False)


def test_fields_of_a_newer_minor_version_are_dropped_at_any_depth() -> None:
    plain = msgspec.structs.replace(RICH, changes=msgspec.structs.replace(RICH.changes, put_images=()))
    for value in (plain, RICH):
        builtins = msgspec.json.decode(msgspec.json.encode(value))
        strange = with_strange_fields(builtins)
        if value is RICH:  # userData is the caller's: nothing of it is dropped
            strange["changes"]["putImages"][0]["userData"] = {"é": [1, None]}  # type: ignore[index]
            strange["changes"]["putImages"][1]["userData"] = {}  # type: ignore[index]
        data = raw(b"diskyard-entry", NEWER, msgspec.json.encode(strange))
        assert decode(data, Entry) == (value, True)


def test_user_data_is_kept_whole_by_a_newer_minor_version() -> None:
    value = entry(put_images=(disk(uid("d"), uid("v"), user_data={"colour": {"do": [{"x": 1}]}}),))
    payload = msgspec.json.encode(value)
    assert decode(raw(b"diskyard-entry", b"1.9", payload), Entry) == (value, True)


def test_an_unknown_tag_of_a_newer_minor_version_is_damage() -> None:
    builtins = msgspec.json.decode(msgspec.json.encode(RICH))
    builtins["changes"]["putImages"][1]["heldFor"][0]["purpose"] = "backup"
    with pytest.raises(Damaged):
        decode(raw(b"diskyard-entry", NEWER, msgspec.json.encode(builtins)), Entry)


def test_a_newer_major_version_is_refused_by_name() -> None:
    with pytest.raises(NewerMajor, match=r"2\.3"):
        decode(encode(RICH, version=(2, 3)), Entry)
