"""What all commands have: ``--json``, an example in their help, and options they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from diskyard.cli.values import RATE, key_values

_JSON = "diskyard.json"
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def _json_option() -> click.Option:
    def note(context: click.Context, _: click.Parameter, given: bool) -> None:
        if given:
            context.meta[_JSON] = True

    return click.Option(
        ["--json"], is_flag=True, expose_value=False, callback=note, help="Print JSON, errors too."
    )


def wants_json() -> bool:
    """Whether the running command was asked for JSON."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_JSON))


class Command(click.Command):
    """A command that takes ``--json``.

    :param example: one line or more that show it at work.
    """

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        if example:
            lines = "\n".join(f"  {line}" for line in example.splitlines())
            kwargs["epilog"] = f"\b\nExample:\n{lines}"
        super().__init__(*args, **kwargs)
        self.params.append(_json_option())


class Group(click.Group):
    """A group whose commands take ``--json``."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_json_option())


def _together(*options: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    def decorate(command: Decorated) -> Decorated:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


describing = _together(
    click.option("--name", help="A name, which no other image of the repository has."),
    click.option("--description", help="A sentence for people."),
    click.option(
        "--label", "labels", multiple=True, metavar="KEY=VALUE", callback=key_values, help="A label."
    ),
)
no_wait = click.option(
    "--no-wait", is_flag=True, help="Only commit; the rest stays listed by 'diskyard repo check'."
)
rate = click.option("--rate", type=RATE, default=0, help="Bytes per second at most, as 50M; 0 for no limit.")
strategy = click.option(
    "--strategy", type=click.Choice(["space", "performance"]), help="What the image is optimized for."
)
new_id = click.option(
    "--id", "new_image_id", metavar="UUID", help="The new image's id; makes repeating the command safe."
)
optimize = click.option(
    "--optimize", "optimize_now", is_flag=True, help="Go on to optimized, not only to usable."
)
