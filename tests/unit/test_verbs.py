"""The table of verbs: its rows are whole, and each names a function that takes the row's request."""

from __future__ import annotations

import inspect
from typing import get_type_hints

import pytest

from diskyard import errors
from diskyard.model import requests as ask
from diskyard.model.results import Task
from diskyard.model.verbs import BY_REQUEST, GROUPS, VERBS, Verb
from diskyard.operations.engine import Engine, Outcome
from diskyard.service.verbs import function_of

each_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)


def test_every_request_is_of_one_verb() -> None:
    requests = {getattr(ask, name) for name in ask.__all__} - {ask.Request, ask.PAGE_LIMIT}
    assert set(BY_REQUEST) == requests
    assert len(BY_REQUEST) == len(VERBS) == sum(len(group.verbs) for group in GROUPS)


@each_verb
def test_a_row_names_the_function_of_its_verb(verb: Verb) -> None:
    function = function_of(verb)
    hints = get_type_hints(function)
    answer = hints.pop("return")
    assert list(hints.values()) == [Engine, verb.request]
    assert inspect.getdoc(function)
    if answer is Outcome:
        # What a verb with an outcome answers is the image's id, its task, or nothing.
        assert verb.result in (str, None) or verb.is_task
        assert not verb.only_looks
    else:
        assert answer in (verb.result, type(verb.result))  # of None the hint is its type
        assert not verb.starts_tasks


@each_verb
def test_a_row_is_whole(verb: Verb) -> None:
    assert set(errors.CODES) >= verb.errors
    assert verb.examples
    assert not verb.is_task or verb.result is Task
    assert inspect.getdoc(verb.request)


def test_names() -> None:
    names = {verb.name: verb.function for verb in VERBS.values()}
    assert names["createVirtualDisk"] == "create_virtual_disk"
    assert names["getTask"] == "get_task"
