"""The files for packages say of the program what it does."""

from __future__ import annotations

import re
from pathlib import Path

from diskyard import errors
from diskyard.daemon.config import DEFAULT_PATH, LimitsConfig, TasksConfig

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"


def settings(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"(?m)^(\w+)=(.*)$", (PACKAGING / name).read_text()):
        found.setdefault(key, []).append(value)
    return found


def test_the_unit_and_the_program_agree() -> None:
    unit = settings("diskyard.service")
    assert unit["RestartPreventExitStatus"] == [str(errors.InvalidParameter.exit_status)]
    assert unit["Type"] == ["notify"]
    assert unit["ExecStart"][0].endswith("/diskyard serve")
    assert unit["Environment"] == ["TMPDIR=/run/diskyard"]
    assert f"/etc/{unit['ConfigurationDirectory'][0]}" == str(Path(DEFAULT_PATH).parent)
    assert f"/var/lib/{unit['StateDirectory'][0]}" == "/var/lib/diskyard"


def test_other_processes_are_seen() -> None:
    """Work of a process that is hidden would be taken for abandoned."""
    unit = settings("diskyard.service")
    assert unit["ProtectProc"] == ["default"]
    assert unit["ProcSubset"] == ["all"]
    assert not {"PrivatePIDs", "PrivateUsers"} & unit.keys()


def test_the_audit_file_that_is_rotated_is_one_that_the_unit_may_write() -> None:
    (rotated,) = re.findall(r"(?m)^(/\S+) \{$", (PACKAGING / "diskyard.logrotate").read_text())
    assert str(Path(rotated).parent) == f"/var/log/{settings('diskyard.service')['LogsDirectory'][0]}"


def test_the_unit_gives_what_the_limits_allow() -> None:
    unit, limits, tasks = settings("diskyard.service"), LimitsConfig(), TasksConfig()
    (memory,), (threads,) = unit["MemoryMax"], unit["TasksMax"]
    assert memory.endswith("M")
    held_bytes = limits.answer_bytes + limits.connections * 128 * 1024
    assert int(memory[:-1]) << 20 > 4 * held_bytes
    assert int(threads) > 2 * (limits.concurrent_requests + 4 * tasks.at_once)
