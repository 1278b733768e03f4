from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from diskyard.testing.fake_programs import FakePrograms
from tests.cli.program import Program, interrupt_when_running


@pytest.mark.embedded("what is interrupted is this process's work; a daemon goes on (test_daemon.py)")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_import_stays_listed_and_is_completed(
    program: Program, noise: Path, number: signal.Signals
) -> None:
    child = program.start(
        "image", "import", "fast", "noise.raw", "--format", "raw", "--name", "noise", "--rate", "4M"
    )
    status, out, err = interrupt_when_running(child, number)
    assert status == 128 + number
    assert err == "diskyard: interrupted; unfinished work stays listed for 'diskyard repo fix'.\n"
    listed = program.run("repo", "check", "fast", "--exit-code", "--json", status=1).json
    assert [(fix["type"], fix["imageId"], fix["runnable"]) for fix in listed] == [("mend", out.strip(), True)]
    assert "complete fast/noise: done" in program.run("repo", "fix", "fast").out
    program.run("repo", "check", "fast", "--exit-code")
    program.run("image", "export", "noise", "out.raw", "--format", "raw")
    assert (program.folder / "out.raw").read_bytes() == noise.read_bytes()
    # Removed, it leaves nothing behind: no volume, and no progress of what made it.
    program.run("image", "remove", "noise")
    program.run("repo", "check", "fast", "--exit-code")


@pytest.mark.embedded("--no-wait leaves the work to nobody; a daemon does it (test_daemon.py)")
def test_a_task_stopped_from_another_terminal(program: Program, noise: Path) -> None:
    child = program.start("image", "import", "fast", "noise.raw", "--format", "raw", "--rate", "2M")
    assert child.stdout is not None
    image_id = child.stdout.readline().strip()
    (task,) = program.run("task", "list", "--image", image_id, "--running", "--json").json
    program.run("task", "stop", task["taskId"][:8])
    _, err = child.communicate(timeout=30)
    assert child.returncode == 1
    assert "was stopped; its fix stays listed" in err
    assert "stopped" in program.run("task", "show", task["taskId"]).out
    # Only the fixes that are named are run, by the beginning of their ids too.
    program.run("snapshot", "create", image_id, status=22)
    program.run("image", "import", "fast", "noise.raw", "--format", "raw", "--name", "two", "--no-wait")
    fixes = program.run("repo", "check", "fast", "--json").json
    (first,) = (fix for fix in fixes if fix["imageId"] == image_id)
    done = program.run("repo", "fix", "fast", first["fixId"][:-4], "--json").json
    assert [ran["changed"] for ran in done["ran"]] == [True]
    assert len(program.run("repo", "check", "fast", "--json").json) == 1
    program.run("repo", "fix", "fast", first["fixId"], status=10)
    program.run("repo", "fix", "fast", "mend-", "--all", status=10)
    program.run("task", "show", "0000", status=31)


@pytest.mark.embedded("--no-wait leaves the work to nobody; a daemon does it (test_daemon.py)")
def test_fixes_that_run_first(program: Program, noise: Path) -> None:
    program.run("image", "import", "fast", "noise.raw", "--format", "raw", "--name", "n", "--no-wait")
    assert "complete fast/n: done" in program.run("repo", "fix", "fast", "--first").out
    program.run("image", "export", "n", "out.raw", "--format", "raw")
    assert (program.folder / "out.raw").read_bytes() == noise.read_bytes()


@pytest.mark.embedded("--no-wait leaves the work to nobody; a daemon does it (test_daemon.py)")
def test_what_waits_is_shown_with_why(program: Program, noise: Path) -> None:
    program.run("image", "import", "fast", "noise.raw", "--format", "raw", "--name", "lost", "--no-wait")
    noise.unlink()
    table = program.run("repo", "check", "fast").out
    assert "waits: " in table
    fixed = program.run("repo", "fix", "fast")
    assert "1 still listed" in fixed.out
    assert "waits: " in fixed.out
    (fix,) = program.run("repo", "check", "fast", "--json").json
    program.run("repo", "fix", "fast", fix["fixId"], status=10)


def test_removing_what_another_process_makes(program: Program, noise: Path) -> None:
    child = program.start("image", "import", "fast", "noise.raw", "--format", "raw", "--rate", "2M")
    assert child.stdout is not None
    image_id = child.stdout.readline().strip()
    program.run("image", "remove", image_id)
    child.communicate(timeout=30)
    program.run("repo", "fix", "fast")
    assert program.run("repo", "usage", "fast", "--json").json["usedBytes"] == 0


@pytest.mark.embedded("--no-wait leaves the work to nobody; a daemon does it (test_daemon.py)")
def test_two_hosts(program: Program, noise: Path) -> None:
    program.run("image", "import", "fast", "noise.raw", "--format", "raw", "--name", "n", "--no-wait")
    program.run("repo", "fix", "fast", DISKYARD_HOST_ID="kvm2")
    assert json.loads(program.run("image", "status", "n", "--json").out)["hostID"] == "kvm2"


@pytest.mark.embedded("a daemon has the programs of its own $PATH")
def test_a_merge_that_fails_when_an_image_is_removed(program: Program, tmp_path: Path) -> None:
    """It is left, and can run: nothing is said of what it does not wait for."""
    program.disk("fast", "web")
    program.write("fast/web", 1, "0", "512k")
    program.run("snapshot", "create", "fast/web", "--name", "before")
    program.write("fast/web", 2, "256k", "512k")
    fake = FakePrograms(tmp_path / "programs")
    fake.replace("qemu-storage-daemon", "import sys; sys.exit(1)")
    ended = program.run("image", "remove", "fast/before", "--merge", status=None, PATH=fake.path)
    (merge,) = program.run("repo", "check", "fast", "--type", "merge", "--json").json
    assert f"{merge['fixId']} is still to be done (can run): 'diskyard repo fix fast'." in ended.err
    assert "None" not in ended.out + ended.err
    program.run("repo", "fix", "fast")
    program.reads("fast/web", 1, "0", "256k")
    program.reads("fast/web", 2, "256k", "512k")
