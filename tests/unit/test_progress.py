"""What is told of a task's progress: the rate of its last seconds, and the time that is left."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import msgspec
import pytest

from diskyard.cli.bars import Bars
from diskyard.host import Clock, Host
from diskyard.host.identity import this_process
from diskyard.model.results import Task
from diskyard.tasks.records import TaskRecord, TaskRecords
from diskyard.tasks.speed import Speed
from diskyard.tasks.watcher import Shown, TaskWatcher

MiB = 1 << 20
RUNNING = Task(task_id="1", verb="mend", repository_id="r", image_id=None, state="running")


def speed_of(*reports: tuple[float, int]) -> Speed:
    speed = Speed()
    for now_s, done_bytes in reports:
        speed.note(now_s, "1/1", done_bytes)
    return speed


def test_nothing_is_known_at_first() -> None:
    assert Speed().bytes_per_s(7) == 0
    assert speed_of((7, MiB)).bytes_per_s(7) == 0
    assert speed_of((7, 0)).remaining_s(7, 10 * MiB) is None


def test_the_rate_is_that_of_the_last_seconds() -> None:
    slow_then_fast = [(float(at), at * MiB) for at in range(21)]
    slow_then_fast += [(20.0 + at, (20 + 100 * at) * MiB) for at in range(1, 6)]
    speed = speed_of(*slow_then_fast)
    assert speed.bytes_per_s(25) == 100 * MiB
    assert speed.remaining_s(25, 620 * MiB) == 1
    assert speed.remaining_s(25, 621 * MiB) == 2


def test_bytes_that_were_there_before_are_not_moved() -> None:
    """Work that goes on at 1 GiB has not moved that; nor is it moved again if it begins anew."""
    assert speed_of((0, 1024 * MiB), (2, 1034 * MiB)).bytes_per_s(2) == 5 * MiB
    assert speed_of((0, 1024 * MiB), (1, 0), (2, 10 * MiB)).bytes_per_s(2) == 5 * MiB


def test_a_stage_has_a_rate_of_its_own() -> None:
    speed = speed_of((0, 0), (1, 1000 * MiB))
    speed.note(2, "2/2", 0)
    assert speed.bytes_per_s(2) == 0
    speed.note(3, "2/2", MiB)
    assert speed.bytes_per_s(3) == MiB


def test_a_rate_is_told_of_reports_that_come_seldom() -> None:
    assert speed_of((0, 0), (60, 60 * MiB)).bytes_per_s(60) == MiB
    assert speed_of((0, 0), (60, 60 * MiB), (120, 180 * MiB)).bytes_per_s(120) == 2 * MiB


def test_what_moves_nothing_has_no_end() -> None:
    speed = speed_of((0, 0), (1, MiB), *((1.0 + at, MiB) for at in range(1, 7)))
    assert speed.bytes_per_s(7) == 0
    assert speed.remaining_s(7, 2 * MiB) is None
    assert speed.remaining_s(7, MiB) == 0
    assert speed.remaining_s(7, 0) is None


class HandClock(Clock):
    """Its time is what the test says."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic_s(self) -> float:
        return self.now_s


def test_a_task_shows_its_rate_and_the_time_left_until_it_ends(tmp_path: Path) -> None:
    clock, told = HandClock(), list[Task]()
    records = TaskRecords(Host.real(), str(tmp_path))
    watcher = TaskWatcher(RUNNING, None, Shown(records, clock, told.append, threading.Event()))
    for done_bytes in (0, MiB, 2 * MiB):
        watcher.report("1/1", done_bytes, 8 * MiB)
        clock.now_s += 1
    assert [(task.percent, task.rate_bytes_per_s, task.remaining_s) for task in told] == [
        (0, 0, None),
        (12, MiB, 7),
        (25, MiB, 6),
    ]
    watcher.show_end(state="stopped")
    assert records.get("1") == told[-1]
    assert (told[-1].done_bytes, told[-1].rate_bytes_per_s, told[-1].remaining_s) == (2 * MiB, 0, None)


def test_a_task_that_was_killed_moves_nothing(tmp_path: Path) -> None:
    host = Host.real()
    gone = msgspec.structs.replace(this_process(host.identity), boot_id="an earlier one")
    moving = msgspec.structs.replace(RUNNING, rate_bytes_per_s=MiB, remaining_s=7)
    records = TaskRecords(host, str(tmp_path))
    (tmp_path / "1.task").write_bytes(msgspec.json.encode(TaskRecord(moving, gone)))
    assert records.get("1") == msgspec.structs.replace(RUNNING, state="stopped")


def test_a_bar_shows_the_rate_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("diskyard.cli.bars._QUIET_S", 0)
    monkeypatch.setitem(os.environ, "COLUMNS", "120")
    monkeypatch.setitem(os.environ, "FORCE_COLOR", "1")
    moving = {"done_bytes": 10 * MiB, "total_bytes": 100 * MiB, "rate_bytes_per_s": 3 * MiB}
    with Bars() as bars:
        bars.show(msgspec.structs.replace(RUNNING, **moving, remaining_s=30))
        bars.show(msgspec.structs.replace(RUNNING, **moving, remaining_s=750))
    drawn = capsys.readouterr().err
    assert "10 %" in drawn
    assert "3 MiB/s" in drawn
    assert "12 min 30 s left" in drawn
