"""``diskyard token``, which needs no daemon."""

from __future__ import annotations

import os
import re
from pathlib import Path

from diskyard.daemon.tokens import Tokens
from tests.cli.program import Program

TOKEN = re.compile("dy_[0-9a-f]{8}_[A-Za-z0-9_-]{43}\n")


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
