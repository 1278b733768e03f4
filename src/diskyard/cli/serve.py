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
@click.option(
    "--config", "config_path", metavar="FILE", help="Read this file instead of /etc/diskyard/diskyard.toml."
)
@click.option("--check-config", is_flag=True, help="Only report what is wrong with the configuration.")
def serve(config_path: str | None, check_config: bool) -> None:
    """Serve the API over HTTP, on a Unix socket and, if configured, over TLS.

    On SIGTERM or Ctrl-C it shuts down in order: running tasks stop at their next checkpoint, and
    'diskyard repo check' still lists their fixes. Logs go to stderr.
    """
    from diskyard.daemon.daemon import Daemon, checked_config

    config = checked_config(config_path)
    if check_config:
        answer({"ok": True}, "The configuration is valid.")
        return
    Daemon(config).run()
