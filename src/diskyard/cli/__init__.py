"""The command line: for people, and every verb of the API for scripts (``diskyard call``)."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the program ``diskyard`` with this process's arguments, and exit."""
    from diskyard.cli.streams import Streams

    streams = Streams()
    from diskyard.cli.program import run

    sys.exit(streams.end(run(sys.argv[1:]), sys.argv[1:]))
