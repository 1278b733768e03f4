"""A table is what a dict would be, whatever it rests on and however often that is changed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from immutables import Map

from diskyard.model.tables import ABSENT, InMemory, Table, in_memory, records_after, with_changes

KEYS = st.sampled_from("abcdefgh")
VALUES = st.none() | st.integers(0, 3)
CHANGES = st.lists(st.tuples(st.sampled_from(["set", "delete", "settle"]), KEYS, VALUES), max_size=30)


def check(table: Table[int | None], model: dict[str, int | None]) -> None:
    assert len(table) == len(model)
    assert list(table.items()) == sorted(model.items())
    assert list(table.values()) == [model[key] for key in sorted(model)]
    assert sorted(table) == sorted(table.keys()) == sorted(model)
    assert table == model
    assert in_memory(table) == Map(model)
    for key in "abcdefgh":
        assert (key in table) == (key in model)
        assert table.get(key, -1) == model.get(key, -1)
        assert list(records_after(table, key)) == [model[found] for found in sorted(model) if found > key]
        if key not in model:
            with pytest.raises(KeyError):
                table[key]
            with pytest.raises(KeyError):
                table.delete(key)


@settings(deadline=None)
@given(st.dictionaries(KEYS, VALUES), CHANGES)
def test_a_table_is_what_a_dict_would_be(
    first: dict[str, int | None], changes: list[tuple[str, str, int]]
) -> None:
    table, model = Table(InMemory(Map(first))), dict(first)
    check(table, model)
    for verb, key, value in changes:
        before, model_before = table, dict(model)
        if verb == "set":
            table, model[key] = table.set(key, value), value
        elif verb == "delete" and key in model:
            table = table.delete(key)
            del model[key]
        elif verb == "settle":
            table = table.moved_to(InMemory(Map(model)), table)
            assert not table.changed
        check(table, model)
        check(before, model_before)


@settings(deadline=None)
@given(st.dictionaries(KEYS, VALUES), CHANGES, CHANGES)
def test_what_came_after_the_writing_stays_a_change(
    first: dict[str, int | None], before: list[tuple[str, str, int]], after: list[tuple[str, str, int]]
) -> None:
    table, model = changed(Table(InMemory(Map(first))), dict(first), before)
    written, written_model = table, dict(model)
    table, model = changed(table, model, after)
    moved = table.moved_to(InMemory(Map(written_model)), written)
    check(moved, model)
    assert set(moved.changed) <= {key for _, key, _ in after}


def changed(
    table: Table[int | None], model: dict[str, int | None], changes: list[tuple[str, str, int]]
) -> tuple[Table[int | None], dict[str, int | None]]:
    for verb, key, value in changes:
        if verb == "set":
            table, model[key] = table.set(key, value), value
        elif key in model:
            table = table.delete(key)
            del model[key]
    return table, model


def test_records_of_a_plain_map_come_in_order_too() -> None:
    assert list(records_after(Map({"c": 3, "a": 1, "b": 2}), "a")) == [2, 3]


def test_changes_of_what_is_not_there_change_nothing() -> None:
    assert with_changes(Map({"a": 1}), Map({"b": ABSENT})) == Map({"a": 1})
