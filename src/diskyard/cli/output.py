"""What commands print: JSON, tables, lines, errors."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from diskyard.cli.base import wants_json
from diskyard.cli.values import shown
from diskyard.errors import DiskyardError


def print_json(value: Any, *, err: bool = False) -> None:
    """One JSON value on a line of its own, at once."""
    import msgspec

    click.echo(msgspec.json.encode(value), err=err)


def print_error(error: DiskyardError, *, as_json: bool) -> None:
    """An error on stderr: as one JSON object, or its sentence and its advice."""
    if as_json:
        print_json(error.to_json(), err=True)
        return
    click.echo(f"diskyard: {_lines(error.message)}", err=True)
    if error.advice:
        click.echo(f"  {_lines(error.advice)}", err=True)


def _lines(text: str) -> str:
    return "\n  ".join(shown(line) for line in text.splitlines())


def note(text: str) -> None:
    """A remark for people, on stderr: what is on stdout may be read by a program."""
    if not wants_json():
        click.echo(_lines(text), err=True)


def answer(value: Any, text: str) -> None:
    """The one thing that a command answers: as JSON, or as text for people."""
    if wants_json():
        print_json(value)
    else:
        click.echo(text)


def on_terminal() -> bool:
    """Whether what is printed goes to a terminal."""
    return sys.stdout.isatty()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; a column whose title starts with ``>`` is aligned to the right.

    On a terminal it is drawn to its width; else columns are two spaces apart.
    """
    titles = [column.removeprefix(">") for column in columns]
    right = [column.startswith(">") for column in columns]
    cells = [[shown("" if cell is None else cell) for cell in row] for row in rows]
    if on_terminal():
        _draw(titles, right, cells)
        return
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    for row in [titles, *cells]:
        aligned = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ]
        click.echo("  ".join(aligned).rstrip())


def _draw(titles: Sequence[str], right: Sequence[bool], cells: Iterable[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title, is_right in zip(titles, right, strict=True):
        table.add_column(title, justify="right" if is_right else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Names and values, one pair a line; pairs without a value are left out."""
    pairs = [(name, shown(value)) for name, value in fields if value not in (None, "", (), {})]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        click.echo(f"{name:<{width}}  {value}")
