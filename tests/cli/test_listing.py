"""A list that is longer than what is printed at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from diskyard import errors
from diskyard.cli import find, listing, output
from diskyard.model.results import ImageInfo, ImagePage

AT_ONCE = 3
WHEN = "2026-01-31T12:00:00.000000Z"


def image(number: int) -> ImageInfo:
    return ImageInfo(
        image_id=f"00000000-0000-4000-8000-{number:012x}",
        kind="snapshot",
        size_bytes=512,
        exclusive_bytes=0,
        shared_bytes=0,
        strategy="space",
        status="optimized",
        created_at=WHEN,
        captured_at=WHEN,
        user_data={"name": f"name {number}"},
        revision="0.",
    )


class Yard:
    """Repositories of so many images; below 0, one that fails after so many."""

    def __init__(self, **counts: int) -> None:
        self._counts = counts

    def connected(self) -> dict[str, int]:
        return self._counts

    def list_images(self, repo: str, *, limit: int, cursor: str | None, **_: Any) -> ImagePage:
        count = self._counts[repo]
        begin = int(cursor or 0)
        if count < 0 and begin >= -count:
            raise errors.RepositoryUnavailable("It does not answer.")
        end = min(begin + limit, abs(count))
        is_last = count >= 0 and end == count
        images = tuple(image(number) for number in range(begin, end))
        return ImagePage(images=images, next_cursor=None if is_last else str(end))


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Lists a yard, as JSON or not, and gives what was printed."""
    monkeypatch.setattr(find, "PAGE", AT_ONCE)
    monkeypatch.setattr(listing, "PAGE", AT_ONCE)

    def run(yard: Yard, *, as_json: bool, repo: str | None = None, fails: bool = False) -> str:
        def repository() -> AbstractContextManager[Yard]:
            return nullcontext(yard)

        monkeypatch.setattr(listing, "open_yard", repository)
        monkeypatch.setattr(listing, "wants_json", lambda: as_json)
        monkeypatch.setattr(output, "wants_json", lambda: as_json)
        if fails:
            with pytest.raises(errors.RepositoryUnavailable):
                listing.list_images(repo, None, None)
        else:
            listing.list_images(repo, None, None)
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("counts", [{}, {"a": 0}, {"a": 2}, {"a": 3, "b": 0}, {"a": 7}, {"a": 4, "b": 5}])
def test_one_json_value_on_one_line(listed: Callable[..., str], counts: dict[str, int]) -> None:
    out = listed(Yard(**counts), as_json=True)
    assert out.count("\n") == 1
    seen = [(found["repoId"], found["userData"]["name"]) for found in json.loads(out)]
    assert seen == [(repo, f"name {number}") for repo, count in counts.items() for number in range(count)]


@pytest.mark.parametrize("count", [0, 2, 3, 7])
def test_a_table_with_one_heading(listed: Callable[..., str], count: int) -> None:
    heading, *rows = listed(Yard(a=count), as_json=False).splitlines()
    assert heading.split()[:2] == ["IMAGE", "KIND"]
    assert [row.split("  ")[0] for row in rows] == [f"a/name {number}" for number in range(count)]


def test_what_fails_is_told_after_what_did_not(listed: Callable[..., str]) -> None:
    """What was printed before is a whole value all the same."""
    seen = json.loads(listed(Yard(a=-5, b=2), as_json=True, fails=True))
    assert [found["repoId"] for found in seen] == ["a"] * 5 + ["b"] * 2
    assert len(json.loads(listed(Yard(a=-5), as_json=True, repo="a", fails=True))) == 5
    assert listed(Yard(a=-1), as_json=True, repo="a", fails=True) == ""
