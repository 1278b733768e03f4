"""Values as people type them: sizes, rates, KEY=VALUE; and sizes and times as people read them."""

from __future__ import annotations

import re
from typing import Any

import click

_UNITS = "KMGTPE"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGTPE])(?:iB)?|B)?(?:/s)?", re.IGNORECASE | re.ASCII)
_DIGITS_LIMIT = 30


def parse_size(text: str) -> int:
    """The bytes in a size such as 10G, 1.5T, 512MiB or 4096; units are powers of 1024.

    :raises ValueError: it is not a size, or not a whole number of bytes.
    """
    match = _SIZE.fullmatch(text.strip()) if len(text) <= _DIGITS_LIMIT else None
    if match is None:
        raise ValueError(f"{text!r:.80} is not a size; write it as 10G, 512M, 1T or in bytes")
    power = _UNITS.index(match[2].upper()) + 1 if match[2] else 0
    whole, _, decimals = match[1].partition(".")
    size_bytes, rest = divmod(int(whole + decimals) << 10 * power, int("1" + "0" * len(decimals)))
    if rest:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return size_bytes


class Size(click.ParamType[int]):
    """A size, as a number of bytes.

    :param name: its name in help texts.
    """

    def __init__(self, name: str = "size") -> None:
        self.name = name

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class NewSize(click.ParamType[tuple[int, bool]]):
    """A size, or with a ``+`` an addition to one: ``(bytes, whether it is an addition)``."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, bool]:
        """Bytes, and whether they are an addition."""
        if isinstance(value, tuple):
            return value
        text = str(value).strip()
        return Size().convert(text.removeprefix("+"), param, ctx), text.startswith("+")


SIZE, RATE, NEW_SIZE = Size(), Size("rate"), NewSize()


def key_values(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """A dictionary from arguments such as KEY=VALUE; used as the callback of an option."""
    found: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE.", context, parameter)
        if key in found:
            raise click.BadParameter(f"{key} is given twice.", context, parameter)
        found[key] = value
    return found


def human_size(size_bytes: int | None) -> str:
    """A size for people: 10 GiB, 1.5 MiB, 512 B."""
    if size_bytes is None:
        return "?"
    size, unit = float(size_bytes), "B"
    for letter in _UNITS:
        if abs(size) < 1024:
            break
        size, unit = size / 1024, f"{letter}iB"
    digits = 0 if unit == "B" or size == int(size) or size >= 100 else 1
    return f"{size:.{digits}f} {unit}"


def human_time(time_s: int) -> str:
    """A time for people: 3 d 4 h, 2 h 5 min, 12 min 30 s, 40 s."""
    minutes, seconds = divmod(time_s, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{number} {unit}" for number, unit in parts[:2] if number) or "0 s"


def shown(text: object) -> str:
    """Text that others wrote, without characters that move a terminal's cursor or reverse the text."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def json_text(value: Any) -> str:
    """A value as JSON on one line. In its strings the same characters are escaped."""
    import msgspec

    text = msgspec.json.encode(value).decode()
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    """A character as JSON escapes it: in UTF-16, where it may take two units."""
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))
