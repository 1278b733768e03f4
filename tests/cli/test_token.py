"""``diskyard token``, which needs no daemon."""

from __future__ import annotations

import json
import os
import pwd
import re
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from diskyard import errors
from diskyard.cli import token as token_commands
from diskyard.daemon import token_audit
from diskyard.daemon.tokens import Tokens
from tests.cli.program import Program

TOKEN = re.compile("dy_[0-9a-f]{8}_[A-Za-z0-9_-]{43}\n")


def test_a_configuration_that_cannot_be_read_keeps_nobody_from_revoking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the environment says which state folder is meant."""
    (tmp_path / "diskyard.toml").write_text("no TOML")
    monkeypatch.setattr("diskyard.daemon.config.DEFAULT_PATH", str(tmp_path / "diskyard.toml"))
    monkeypatch.setenv("DISKYARD_STATE_DIR", str(tmp_path / "state"))
    runner = CliRunner()
    made = runner.invoke(token_commands.token, ["create", "ci", "--scope", "read"])
    assert made.exit_code == 0, made
    assert "is not TOML" in made.stderr
    assert runner.invoke(token_commands.token, ["revoke", "ci"]).exit_code == 0
    assert Tokens(str(tmp_path / "state")).all() == []
    monkeypatch.delenv("DISKYARD_STATE_DIR")
    assert isinstance(runner.invoke(token_commands.token, ["list"]).exception, errors.InvalidParameter)


def test_create_list_revoke(unconnected: Program) -> None:
    ended = unconnected.run("token", "create", "ci", "--scope", "read")
    assert TOKEN.fullmatch(ended.out)
    assert "not shown again" in ended.err
    more = ("--scope", "write", "--repo", "fast", "--repo", "backup", "--expires", "90d", "--json")
    made = unconnected.run("token", "create", "night", *more).json
    assert TOKEN.fullmatch(made["token"] + "\n")
    tokens = Tokens(os.environ["DISKYARD_STATE_DIR"])
    assert [tokens.verify(text) for text in (ended.out.strip(), made["token"])] == tokens.all()

    listed = unconnected.run("token", "list").out
    assert [line.split()[1:4] for line in listed.splitlines()] == [
        ["NAME", "SCOPE", "REPOS"],
        ["ci", "read", "all"],
        ["night", "write", "fast"],
    ]
    assert "never" in listed
    both = unconnected.run("token", "list", "--json").json
    assert [one["name"] for one in both] == ["ci", "night"]
    assert "sha256" not in str(both)

    assert unconnected.run("token", "revoke", "ci").out == "Token ci is revoked.\n"
    revoked = unconnected.run("token", "revoke", made["tokenId"], "--json").json
    assert revoked == {"tokenId": made["tokenId"]}
    assert "already" not in unconnected.run("token", "revoke", "ci", status=10).err
    assert tokens.all() == []


def test_what_cannot_be_made(unconnected: Program) -> None:
    run = unconnected.run
    run("token", "create", "ci", status=2)
    run("token", "create", "ci", "--scope", "root", status=2)
    for text in ("90", "d", "-1d", "1.5d", "9999999999d"):
        run("token", "create", "ci", "--scope", "read", "--expires", text, status=2)
    assert '"InvalidParameter"' in run("token", "create", "a b", "--scope", "read", "--json", status=10).err
    assert run("token", "list", "--json").json == []


def test_the_state_folder_of_a_daemons_configuration(unconnected: Program, tmp_path: Path) -> None:
    config = tmp_path / "diskyard.toml"
    config.write_text(f'state_dir = "{tmp_path}/daemon"\n')
    text = unconnected.run("token", "create", "ci", "--scope", "read", "--config", str(config)).out.strip()
    assert Tokens(str(tmp_path / "daemon")).verify(text) is not None
    assert unconnected.run("token", "list", "--json").json == []
    config.write_text("colour = 1\n")
    assert "colour" in unconnected.run("token", "list", "--config", str(config), status=10).err


def test_who_revoked_what(unconnected: Program) -> None:
    unconnected.run("token", "create", "ci", "--scope", "read", "--transfer-folder", "/srv/in")
    assert unconnected.run("token", "list", "--json").json[0]["transferFolders"] == ["/srv/in"]
    unconnected.run("token", "create", "x", "--scope", "read", "--transfer-folder", "srv", status=10)
    unconnected.run("token", "revoke", "ci", SUDO_USER="alice")
    (told,) = unconnected.run("token", "list", "--revoked", "--json").json
    me = pwd.getpwuid(os.getuid()).pw_name
    by = f"user:{me} (sudo of alice)" if os.getuid() == 0 else f"user:{me}"
    assert (told["name"], told["revokedBy"]) == ("ci", by)
    assert f"user:{me}" in unconnected.run("token", "list", "--revoked").out


def test_without_an_audit_file_the_systems_log_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state_dir: Path
) -> None:
    made, _ = Tokens(str(state_dir)).create("ci", "read")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        monkeypatch.chdir(tmp_path)  # the path of a socket is short
        log.bind("log")
        monkeypatch.setattr(token_audit, "_SYSTEM_LOG", "log")
        assert token_audit.note_change("", "createToken", made) is None
        told = log.recv(4096).decode()
    head, _, line = told.partition(": ")
    assert re.fullmatch(r"<37>diskyard\[\d+\]", head)
    assert json.loads(line)["tokenId"] == made.token_id
    monkeypatch.setattr(token_audit, "_SYSTEM_LOG", "nobody")
    assert "nobody" in (token_audit.note_change("", "createToken", made) or "")
