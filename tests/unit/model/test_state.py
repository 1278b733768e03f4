"""A state's indexes are what its records say, whatever came in between; a draft tells what changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskyard.model.records import entry_id
from diskyard.model.state import State
from diskyard.model.transaction import Changes, Draft, Entry, Frees, apply
from tests.unit.records import (
    HOST,
    NOW,
    attachment,
    building,
    copy_hold,
    disk,
    image,
    state,
    uid,
    volume,
    weak,
)

IMAGES, VOLUMES, ATTACHMENTS = ([uid(name) for name in names] for names in ("ijk", "uvw", "ab"))
SOME_IMAGE = st.builds(
    image,
    st.sampled_from(IMAGES),
    st.none() | st.sampled_from(VOLUMES),
    held_for=st.sampled_from([(), (copy_hold(uid("copy")),)]),
    visibility=st.sampled_from(["weak", "strong"]),
)
SOME_VOLUME = st.builds(volume, st.sampled_from(VOLUMES), st.none() | st.sampled_from(IMAGES))
SOME_ATTACHMENT = st.builds(
    lambda id, image_id, volumes: attachment(id, image_id, *volumes),
    st.sampled_from(ATTACHMENTS),
    st.sampled_from(IMAGES),
    st.lists(st.sampled_from(VOLUMES), unique=True, min_size=1),
)
CHANGE = st.one_of(
    st.tuples(st.just("put_image"), SOME_IMAGE),
    st.tuples(st.just("put_volume"), SOME_VOLUME),
    st.tuples(st.just("put_attachment"), SOME_ATTACHMENT),
    st.tuples(st.just("remove_image"), st.sampled_from(IMAGES)),
    st.tuples(st.just("remove_volume"), st.sampled_from(VOLUMES)),
    st.tuples(st.just("remove_attachment"), st.sampled_from(ATTACHMENTS)),
)
_RECORDS = {"remove_image": "images", "remove_volume": "volumes", "remove_attachment": "attachments"}


def possible(found: State, verb: str, word: Any) -> bool:
    return verb not in _RECORDS or word in getattr(found, _RECORDS[verb])


def rebuilt(found: State) -> State:
    return State.of(
        found.marker,
        found.version,
        found.nonce,
        found.images.values(),
        found.volumes.values(),
        found.attachments.values(),
    )


@given(st.lists(CHANGE, max_size=30))
def test_indexes_equal_those_rebuilt_from_the_records(changes: list[tuple[str, Any]]) -> None:
    found = state()
    for verb, word in changes:
        if possible(found, verb, word):
            found = getattr(found, verb)(word)
            assert found == rebuilt(found), verb


@given(st.lists(CHANGE, max_size=8), st.lists(CHANGE, max_size=12))
def test_applying_a_drafts_changes_yields_its_state(
    before: list[tuple[str, Any]], changes: list[tuple[str, Any]]
) -> None:
    start = state()
    for verb, word in before:
        if possible(start, verb, word):
            start = getattr(start, verb)(word)
    draft = Draft(start)
    for verb, word in changes:
        # A draft's attachments name volumes that it has.
        known = verb != "remove_attachment" or word in draft.state.attachments
        if known and possible(draft.state, verb, word):
            getattr(draft, verb)(word)
    entry = entry_of(draft.changes())
    assert apply(start, entry) == replace(draft.state, version=11, nonce="next")
    # And through the log's bytes.
    read = msgspec.json.decode(msgspec.json.encode(entry), type=Entry)
    assert apply(start, read) == replace(draft.state, version=11, nonce="next")


def entry_of(changes: Changes) -> Entry:
    return Entry(
        marker="marker",
        number=11,
        nonce="next",
        previous="nonce",
        time=NOW,
        verb="test",
        host=HOST,
        actor="",
        request_digest=None,
        changes=changes,
    )


def test_a_draft_that_ends_as_it_began_changes_nothing() -> None:
    draft = Draft(state(disk("d", "v"), volume("v")))
    draft.put_image(disk("d", "v", revision=entry_id(9, "")))
    draft.put_image(disk("d", "v"))
    draft.put_volume(building("n", "d"))
    draft.remove_volume("n")
    assert not draft.changes()
    assert draft.entry == "11."


def test_removing_what_is_not_there_is_an_error_of_the_entry() -> None:
    for name in ("remove_images", "remove_volumes", "remove_attachments"):
        with pytest.raises(KeyError):
            apply(state(), entry_of(msgspec.structs.replace(Changes(), **{name: ("none",)})))


def test_a_chain_ends_where_a_parent_has_no_volume_yet() -> None:
    found = state(disk("d", "v"), volume("v", "s"), image("s", None))
    assert [link.id for link, _ in found.chain(found.images["d"])] == ["d"]
    assert [v.id for v in found.volume_chain(found.volumes["v"])] == ["v"]


def test_what_leads_to_less_may_use_the_reserve() -> None:
    found = state(
        disk("d", "v"), volume("v"), weak("w", "p", held_for=(copy_hold(uid("copy")),)), volume("p"),
        attachment("a", "d", "v"), volume("x", state="doomed"),
    )  # fmt: skip

    def frees(*changes: tuple[str, Any]) -> Frees:
        draft = Draft(found)
        for verb, word in changes:
            getattr(draft, verb)(word)
        return draft.frees()

    assert frees(("remove_volume", "x")) == Frees.AT_ONCE
    assert frees(("put_volume", volume("p", state="doomed"))) == Frees.AT_ONCE
    assert frees(("remove_image", "w"), ("put_image", weak("n", "p"))) == Frees.AT_ONCE
    assert frees(("remove_attachment", "a")) == Frees.WHEN_FIXED
    assert frees(("put_image", weak("w", "p"))) == Frees.WHEN_FIXED
    assert frees(("put_image", weak("d", "v", kind="virtual_disk"))) == Frees.LATER
    assert not frees()
    assert not frees(("put_image", disk("d", "v", user_data={"a": 1})))
    assert not frees(("put_volume", volume("n")))
    assert not frees(("put_image", disk("n", "v")), ("put_volume", volume("p", state="doomed")))
    assert not frees(("put_attachment", attachment("b", "d", "v")), ("remove_volume", "x"))
