"""The program: its groups of commands, and how each way in which it can end appears to the caller."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import click

from diskyard import errors
from diskyard.cli import base, session
from diskyard.cli.call import call
from diskyard.cli.completion import completion
from diskyard.cli.disk import disk
from diskyard.cli.image import image
from diskyard.cli.output import print_error, print_json, say
from diskyard.cli.repo import repo
from diskyard.cli.serve import serve
from diskyard.cli.snapshot import snapshot
from diskyard.cli.task import task
from diskyard.cli.token import token

_EXIT_OTHER = 1
_EXIT_USAGE = 2


def _print_version(context: click.Context, _: click.Parameter, given: bool) -> None:
    if given:
        from importlib.metadata import version

        say(f"diskyard {version('diskyard')}")
        context.exit()


@click.group(
    cls=base.Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Name images as REPO/NAME, as REPO/ID, by an id or at least its first four characters,
or by NAME alone if only one image has it. Sizes: 10G, 512M, 1T, or bytes.

\b
Exit status: 0 success; 1 a task was stopped, or --exit-code found something; 2 the command
line cannot be parsed; 10 to 38 an error (docs/errors.md); 130, 143 interrupted; 141 nobody read
the output.

\b
If a daemon (diskyard serve) runs with the same state directory, commands use it. --url or
DISKYARD_URL names another daemon; --embedded uses none.

\b
Environment:
  DISKYARD_URL        a daemon: unix:///path/to.sock or https://host:port
  DISKYARD_TOKEN      the token for https; or put the name of a file with it in
                      DISKYARD_TOKEN_FILE
  DISKYARD_CA_FILE    the certificate of the authority that signed the daemon's (PEM)
  DISKYARD_STATE_DIR  the directory in which this host keeps connections and tasks
  DISKYARD_HOST_ID    this host's name for other hosts
  DISKYARD_STORAGE_TIMEOUT_S
                      how many seconds storage may take to answer one call (30)
""",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
def program() -> None:
    """Manage the disk images of virtual machines: disks, snapshots, and copies of them."""


for _command in (repo, image, disk, snapshot, task, serve, token, call, completion):
    program.add_command(_command)


def run(arguments: Sequence[str]) -> int:
    """Run a command line. Return the exit status. Only a defect of Diskyard shows a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    session.catch_signals()
    # For errors in reading the command line itself. What follows -- is not an option.
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json = "--json" in options or "call" in options[:1]
    try:
        _require_text(arguments)
        status = program.main(list(arguments), prog_name="diskyard", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except errors.DiskyardError as error:
        print_error(error, as_json=as_json)
        return error.exit_status
    except OSError as error:
        failed = errors.from_os_error(error, f"running diskyard {' '.join(options[:2])}")
        print_error(failed, as_json=as_json)
        return failed.exit_status
    except click.ClickException as error:
        error.show()
        return _EXIT_USAGE
    except session.StoppedByOther as stopped:
        words = f"{stopped}; its fix stays listed for 'diskyard repo fix'."
        if as_json:
            print_json({"message": words, "taskId": stopped.task_id}, err=True)
        else:
            say(f"diskyard: {words}", err=True)
        return _EXIT_OTHER
    except session.Interrupted as interrupted:
        session.say_interrupted(interrupted, as_json=as_json)
        return interrupted.exit_status


def _require_text(arguments: Sequence[str]) -> None:
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise errors.InvalidParameter(f"{argument!r:.80} is not UTF-8.") from None
