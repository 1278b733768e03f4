from __future__ import annotations

import subprocess
from pathlib import Path

from tests.cli.program import Program


def test_disks_snapshots_and_copies_hold_what_was_written(program: Program) -> None:
    run = program.run
    web = run("disk", "create", "fast", "10M", "--name", "web", "--label", "os=debian").id
    program.write("fast/web", 1, "0", "10M")
    snapshot = run("snapshot", "create", "fast/web", "--name", "installed", "--json").json["imageId"]
    other = run("disk", "create", "fast", "--from", "installed", "--name", "web-1").id
    program.write("fast/web-1", 2, "1M", "1M")
    run("image", "copy", "fast/web-1", "backup", "--name", "monday")
    program.write("fast/web-1", 3, "2M", "1M")
    run("disk", "copy", "fast/web-1", "backup", "--base", "backup/monday", "--name", "tuesday")
    program.reads("backup/monday", 2, "1M", "1M")
    program.reads("backup/monday", 1, "2M", "8M")
    program.reads("backup/tuesday", 3, "2M", "1M")
    program.reads("fast/web", 1, "0", "10M")
    listed = run("image", "list", "--json").json
    assert {image["userData"].get("name") for image in listed} == {
        "web", "installed", "web-1", "monday", "tuesday",
    }  # fmt: skip
    assert [image["imageId"] for image in run("snapshot", "list", "fast", "--json").json] == [snapshot]
    assert {image["imageId"] for image in run("disk", "list", "fast", "--json").json} == {web, other}
    shown = run("image", "show", "fast/web").out
    assert web in shown
    assert "os=debian" in shown
    assert run("image", "status", "monday", "--json").json["status"] == "optimized"


def test_extend_and_revert(program: Program) -> None:
    run = program.run
    run("disk", "create", "fast", "8M", "--name", "web")
    program.write("fast/web", 5, "0", "8M")
    run("snapshot", "create", "web", "--name", "before")
    assert run("disk", "extend", "web", "+8M").out == "fast/web is 16 MiB large.\n"
    program.reads("fast/web", 0, "8M", "8M")
    assert run("disk", "extend", "web", "20M", "--json").json["sizeBytes"] == 20 << 20
    run("disk", "extend", "web", "1M", status=10)
    program.write("fast/web", 6, "0", "1M")
    run("disk", "revert", "web", "before")
    program.reads("fast/web", 5, "0", "8M")
    assert run("disk", "show", "web", "--json").json["sizeBytes"] == 8 << 20


def test_set_changes_what_is_given_and_keeps_the_rest(program: Program) -> None:
    run = program.run
    run("disk", "create", "fast", "1M", "--name", "web", "--label", "a=1", "--label", "b=2")
    run("image", "set", "web", "--name", "www", "--description", "a server", "--unlabel", "a")
    data = run("image", "show", "www", "--json").json["userData"]
    assert data == {"name": "www", "description": "a server", "labels": {"b": "2"}}
    run("image", "set", "www", "--strategy", "performance")
    assert run("image", "show", "www", "--json").json["strategy"] == "performance"
    run("image", "set", "www", "--user-data", '["mine"]')
    image = run("image", "list", "--json").json[0]
    assert image["userData"] == ["mine"]
    run("image", "set", image["imageId"], "--name", "x", status=10)
    run("image", "set", image["imageId"], status=10)
    run("image", "set", image["imageId"], "--user-data", "[1", status=10)


def test_import_and_export(program: Program, noise: Path) -> None:
    run, folder = program.run, program.folder
    run("image", "import", "fast", "noise.raw", "--format", "raw", "--name", "noise")
    for file_format in ("raw", "qcow2", "vmdk"):
        run("image", "export", "fast/noise", f"out.{file_format}", "--format", file_format)
        subprocess.run(
            ["qemu-img", "compare", "-F", "raw", "-f", file_format, f"out.{file_format}", noise],
            cwd=folder,
            check=True,
            capture_output=True,
        )
    run("image", "import", "fast", "out.qcow2", "--format", "qcow2", "--snapshot", "--name", "frozen")
    assert run("image", "show", "frozen", "--json").json["kind"] == "snapshot"
    task = run("image", "export", "frozen", "again.raw", "--format", "raw", "--json").json
    assert (task["verb"], task["state"]) == ("exportImage", "done")
    assert (folder / "again.raw").read_bytes() == noise.read_bytes()
    assert (
        "NotEmpty"
        in run("image", "export", "frozen", "again.raw", "--format", "raw", "--json", status=13).err
    )
    run("image", "import", "fast", "noise.raw", status=2)
    run("image", "import", "fast", "noise.raw", "--format", "qcow2", status=28)
    run("image", "import", "fast", "nothing.raw", "--format", "raw", status=10)
    assert run("repo", "check", "fast", "--type", "mend").out == ""
