"""userData comes back as it was sent, or is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskyard import errors
from diskyard.operations.engine import require_user_data

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_any_json(user_data: object) -> None:
    require_user_data(user_data)


@pytest.mark.parametrize(
    "user_data",
    [
        math.nan,
        [math.inf],
        {1: "one"},
        (1, 2),
        {"a": b"bytes"},
        "\ud800",
        {"a": object()},
        {"a": "x" * 16384},
    ],
)
def test_what_would_come_back_otherwise_is_refused(user_data: Any) -> None:
    with pytest.raises(errors.InvalidParameter):
        require_user_data(user_data)


def test_what_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(errors.InvalidParameter):
        require_user_data(endless)
