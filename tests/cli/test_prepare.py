from __future__ import annotations

import signal
import subprocess
from xml.etree import ElementTree as ET

from tests.cli.program import Program


def test_what_qemu_and_libvirt_need(program: Program) -> None:
    run = program.run
    program.disk("fast", "web")
    shown = run("image", "prepare", "web").out
    assert "QEMU" in shown
    assert "<disk " in shown
    attached = run("image", "prepare", "web", "--format", "json").json
    assert attached == run("image", "prepare", "web", "--json").json
    graph = run("image", "prepare", "web", "--format", "blockdev").out.strip()
    done = subprocess.run(
        ["qemu-io", "-c", "write -P 9 0 1M", f"json:{graph}"], check=True, capture_output=True
    )
    assert b"wrote 1048576" in done.stdout
    printed = run("image", "prepare", "web", "--format", "libvirt").out
    assert ET.fromstring(printed).tag == "disk"  # noqa: S314 - our own
    assert "fast/web" in run("image", "list").out
    in_use = run("disk", "extend", "web", "2M", status=23)
    assert "attached" in in_use.err
    run("image", "teardown", "web")
    run("image", "teardown", "web")
    run("disk", "extend", "web", "2M")
    program.reads("fast/web", 9, "0", "1M")


def test_serving_in_the_foreground(program: Program) -> None:
    program.disk("fast", "web")
    program.run("image", "prepare", "web", "--serve", "nbd", "--format", "libvirt", status=10)
    child = program.start("image", "prepare", "web", "--serve", "nbd", "--owner", "vm1")
    assert child.stdout is not None
    uri = child.stdout.readline().strip()
    subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 4 0 1M", uri], check=True, capture_output=True)
    attachment = program.run("image", "show", "web", "--json").json["attachments"][0]
    assert attachment["owner"] == "vm1"
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    # This is how it is meant to end.
    assert child.returncode == 0, err
    assert program.run("image", "show", "web", "--json").json["attachments"] == []
    program.reads("fast/web", 4, "0", "1M")
