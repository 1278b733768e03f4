from __future__ import annotations

import click
import pytest

from diskyard.cli.values import NEW_SIZE, human_size, human_time, parse_size, shown


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("10G", 10 << 30),
        ("512m", 512 << 20),
        ("1.5T", 3 << 39),
        ("4KiB", 4096),
        (" 7 MiB ", 7 << 20),
        ("50M/s", 50 << 20),
        ("100B", 100),
        ("0", 0),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1e9", "10GB", "0.1K", "٣", "1" * 31, "1.G", "+5"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a size|not a whole number"):
        parse_size(text)


def test_a_size_that_is_added() -> None:
    assert NEW_SIZE.convert("+20G", None, None) == (20 << 30, True)
    assert NEW_SIZE.convert("20G", None, None) == (20 << 30, False)
    with pytest.raises(click.BadParameter):
        NEW_SIZE.convert("++1G", None, None)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (200 << 30, "200 GiB"), (None, "?")],
)
def test_sizes_for_people(size: int | None, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("time_s", "text"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (750, "12 min 30 s"),
        (7200, "2 h"),
        (7205, "2 h"),
        (7500, "2 h 5 min"),
        (100 * 3600, "4 d 4 h"),
        (86400, "1 d"),
    ],
)
def test_times_for_people(time_s: int, text: str) -> None:
    assert human_time(time_s) == text


def test_what_others_wrote_cannot_move_the_cursor() -> None:
    assert shown("a\x1b[2Jb\nc\u202e") == "a\ufffd[2Jb\ufffdc\ufffd"
