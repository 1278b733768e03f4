"""``diskyard token``: who may call the daemon over TCP."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import click

from diskyard import errors
from diskyard.cli.base import Group, wants_json
from diskyard.cli.complete import complete_repo
from diskyard.cli.output import answer, note, on_terminal, print_json, print_table, say

if TYPE_CHECKING:
    from diskyard.daemon.revocations import Revocation
    from diskyard.daemon.tokens import Scope, Token, Tokens

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_MINUTE = len("2026-01-31T12:00")


class _Duration(click.ParamType[int]):
    """A time such as 90d or 12h, as seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds."""
        found = re.fullmatch("([0-9]{1,9})([smhdwy])", str(value))
        if found is None:
            self.fail(f"{value!r:.80} is not a duration; write it as 90d, 12h, 4w or 1y.", param, ctx)
        return int(found[1]) * _UNITS_S[found[2]]


_config = click.option(
    "--config",
    type=click.Path(),
    metavar="FILE",
    help="The daemon's configuration, which says where its state is; default: the usual file.",
)


@click.group("token", cls=Group, short_help="Who may call the daemon over TCP.")
def token() -> None:
    """Tokens for calling the daemon over TCP. No daemon need run; a running one sees changes at once."""


def _tokens(config: str | None) -> tuple[Tokens, str]:
    """The tokens, and the audit file of their daemon; empty if it cannot be known."""
    from diskyard.daemon.config import load, state_folder
    from diskyard.daemon.tokens import Tokens

    # DISKYARD_STATE_DIR is for one command. Without it, the configuration names the directory.
    given = os.environ.get("DISKYARD_STATE_DIR") if config is None else None
    try:
        loaded = load(config)
    except errors.DiskyardError as error:
        if not given:
            raise
        note(f"The change is recorded only in the system's log: {error.message}")
        return Tokens(os.path.abspath(given)), ""
    return Tokens(os.path.abspath(given) if given else state_folder(loaded)), loaded.log.audit_file


def _note_change(audit_file: str, verb: str, changed: Token) -> None:
    from diskyard.daemon.token_audit import note_change

    failed = note_change(audit_file, verb, changed)
    if failed is not None:
        note(f"The audit trail could not be written ({failed}).")


@token.command(example="diskyard token create backup --scope write --repo fast --expires 90d")
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice(["read", "write", "admin"]),
    required=True,
    help="read: look only; write: also change images and run fixes; admin: also connect, create and "
    "remove repositories.",
)
@click.option(
    "--repo", "repos", multiple=True, shell_complete=complete_repo, help="Only for this repository."
)
@click.option(
    "--transfer-folder",
    "folders",
    multiple=True,
    metavar="PATH",
    help="Import from this directory, and export to it; default: those of [transfer] in the configuration.",
)
@click.option(
    "--expires", type=_Duration(), help="How long it is valid, such as 90d or 12h; default: for ever."
)
@_config
def create(
    name: str,
    scope: Scope,
    repos: tuple[str, ...],
    folders: tuple[str, ...],
    expires: int | None,
    config: str | None,
) -> None:
    """Make a token and print it. It is shown only this once: the daemon keeps only a hash of it."""
    tokens, audit_file = _tokens(config)
    made, text = tokens.create(name, scope, repos or None, expires, folders or None)
    _note_change(audit_file, "createToken", made)
    if wants_json():
        import msgspec

        print_json({"token": text, **msgspec.to_builtins(made)})
        return
    say(text)
    note(f"Keep it safe: it is not shown again. 'diskyard token revoke {name}' ends it.")


@token.command("list", example="diskyard token list")
@click.option(
    "--revoked", is_flag=True, help="Show the last revoked tokens instead, with who revoked them and when."
)
@_config
def list_(revoked: bool, config: str | None) -> None:
    """List the tokens that are not revoked, the oldest first; their secrets are not stored."""
    tokens, _ = _tokens(config)
    if revoked:
        _print_revoked(tokens.revoked())
        return
    found = tokens.all()
    if wants_json():
        print_json(found)
        return
    print_table(
        ["TOKEN", "~NAME", "SCOPE", "~REPOS", "CREATED", "EXPIRES"],
        [
            (
                one.token_id,
                one.name,
                one.scope,
                "all" if one.repositories is None else " ".join(one.repositories),
                _time(one.created_at),
                "expired" if tokens.has_expired(one) else _time(one.expires_at or "never"),
            )
            for one in found
        ],
    )


def _print_revoked(marks: list[Revocation]) -> None:
    if wants_json():
        print_json(marks)
        return
    rows = [(one.token_id, one.name, _time(one.revoked_at), one.revoked_by) for one in marks]
    print_table(["TOKEN", "~NAME", "REVOKED", "~BY"], rows)


def _time(text: str) -> str:
    return text[:_MINUTE].replace("T", " ") if on_terminal() else text


@token.command(example="diskyard token revoke backup")
@click.argument("token", metavar="ID|NAME")
@_config
def revoke(token: str, config: str | None) -> None:
    """Revoke a token: from now on it is refused. This needs no space on the disk."""
    from diskyard.daemon.token_audit import operator

    tokens, audit_file = _tokens(config)
    revoked = tokens.revoke(token, operator())
    _note_change(audit_file, "revokeToken", revoked)
    answer({"tokenId": revoked.token_id}, f"Token {revoked.name} is revoked.")
