"""What all commands have: ``--json``, where they run, an example in their help, shared options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from diskyard.cli.values import RATE, key_values

_JSON = "diskyard.json"
_URL = "diskyard.url"
_EMBEDDED = "diskyard.embedded"
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def _json_option() -> click.Option:
    def note(context: click.Context, _: click.Parameter, given: bool) -> None:
        if given:
            context.meta[_JSON] = True

    return click.Option(
        ["--json"], is_flag=True, expose_value=False, callback=note, help="Print JSON, including errors."
    )


def _where_options() -> list[click.Option]:
    """``--url`` and ``--embedded``, which the program and every command accept, in any position."""

    def note(context: click.Context, option: click.Parameter, given: str | bool | None) -> None:
        if given:
            context.meta[_URL if option.name == "url" else _EMBEDDED] = given

    return [
        click.Option(
            ["--url"],
            metavar="URL",
            expose_value=False,
            callback=note,
            help="Call the daemon at URL: unix:///path/to.sock or https://host:port.",
        ),
        click.Option(
            ["--embedded"],
            is_flag=True,
            expose_value=False,
            callback=note,
            help="Do the work in this process, even if a daemon runs.",
        ),
    ]


def wants_json() -> bool:
    """Whether the running command has ``--json``."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_JSON))


def typed_url() -> str | None:
    """The daemon that the command line names, if it names one."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.meta.get(_URL)


def wants_embedded() -> bool:
    """Whether the command line says to use no daemon."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_EMBEDDED))


class Command(click.Command):
    """A command that accepts ``--json``, ``--url`` and ``--embedded``.

    :param example: one line or more that show it in use.
    """

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        if example:
            lines = "\n".join(f"  {line}" for line in example.splitlines())
            kwargs["epilog"] = f"\b\nExample:\n{lines}"
        super().__init__(*args, **kwargs)
        self.params += [_json_option(), *_where_options()]


class Group(click.Group):
    """A group whose commands accept ``--json``, ``--url`` and ``--embedded``."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [_json_option(), *_where_options()]


def _together(*options: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    def decorate(command: Decorated) -> Decorated:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


describing = _together(
    click.option("--name", help="A name that no other image of the repository has."),
    click.option("--description", help="A description for people."),
    click.option(
        "--label", "labels", multiple=True, metavar="KEY=VALUE", callback=key_values, help="A label."
    ),
)
no_wait = click.option(
    "--no-wait",
    is_flag=True,
    help="Only commit. A daemon goes on with the rest; without one, 'diskyard repo check' lists it.",
)
rate = click.option(
    "--rate", type=RATE, default=0, help="Limit in bytes per second, such as 50M; 0 for none."
)
strategy = click.option(
    "--strategy", type=click.Choice(["space", "performance"]), help="What the image is optimized for."
)
new_id = click.option(
    "--id", "new_image_id", metavar="UUID", help="The new image's id; makes repeating the command safe."
)
optimize = click.option(
    "--optimize", "optimize_now", is_flag=True, help="Continue until the image is optimized, not only usable."
)
