"""``diskyard completion``: the script for completion in a shell."""

from __future__ import annotations

import click

from diskyard.cli.base import Command, wants_json
from diskyard.cli.output import print_json

_VARIABLE = "_DISKYARD_COMPLETE"


@click.command(
    cls=Command,
    short_help="Print a shell's completion script.",
    example="diskyard completion bash > ~/.local/share/bash-completion/completions/diskyard\n"
    "source <(diskyard completion zsh)        # in ~/.zshrc\ndiskyard completion fish | source",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that makes a SHELL complete commands, repositories, images and verbs."""
    from click.shell_completion import get_completion_class

    completer = get_completion_class(shell)
    assert completer is not None
    script = completer(click.get_current_context().find_root().command, {}, "diskyard", _VARIABLE).source()
    if wants_json():
        print_json({"shell": shell, "script": script})
    else:
        click.echo(script)
