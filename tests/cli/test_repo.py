from __future__ import annotations

import json
import os
import shutil

from tests.cli.program import Program

MiB = 1 << 20


def test_create_connect_list_disconnect_remove(unconnected: Program) -> None:
    run = unconnected.run
    run("repo", "create", "localfs-1.0", "path=fast")
    run("repo", "connect", "fast", "localfs-1.0", "path=fast")
    (info,) = run("repo", "list", "--json").json
    assert info["repoId"] == "fast"
    assert info["connectionParameters"] == {"path": str(unconnected.folder / "fast")}
    assert "localfs-1.0" in run("repo", "list").out
    assert run("repo", "check", "fast").err == "fast needs no fix.\n"
    run("repo", "disconnect", "fast")
    run("repo", "check", "fast", status=16)
    run("repo", "connect", "fast", "localfs-1.0", "path=fast")
    run("repo", "remove", "fast")
    assert run("repo", "list", "--json").json == []


def test_a_file_system_that_only_one_host_uses(unconnected: Program) -> None:
    """The parameter is true or false for the API, and is kept with the connection."""
    run = unconnected.run
    shared = ("localfs-1.0", "path=fast", "sharedByOneHost=true")
    assert "sharedByOneHost" in run("repo", "create", "--help").out
    assert "true or false" in run("repo", "create", *shared[:2], "sharedByOneHost=maybe", status=10).err
    run("repo", "create", *shared)
    run("repo", "connect", "fast", *shared)
    (info,) = run("repo", "list", "--json").json
    assert info["connectionParameters"]["sharedByOneHost"] is True
    run("disk", "create", "fast", "1M")


def test_what_cannot_be_created_or_connected(program: Program) -> None:
    run = program.run
    assert "NotEmpty" in run("repo", "create", "localfs-1.0", "path=fast", "--json", status=13).err
    run("repo", "connect", "fast", "localfs-1.0", "path=backup", status=14)
    run("repo", "connect", "x", "lvm-9.0", "path=backup", status=11)
    run("repo", "connect", "x", "localfs-1.0", "path=.", status=12)
    run("repo", "connect", "x", "localfs-1.0", "path", status=2)


def test_usage_adds_up_and_remove_says_what_stays(program: Program) -> None:
    run = program.run
    run("disk", "create", "fast", "64M", "--name", "web")
    program.write("fast/web", 1, "0", "20M")
    run("snapshot", "create", "fast/web", "--name", "first")
    program.write("fast/web", 2, "8M", "4M")
    removed = run("image", "remove", "fast/first")
    assert "20 MiB stay until a merge" in removed.out
    usage = run("repo", "usage", "fast", "--json").json
    assert usage["mergeableBytes"] >= 20 * MiB
    parts = ("strongBytes", "buildingBytes", "mergeableBytes", "retainedBytes", "reclaimableBytes")
    assert sum(usage[part] for part in parts) == usage["usedBytes"]
    assert "until merged" in run("repo", "usage", "fast").out
    # Another snapshot, removed with its merge: all is given back, and the bytes are as written.
    run("snapshot", "create", "fast/web", "--name", "second")
    program.write("fast/web", 3, "0", "1M")
    merged = json.loads(run("image", "remove", "fast/second", "--merge", "--json").out)
    assert [ran["error"] for ran in merged["merges"]] == [None]
    run("repo", "fix", "fast")
    assert run("repo", "check", "fast", "--exit-code").out == ""
    usage = run("repo", "usage", "fast", "--json").json
    assert usage["usedBytes"] == usage["strongBytes"] < 22 * MiB
    program.reads("fast/web", 3, "0", "1M")
    program.reads("fast/web", 1, "1M", "7M")
    program.reads("fast/web", 2, "8M", "4M")


def test_usage_of_what_is_not_connected(program: Program) -> None:
    program.run("repo", "usage", "slow", status=16)


def test_a_place_is_connected_again_by_another_path(program: Program) -> None:
    """By a link, a relative path or a longer one: it is the same place, and the path given last is kept."""
    run, place = program.run, program.folder / "fast"
    (program.folder / "link").symlink_to(place)
    program.disk("fast", "web")
    for path in ("link", f"{place}/", "./fast", f"{place}/../fast"):
        assert run("repo", "connect", "fast", "localfs-1.0", f"path={path}").out == "fast is connected.\n"
        (found,) = (info for info in run("repo", "list", "--json").json if info["repoId"] == "fast")
        assert found["connectionParameters"]["path"] == os.path.abspath(program.folder / path)
        assert [image["userData"]["name"] for image in run("image", "list", "fast", "--json").json] == ["web"]
    error = run("repo", "connect", "fast", "localfs-1.0", f"path={program.folder / 'backup'}", status=14).err
    assert "fast names another repository" in error


def test_a_copy_of_a_connected_repository_is_refused_at_once(program: Program) -> None:
    shutil.copytree(program.folder / "fast", program.folder / "copied")
    error = program.run("repo", "connect", "copied", "localfs-1.0", "path=copied", status=12).err
    assert "is a byte copy of" in error
    assert "fast" in error
    assert [info["repoId"] for info in program.run("repo", "list", "--json").json] == ["fast", "backup"]
    assert "--new-identity" in error
    program.run("repo", "connect", "copied", "localfs-1.0", "path=copied", "--new-identity")
    assert [info["repoId"] for info in program.run("repo", "list", "--json").json][-1] == "copied"
    program.run("disk", "create", "copied", "1M")
    program.run("repo", "check", "copied", "--deep", "--exit-code")
