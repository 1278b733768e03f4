"""Policies of the caretaker: what is refused, and when hours are open."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
import pytest

from diskyard.daemon.policy import Policy


@pytest.fixture(autouse=True)
def _far_from_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hours are of the local time: here three hours and a half behind, with no summer."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX3:30")
        time.tzset()
        yield
    time.tzset()


def at(text: str) -> float:
    return time.mktime(time.strptime(f"2026-03-01 {text}", "%Y-%m-%d %H:%M"))


@pytest.mark.parametrize(
    ("hours", "opened", "closed"),
    [
        ("", ["00:00", "03:30", "23:59"], []),
        ("08:00-17:30", ["08:00", "12:00", "17:29"], ["07:59", "17:30", "00:00", "23:59"]),
        ("22:00-06:00", ["22:00", "23:59", "00:00", "05:59"], ["06:00", "12:00", "21:59"]),
        ("00:00-24:00", ["00:00", "23:59"], []),
        ("00:00-00:01", ["00:00"], ["00:01", "23:59"]),
        ("23:00-00:00", ["23:00", "23:59"], ["00:00", "22:59"]),
    ],
)
def test_hours(hours: str, opened: list[str], closed: list[str]) -> None:
    policy = Policy(repository="fast", fixes=("clean",), hours=hours)
    assert [policy.is_open(at(text)) for text in opened] == [True] * len(opened)
    assert [policy.is_open(at(text)) for text in closed] == [False] * len(closed)


@pytest.mark.parametrize(
    "words",
    [
        {"fixes": []},
        {"fixes": ["shrink"]},
        {"repository": ""},
        {"every_s": 0},
        {"at_most": 0},
        {"rate_limit_bytes_per_s": -1},
        {"day": "Sunday"},
    ],
)
def test_what_is_no_policy(words: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"repository": "*", "fixes": ["clean"], **words}, Policy)


@pytest.mark.parametrize(
    "hours",
    [
        "22-06",
        "22:00",
        "22:00-22:00",
        "24:00-06:00",
        "22:00-24:01",
        "22:60-06:00",
        " 22:00-06:00",
        "２２:00-06:00",
    ],
)
def test_what_are_no_hours(hours: str) -> None:
    with pytest.raises(ValueError, match="they must be"):
        Policy(repository="*", hours=hours).is_open(0.0)


def test_the_defaults() -> None:
    policy = msgspec.convert({"repository": "*", "fixes": ["clean", "merge"]}, Policy)
    assert policy == Policy(repository="*", fixes=("clean", "merge"))
    assert (policy.hours, policy.every_s, policy.at_most, policy.rate_limit_bytes_per_s) == ("", 3600, 100, 0)
