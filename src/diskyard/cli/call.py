"""``diskyard call``: every verb of the API, for scripts."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click

from diskyard import errors
from diskyard.cli.base import Command
from diskyard.cli.complete import complete_verb
from diskyard.cli.output import print_json
from diskyard.cli.session import open_yard, refuse

_LIMIT_BYTES = 16 << 20
_RUNS_HERE = ("exportImage", "fixStorageRepository")


@click.command(
    cls=Command,
    short_help="Call a verb of the API, for scripts.",
    example='diskyard call listImages \'{"repositoryId": "fast"}\'\n'
    'echo \'{"repositoryId": "fast", "imageId": "…"}\' | diskyard call getImageStatus -',
)
@click.argument("verb", shell_complete=complete_verb)
@click.argument("parameters", default="{}", metavar="['JSON' | -]")
@click.option(
    "--no-wait",
    is_flag=True,
    help="Exit as soon as the change is committed. A daemon goes on with the tasks that follow. Without "
    "a daemon nothing would run them: AutoFix is then false, and checkStorageRepository lists the "
    "fixes. Verbs whose result is a Task of this process are refused.",
)
def call(verb: str, parameters: str, no_wait: bool) -> None:
    """Call a VERB of the API with its parameters as a JSON object, or - to read them from stdin.

    The result is one JSON value on stdout, printed as soon as it is committed. An error is
    one JSON object on stderr, and the exit status is that of its code. Then the command waits
    for the tasks that the verb started. If a task fails, the command ends with the task's error.
    After prepareImage with serve, the command serves until it is interrupted. A daemon serves
    until teardownImage; with --no-wait the command does not wait for that.
    """
    words = _decode(_stdin() if parameters == "-" else parameters.encode())
    with open_yard(no_wait) as yard:
        if no_wait and yard.url is None:
            words = _without_fixes(verb, words)
        result = yard.call(verb, words)
        print_json(result)
        sys.stdout.flush()
        serves = isinstance(result, dict) and result.get("nbdUri")
        while serves and not (no_wait and yard.url is not None):
            signal.pause()


def _stdin() -> bytes:
    data = sys.stdin.buffer.read(_LIMIT_BYTES + 1)
    if len(data) > _LIMIT_BYTES:
        raise refuse("The parameters are longer than 16 MiB.", "Send a smaller request.")
    return data


def _decode(data: bytes) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.InvalidParameter(f"The parameters are not JSON: {error}.") from error


def _without_fixes(verb: str, words: Any) -> Any:
    """The parameters with AutoFix false, if the verb has options."""
    from diskyard.model.verbs import VERBS

    if verb in _RUNS_HERE:
        raise refuse(f"{verb} does its work in this process, which would end.", "Call it without --no-wait.")
    if verb not in VERBS or "options" not in VERBS[verb].request.__struct_fields__:
        return words
    if not isinstance(words, dict) or not isinstance(words.get("options", {}), dict):
        return words  # the verb's own error says what is wrong with them
    return {**words, "options": {**words.get("options", {}), "AutoFix": False}}
