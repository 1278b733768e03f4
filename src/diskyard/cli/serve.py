"""``diskyard serve``: the daemon of a host."""

from __future__ import annotations

import click

from diskyard.cli.base import Command
from diskyard.cli.output import answer


@click.command(
    cls=Command,
    short_help="Serve the API over HTTP.",
    example="diskyard serve\ndiskyard serve --config /etc/diskyard/diskyard.toml --check-config",
)
@click.option("--config", "config_path", metavar="FILE", help="Instead of /etc/diskyard/diskyard.toml.")
@click.option("--check-config", is_flag=True, help="Only say what is wrong with the configuration.")
def serve(config_path: str | None, check_config: bool) -> None:
    """Serve the API over HTTP, on a Unix socket and, where it is configured, over TLS.

    It ends in order at SIGTERM or Ctrl-C: what runs stops at its next checkpoint, and stays listed by
    'diskyard repo check'. Logs go to stderr.
    """
    from diskyard.daemon.daemon import Daemon, checked_config

    config = checked_config(config_path)
    if check_config:
        answer({"ok": True}, "The configuration is well.")
        return
    Daemon(config).run()
