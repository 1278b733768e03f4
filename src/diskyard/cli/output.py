"""Printing: JSON, tables, lines, errors."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from diskyard.cli.base import wants_json
from diskyard.cli.values import json_text, shown
from diskyard.errors import DiskyardError

if TYPE_CHECKING:
    from rich.console import JustifyMethod


def print_json(value: Any, *, err: bool = False) -> None:
    """Print a JSON value on a line of its own, at once."""
    click.echo(json_text(value), err=err)


def say(text: str, *, err: bool = False) -> None:
    """Print a line of text. Others may have written parts of it, but nothing in it acts on a terminal."""
    click.echo(shown(text), err=err)


def say_lines(text: str) -> None:
    """The same for text with several lines."""
    for line in text.split("\n"):
        say(line)


def print_error(error: DiskyardError, *, as_json: bool) -> None:
    """Print an error on stderr: one JSON object, or its sentence and its advice."""
    if as_json:
        print_json(error.to_json(), err=True)
        return
    click.echo(f"diskyard: {_lines(error.message)}", err=True)
    if error.advice:
        click.echo(f"  {_lines(error.advice)}", err=True)


def _lines(text: str) -> str:
    return "\n  ".join(shown(line) for line in text.splitlines())


def note(text: str) -> None:
    """Print a remark for people, on stderr, since a program may read stdout."""
    if not wants_json():
        click.echo(_lines(text), err=True)


def answer(value: Any, text: str) -> None:
    """Print a command's result: as JSON, or as text for people."""
    if wants_json():
        print_json(value)
    else:
        say(text)


def on_terminal() -> bool:
    """Whether the output goes to a terminal."""
    return sys.stdout.isatty()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, heading: bool = True) -> None:
    """Print a table; a column is aligned to the right if its title starts with ``>``.

    On a terminal the table fits its width, and columns whose titles start with ``~`` may be
    folded for that. Otherwise columns are two spaces apart.

    :param heading: print the titles too; not for the continuation of a table.
    """
    titles = [column.lstrip(">~") for column in columns]
    right = [column.startswith(">") for column in columns]
    cells = [[shown("" if cell is None else cell) for cell in row] for row in rows]
    if on_terminal():
        _draw(columns, cells, heading=heading)
        return
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    for row in [titles, *cells] if heading else cells:
        aligned = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ]
        click.echo("  ".join(aligned).rstrip())


def _draw(columns: Sequence[str], cells: Iterable[Sequence[str]], *, heading: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=heading)
    for column in columns:
        justify: JustifyMethod = "right" if column.startswith(">") else "left"
        folds = column.startswith("~")
        table.add_column(column.lstrip(">~"), justify=justify, no_wrap=not folds, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one pair per line; pairs without a value are left out."""
    pairs = [(shown(name), shown(value)) for name, value in fields if value not in (None, "", (), {})]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        click.echo(f"{name:<{width}}  {value}")
